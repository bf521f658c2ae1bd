"""Proofs that anyone can run: each breaks something on purpose and counts what did not hold."""
