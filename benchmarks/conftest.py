"""Which files are benchmarks, and what pytest-benchmark's JSON says about the machine."""

from . import measuring


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # the default names the host
    machine_info.update(measuring.machine(), versions=measuring.versions())
