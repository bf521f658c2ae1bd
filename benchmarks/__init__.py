"""Measurements that are run by hand and never timed tests: ``python -m benchmarks.NAME --help``."""
