"""Tiny models that come with the package, so that the demo profile runs without a download."""
