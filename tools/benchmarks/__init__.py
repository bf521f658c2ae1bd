"""Measurements that are run by hand and never timed tests: ``python -m tools.benchmarks.NAME --help``."""
