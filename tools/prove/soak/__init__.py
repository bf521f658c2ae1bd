"""That hundreds of thousands of jobs, of every way to go and to end, leave nothing behind."""
