"""That a server may be killed at any moment, and no job that it accepted is lost, doubled or changed."""
