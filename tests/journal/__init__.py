"""The journal: what is written of jobs, and what is read back."""
