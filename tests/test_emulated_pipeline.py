"""The whole pipeline on the CUDA kernels, executed without a GPU: every stage has the bits of the CPU."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import assert_same_bits
from generators import Gallery, duplicated_features, gallery, grid_features
from torch.profiler import ProfilerActivity, profile

from dmic import _native, ops, pseudo_labels

sys.path.insert(0, str(Path(__file__).resolve().parent / "cuda_emulator"))

import kernel_checks


def gallery_of(features: np.ndarray) -> Gallery:
    cameras = np.arange(len(features)) % 5
    return Gallery(features, cameras, (cameras > 2).astype(np.int64))


# name: (gallery, k1, k2, eps)
GALLERIES = {
    "clear identities": (lambda: gallery(120, 24, noise=0.3), 20, 6, 0.6),
    "many neighbors averaged": (lambda: gallery(150, 16), 30, 18, 0.6),
    "noise": (lambda: gallery(110, 24, noise=3.0), 40, 32, 0.8),
    "every sample a neighbor": (lambda: gallery(61, 8), 61, 20, 1.0),
    "no expansion": (lambda: gallery(90, 8), 12, 1, 0.5),
    "ties": (lambda: gallery_of(grid_features(90, 4)), 10, 4, 0.6),
    "duplicates": (lambda: gallery_of(duplicated_features(96, 9, 80)[0]), 5, 3, 0.6),
    "wide": (lambda: gallery(40, 515), 9, 4, 0.6),
    "one sample": (lambda: gallery(1, 3), 1, 1, 0.0),
    "no sample": (lambda: gallery(0, 3), 1, 1, 0.6),
}


@pytest.fixture
def emulated(monkeypatch):
    """Call it to choose a schedule; from then on the public functions run the CUDA kernels."""
    emulator = kernel_checks.plain_emulator()

    def choose(schedule: int, workers: int) -> None:
        emulator.configure(schedule, workers)
        monkeypatch.setattr(_native, "OPS", emulator.ops)

    yield choose
    emulator.configure()


def stages(name: str) -> list:
    """What every stage makes of a gallery."""
    make, k1, k2, eps = GALLERIES[name]
    data = make()
    neighbors = ops.knn_graph(data.features, k1)
    encoding = ops.k_reciprocal_encoding(data.features, neighbors[0], int(np.around(k1 / 2)) if k1 > 1 else 0)
    expanded = ops.invariant_expansion(encoding, neighbors[0], k2, data.camera_ids, data.modality_ids)
    distance = ops.jaccard_distance(expanded, eps)
    return [neighbors, encoding, expanded, distance, ops.dbscan(distance, eps, 4)]


@cache
def on_the_cpu(name: str) -> list:
    assert _native.OPS is None
    return stages(name)


@pytest.mark.parametrize("schedule", kernel_checks.SCHEDULES)
@pytest.mark.parametrize("name", GALLERIES)
def test_every_stage_has_the_bits_of_the_cpu(emulated, name, schedule):
    want = on_the_cpu(name)
    for workers in (1, 2):
        emulated(schedule, workers)
        assert_same_bits(stages(name), want, f"{workers} workers")


@pytest.mark.parametrize("name", GALLERIES)
def test_pseudo_labels_are_those_of_the_cpu(emulated, name):
    make, k1, k2, eps = GALLERIES[name]
    data = make()
    features = torch.from_numpy(data.features)
    settings = {"camera_ids": data.camera_ids, "modality_ids": data.modality_ids, "k1": k1, "k2": k2, "eps": eps}
    want = pseudo_labels(features, **settings)
    assert want.num_redone == 0, "the CPU has no such rows"
    emulated(schedule=3, workers=2)
    got = pseudo_labels(features, **settings)
    assert torch.equal(got.labels, want.labels)
    assert torch.equal(got.core_mask, want.core_mask)
    assert (got.num_clusters, got.num_outliers) == (want.num_clusters, want.num_outliers)
    assert (got.num_redone > 0) == (name in {"duplicates", "every sample a neighbor"}), got.num_redone


STAGES = ["knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan"]


def test_every_stage_reports_progress_from_nothing_to_all(emulated):
    emulated(schedule=0, workers=1)
    reports = []
    with kernel_checks.plain_emulator().polled(lambda *report: reports.append(report)):
        stages("clear identities")
    assert list(dict.fromkeys(stage for stage, _, _ in reports)) == STAGES
    for stage in STAGES:
        done = [(d, total) for name, d, total in reports if name == stage]
        assert done[0][0] == 0
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1] > 0, f"{stage} ends at {done[-1]}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_is_heard_in_every_stage_and_leaves_everything_usable(emulated, stage):
    want = on_the_cpu("clear identities")
    emulated(schedule=0, workers=1)
    stop = kernel_checks.plain_emulator().polled(lambda name, _done, _total: name == stage)
    with stop, pytest.raises(RuntimeError, match=rf"^{stage}: interrupted"):
        stages("clear identities")
    assert_same_bits(stages("clear identities"), want)


def test_nothing_but_sizes_and_verdicts_comes_back_to_the_host(emulated):
    """What the profiler sees of the one call that copies to the CPU; of a tensor that is there, as here, it copies
    nothing."""
    emulated(schedule=0, workers=1)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        stages("clear identities")
    copies = [
        (event.cpu_parent.name.removeprefix("dmic_emu::"), event.input_shapes[0])
        for event in seen.events()
        if event.name == "aten::to" and event.cpu_parent and event.cpu_parent.name.startswith("dmic_emu::")
    ]
    assert {op for op, _ in copies} == set(STAGES)
    row_ptr = ("jaccard_distance", [120 + 1])  # by which its rows are cut into chunks
    assert [copy for copy in copies if copy[1]] == [row_ptr], "all others are of one number"
