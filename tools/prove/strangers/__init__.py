"""That no URL of a caller leads inside, and that no host a caller names costs much."""
