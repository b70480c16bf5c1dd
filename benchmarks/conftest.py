"""Options and inputs of the benchmarks of single ops; every input is made once, outside the timed part.

pytest benchmarks/bench_jaccard_distance.py --size 8k --difficulty hard --benchmark-json results.json
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dmic

from . import baselines, measuring
from .sizes import DIFFICULTY, DIM, EPS, K1, K1_HALF, K2, SIZES, Gallery, generate_gallery


def pytest_addoption(parser):
    parser.addoption("--size", default="4k", choices=list(SIZES), help="number of samples, by name; default 4k")
    parser.addoption("--difficulty", default="easy", choices=list(DIFFICULTY), help="kind of features; default easy")


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_*.py")
    measuring.warn_about_openblas()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # the default names the host
    machine_info.update(measuring.machine(), versions=measuring.versions())


@pytest.fixture(scope="session")
def gallery(pytestconfig) -> Gallery:
    size = "smoke" if pytestconfig.option.benchmark_disable else pytestconfig.option.size
    return generate_gallery(SIZES[size], DIM, pytestconfig.option.difficulty)


@pytest.fixture(scope="session")
def neighbor_idx(gallery) -> np.ndarray:
    return dmic.knn_graph(gallery.features, K1)[0]


@pytest.fixture(scope="session")
def encoding(gallery, neighbor_idx) -> dmic.Csr:
    return dmic.k_reciprocal_encoding(gallery.features, neighbor_idx, K1_HALF)


@pytest.fixture(scope="session")
def expanded(gallery, neighbor_idx, encoding) -> dmic.Csr:
    return dmic.invariant_expansion(encoding, neighbor_idx, K2, gallery.camera_ids, gallery.modality_ids)


@pytest.fixture(scope="session")
def distance(expanded) -> dmic.Csr:
    return dmic.jaccard_distance(expanded, EPS)


@pytest.fixture(scope="session")
def dense_encoding(gallery, neighbor_idx) -> np.ndarray:
    return baselines.encode(gallery.features, neighbor_idx, K1)


@pytest.fixture(scope="session")
def dense_expanded(gallery, neighbor_idx, dense_encoding) -> np.ndarray:
    return baselines.expand(dense_encoding, neighbor_idx, K2, gallery.camera_ids, gallery.modality_ids)


@pytest.fixture(scope="session")
def dense_distance(dense_expanded) -> np.ndarray:
    return baselines.jaccard(dense_expanded)


@pytest.fixture
def measure(benchmark, pytestconfig, gallery) -> Callable:
    """measure(function, *args, **facts): one run for the peak memory, then three timed ones; returns the result."""

    def run(function: Callable, *args, **facts):
        result = []
        peak = measuring.peak_of(lambda: result.append(function(*args)))
        benchmark.extra_info.update(
            num_samples=len(gallery.features),
            dim=gallery.features.shape[1],
            difficulty=pytestconfig.option.difficulty,
            k1=K1,
            k2=K2,
            device="cpu",
            peak_bytes=peak,
            commit=measuring.commit(),
            **facts,
        )
        benchmark.pedantic(function, args, rounds=3)
        return result[0]

    return run
