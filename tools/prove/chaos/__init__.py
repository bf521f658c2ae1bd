"""That on bad days every accepted job still ends, once, and says so."""
