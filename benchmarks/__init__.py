"""Measurements against the published pipeline; see `python -m benchmarks.bench_pseudo_labels --help`."""
