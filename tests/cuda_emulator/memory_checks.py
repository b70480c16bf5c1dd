"""What the public function and the emulated ops do with memory: when it runs out at any one point, when there is only
so much of it, when they are interrupted, and how much they take at most.

As a program, with libfailing_memory.so preloaded, `memory_checks.py REPORT` lets every allocation of a run fail in
turn and writes what came of it as JSON; test_out_of_memory.py judges. It checks on the way that nothing is left behind
and that the same call right after it gives the right bits.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # compare, generators
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # dmic

import emulator_build as build
import kernel_checks
import torch
from compare import assert_same_bits
from generators import csr_from_dense, gallery, random_encoding_rows

from dmic import _native, ops, pseudo_labels

SETTINGS = {"k1": 6, "k2": 3, "eps": 0.6}
NEVER, ALL = (-1, -1), 1 << 40
STAGES = ["knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan"]
REPORT_SECONDS = 0.051  # later than this, an op reports again
LARGER = {"num_samples": 150, "num_features": 515}
LARGER_SETTINGS = ({"k1": 30, "k2": 6, "eps": 0.6}, {"k1": 20, "k2": 1, "eps": 0.6}, {"k1": 12, "k2": 8, "eps": 0.3})


class FailingMemory:
    """The preloaded library."""

    def __init__(self):
        self._library = ctypes.CDLL(None)  # what is preloaded comes first
        for name in ("arm", "disarm", "size", "held", "peak"):
            function = getattr(self._library, f"failing_memory_{name}")
            function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int64] * {"arm": 3, "size": 1}.get(name, 0)
            setattr(self, f"_{name}", function)

    def run(
        self, call: Callable[[], Any], want: Any, fail: tuple[int, int] = NEVER, limit: int = ALL
    ) -> tuple[str | None, list[int]]:
        """The call while allocations fail[0] .. fail[1] - 1 fail, and those beyond `limit` bytes at a time: its error,
        if it has one, and the bytes of every allocation that it asked for. Without an error it has the wanted result;
        with one it keeps no memory, and has the result when it is repeated."""
        error = None
        self._arm(*fail, limit)
        try:
            got = call()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        count = self._disarm()
        sizes = [self._size(i) for i in range(count)]
        if error is None:
            assert_same_bits(got, want, f"allocations {fail} fail")
        else:
            gc.collect()
            assert self._held() == 0, f"allocations {fail} fail: {self._held()} blocks are left behind"
            assert_same_bits(call(), want, f"after allocations {fail} failed")
        return error, sizes

    def begin(self) -> None:
        """Count what is held from here on."""
        self._arm(*NEVER, ALL)

    def end(self) -> None:
        self._disarm()

    def peak(self) -> int:
        """The most bytes that were held at a time since this was asked last, or since the last run began."""
        return self._peak()


def every_failure(memory: FailingMemory, call: Callable[[], Any], want: Any) -> list[str | None]:
    """The error of a run for each of its allocations that fails alone; None where the run does without."""
    memory.run(call, want)  # what is made once is there
    gc.freeze()  # and collected no more: that would take longer than the rest
    _, sizes = memory.run(call, want)
    assert sizes, "the library is not preloaded"
    return [memory.run(call, want, (k, k + 1))[0] for k in range(len(sizes))]


def halvings(memory: FailingMemory, call: Callable[[], Any], want: Any) -> dict:
    """Of each allocation that a run does without, and does without all but the last of those that it falls back on: the
    sizes of them all, and the error when they all fail. Of the other allocations: the errors."""
    found, errors = [], []
    for k, error in enumerate(every_failure(memory, call, want)):
        if error is not None:
            errors.append(error)
            continue
        error, sizes = memory.run(call, want, (k, ALL))
        assert error is not None, f"allocation {k} and all after it fail, and nothing happens"
        assert memory.run(call, want, (k, len(sizes) - 1))[0] is None, f"of {sizes[k:]} the last is not enough"
        found.append({"sizes": sizes[k:], "error": error})
    return {"halvings": found, "errors": errors}


def within_limits(memory: FailingMemory, call: Callable[[], Any], want: Any) -> dict:
    """What a run takes at most, and its error, or None, where there is less and less."""
    memory.run(call, want)
    peak = memory.peak()
    limits = [peak * share // 32 for share in range(32, 0, -1)]
    return {"peak": peak, "errors": [memory.run(call, want, limit=limit)[0] for limit in limits]}


def interrupted(memory: FailingMemory, emulator: kernel_checks.Emulator, call: Callable[[], Any], want: Any) -> dict:
    """The errors of runs that are stopped at their first report of progress, their second, and so on until one is not,
    and how much memory each had taken by then."""
    errors, taken = [], []
    while not errors or errors[-1] is not None:
        reports = []

        def poll(*report: Any, reports: list = reports, stop_at: int = len(errors)) -> bool:
            reports.append(report)
            time.sleep(REPORT_SECONDS * (len(reports) <= stop_at))
            if len(reports) == stop_at + 1:
                taken.append(memory.peak())
            return len(reports) == stop_at + 1

        with emulator.polled(poll):
            errors.append(memory.run(call, want)[0])
    return {"errors": errors[:-1], "taken": taken}


def peaks_of_stages(memory: FailingMemory, data: Any, settings: dict[str, Any], want: Any) -> dict[str, int]:
    """The most bytes that are held during each stage of a clustering."""
    peaks = {}

    def watched(stage: str, op: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            memory.peak()
            result = op(*args, **kwargs)
            peaks[stage] = memory.peak()
            return result

        return run

    stages = {"knn_graph_and_redone": "knn_graph"} | {stage: stage for stage in STAGES[1:]}
    with ExitStack() as stack:
        for name, stage in stages.items():
            stack.enter_context(mock.patch.object(ops, name, watched(stage, getattr(ops, name))))
        memory.run(lambda: found_labels(data, **settings), want)
    return peaks


def found_labels(data: Any, **settings: Any) -> tuple:
    ids = {"camera_ids": data.camera_ids, "modality_ids": data.modality_ids}
    result = pseudo_labels(torch.from_numpy(data.features), **ids, **settings or SETTINGS)
    return result.labels, result.core_mask


def ops_with_scratch() -> dict[str, tuple[Callable[[], Any], Any]]:
    """name: (an op that takes memory for speed, its result on the CPU)."""
    features = gallery(48, 9).features
    neighbors, _ = ops.knn_graph(features, 16)
    encoding = ops.k_reciprocal_encoding(features, neighbors, 8)
    rows = csr_from_dense(random_encoding_rows(90, 90, 12))
    calls = {
        "knn_graph": lambda: ops.knn_graph(features, 46),  # too many for lists in shared memory: all rows are redone
        "k_reciprocal_encoding": lambda: ops.k_reciprocal_encoding(features, neighbors, 8),
        "invariant_expansion": lambda: ops.invariant_expansion(encoding, neighbors, 8),
        "jaccard_distance": lambda: ops.jaccard_distance(rows, 1.0),  # more pairs than a row has shared memory for
    }
    return {name: (call, call()) for name, call in calls.items()}


def other_ops() -> dict[str, tuple[Callable[[], Any], Any]]:
    """The same of those that take none."""
    features = gallery(48, 9).features
    neighbors, _ = ops.knn_graph(features, 16)
    sets = ops.k_reciprocal_sets(neighbors, 8)
    dots = ops.sampled_dots(features, features, *sets)
    distance = ops.jaccard_distance(csr_from_dense(random_encoding_rows(90, 90, 12)), 1.0)
    calls = {
        "k_reciprocal_sets": lambda: ops.k_reciprocal_sets(neighbors, 8),
        "sampled_dots": lambda: ops.sampled_dots(features, features, *sets),
        "k_reciprocal_weights": lambda: ops.k_reciprocal_weights(*sets, dots),
        "dbscan": lambda: ops.dbscan(distance, 0.9, 4),
    }
    return {name: (call, call()) for name, call in calls.items()}


def main() -> None:
    (report,) = map(Path, sys.argv[1:])
    torch.set_num_threads(1)  # allocations come in the same order every time
    memory = FailingMemory()
    data, larger = gallery(16, 9), gallery(*LARGER.values())
    want, with_scratch = found_labels(data), ops_with_scratch()
    every_op = with_scratch | other_ops()
    larger_wants = [found_labels(larger, **settings) for settings in LARGER_SETTINGS]
    failures = {"cpu": every_failure(memory, lambda: found_labels(data), want)}
    emulator = kernel_checks.Emulator(build.library())
    _native.OPS = emulator.ops
    emulator.configure(schedule=0, workers=1)
    failures["emulated"] = every_failure(memory, lambda: found_labels(data), want)
    scratch = {name: halvings(memory, *work) for name, work in with_scratch.items()}
    limits = {name: within_limits(memory, *work) for name, work in with_scratch.items()}
    stops = {name: interrupted(memory, emulator, *work) for name, work in every_op.items()}
    peaks = [
        {"size": LARGER, "settings": settings, "stages": peaks_of_stages(memory, larger, settings, want)}
        for settings, want in zip(LARGER_SETTINGS, larger_wants, strict=True)
    ]
    found = {"failures": failures, "scratch": scratch, "limits": limits, "interrupted": stops, "peaks": peaks}
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
