"""Neighbours of two modalities and of both from one search: the bits of three."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import assert_same_bits
from generators import duplicated_features, gallery, grid_features, has_ties

import dmic
from dmic import _native, ops
from dmic.pseudo_labels import search_two_sides

sys.path.insert(0, str(Path(__file__).resolve().parent / "cuda_emulator"))

import kernel_checks

N = 90
FEATURES = {
    "identities": gallery(N, 24).features,
    "ties": grid_features(N, 4),
    "duplicates": duplicated_features(N, 9, 70)[0],
    "one point": grid_features(N, 3, levels=1),
    "distances beyond float32": gallery(N, 24).features * np.float32(1e30),
}
SECOND = {
    "by turns": torch.arange(N) % 2 == 1,
    "in runs": torch.arange(N) // 7 % 3 == 0,
    "four of them": torch.arange(N) % 25 == 8,
    "all but the last four": torch.arange(N) < N - 4,
    "one": torch.arange(N) == 40,
    "none": torch.zeros(N, dtype=torch.bool),
    "all": torch.ones(N, dtype=torch.bool),
}


LENGTHS = [(6, 11), (11, 6), (8, 8), (1, 1), (60, N), (N, 60)]


def three_searches(features, sides, k1, k1_both):
    alone = [
        ops.knn_graph(features[side], min(k1, len(side)))[0] if len(side) else torch.empty(0, 0, dtype=torch.int32)
        for side in sides
    ]
    return *alone, ops.knn_graph(features, k1_both)[0]


def assert_one_search_has_the_bits_of_three(name, second, lengths):
    features = torch.from_numpy(FEATURES[name])
    sides = tuple(mask.nonzero().flatten() for mask in (~SECOND[second], SECOND[second]))
    found = search_two_sides(features, sides, *lengths, k2=1, eps=0.6)
    assert_same_bits(list(found), list(three_searches(features, sides, *lengths)))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("name", FEATURES)
def test_one_search_has_the_bits_of_three(name, second, lengths):
    assert_one_search_has_the_bits_of_three(name, second, lengths)


@pytest.mark.parametrize("second", ["in runs", "four of them", "all"])
@pytest.mark.parametrize("name", ["ties", "duplicates"])
def test_so_it_has_on_the_cuda_kernels(monkeypatch, name, second):
    emulator = kernel_checks.plain_emulator()
    emulator.configure(3, 2)
    monkeypatch.setattr(_native, "OPS", emulator.ops)
    try:
        assert_one_search_has_the_bits_of_three(name, second, (6, 11))
    finally:
        emulator.configure()


def test_there_are_ties_to_break():
    assert [has_ties(features) for features in FEATURES.values()] == [False, True, True, True, True]


def test_the_search_along_directions_has_the_bits_of_three():
    """A gallery so large, and of so few dimensions, that either side and both are compared along directions."""
    basis = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    features = torch.from_numpy(gallery(13_000, 16).features) @ basis
    features[::9] = features[3]
    second = torch.arange(13_000) % 2 == 1
    sides = tuple(mask.nonzero().flatten() for mask in (~second, second))
    assert all(ops.leading_directions(features[side], 20) is not None for side in sides)
    assert_same_bits(
        list(search_two_sides(features, sides, 15, 20, 1, 0.6)), list(three_searches(features, sides, 15, 20))
    )


PEAK = r"""
import json, re, sys
import torch
torch.set_num_threads(1)
import generators
from dmic.block_memory import give_back
from dmic.pseudo_labels import search_two_sides, two_sides_memory

memory = lambda key: 1024 * int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1])
n, dim, k1, k1_both, alternate = json.loads(sys.argv[1])
features = torch.from_numpy(generators.gallery(n, dim).features)
second = torch.arange(n) % 2 == 1 if alternate else torch.arange(n) > n // 2
sides = tuple(mask.nonzero().flatten() for mask in (~second, second))
search_two_sides(features[:99], (sides[0][sides[0] < 99], sides[1][sides[1] < 99]), 5, 5, 1, 0.6)
give_back()
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
search_two_sides(features, sides, k1, k1_both, 1, 0.6)
print(memory("VmHWM") - before, two_sides_memory(n, dim, k1, k1_both).peak_bytes)
"""


@pytest.mark.parametrize("case", [(20_000, 64, 100, 100, 1), (12_000, 1024, 15, 40, 1), (12_000, 1024, 15, 40, 0)])
def test_what_it_needs_is_stated(case):
    """In a process of its own, but for libraries on their first use; sides that follow each other are not copied."""
    path = os.pathsep.join([str(Path(dmic.__file__).parents[1]), str(Path(__file__).parent)])
    options = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "PYTHONPATH": path}}
    child = subprocess.run([sys.executable, "-c", PEAK, json.dumps(case)], **options)
    peak, stated = map(int, child.stdout.split())
    copy = 0 if case[-1] else 4 * case[0] * case[1]
    assert peak - 20e6 <= stated - copy <= 1.5 * peak


def test_progress_is_one_stage_from_nothing_to_all():
    features = torch.from_numpy(gallery(3000, 64).features)
    second = torch.arange(3000) % 3 == 1
    sides = tuple(mask.nonzero().flatten() for mask in (~second, second))
    reports = []
    search_two_sides(features, sides, 10, 20, 1, 0.6, progress=lambda *report: reports.append(report))
    done = [done for _, done, _ in reports]
    assert {(stage, total) for stage, _, total in reports} == {("knn_graph", 3000**2 // 2)}
    assert done == sorted(done)
    assert done[-1] >= 0.99 * 3000**2 // 2


def test_errors_are_those_of_the_clustering(monkeypatch):
    features = torch.from_numpy(FEATURES["identities"])
    sides = torch.arange(N // 2), torch.arange(N // 2, N)
    monkeypatch.setattr(ops, "knn_between", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError, match=r"^pseudo_labels: out of memory; about .* lower k1=9, k2=2 or eps=0.6$"):
        search_two_sides(features, sides, 5, 9, 2, 0.6)
    features[41, 3] = float("nan")
    with pytest.raises(ValueError, match=r"^pseudo_labels: features must be finite, got nan in row 41$"):
        search_two_sides(features, sides, 5, 9, 2, 0.6)
