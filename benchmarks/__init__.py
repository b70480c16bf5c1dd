"""Measurements; `python -m benchmarks.suite --help` and `python -m benchmarks.gpu_check --help`."""
