"""The ways in: each turns what came from outside into calls of a service, and knows nothing of the others."""
