"""When memory runs out, the error says how much is needed: nothing is killed, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dmic
from dmic import estimate_memory, ops, pseudo_labels

sys.path.insert(0, str(Path(__file__).resolve().parent / "cuda_emulator"))

import emulator_build as build

TORCH_TELLS_WHY = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
ADVICE = "is needed beyond the features; lower k1=5, k2=2 or eps=0.6$"


def test_a_process_with_too_little_memory_says_how_much_it_takes():
    script = """
import resource, numpy, torch, dmic
features = numpy.random.default_rng(0).random((100_000, 2), dtype=numpy.float32)
dmic.pseudo_labels(features[:100], k1=3, k2=2)  # threads and their stacks are there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)
try:
    dmic.pseudo_labels(features, k1=500, k2=2)
except MemoryError as error:
    print(error)
print(dmic.pseudo_labels(features[:100], k1=3, k2=2).labels.shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or not TORCH_TELLS_WHY, "torch itself wrote to the log then"
    message, after = done.stdout.splitlines()
    needed = estimate_memory(100_000, 2, k1=500, k2=2)
    assert message.startswith(
        f"pseudo_labels: out of memory; about {needed} is needed beyond the features; lower k1=500"
    )
    assert after == "(100,)", "the process goes on"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("out of memory for float32 [1, 2]"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    ],
)
def test_every_way_to_run_out_is_explained(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ops, "invariant_expansion", fail)
    with pytest.raises(MemoryError, match=ADVICE) as caught:
        pseudo_labels(np.random.default_rng(0).random((20, 3)), k1=5, k2=2)
    assert caught.value.__cause__ is error


def test_a_command_with_too_little_memory_for_its_blocks_says_where_in_one_line(tmp_path):
    script = """
import resource, sys, numpy
from dmic import cli
def cluster(name, k1):
    options = ["--k1", k1, "--k2", "2", "--device", "cpu", "--resume", name + ".stages", "-o", name + ".npz"]
    return cli.main(["cluster", name, *options])
features = numpy.random.default_rng(0).random((100_000, 2), dtype=numpy.float32)
numpy.save("large.npy", features)
numpy.save("small.npy", features[:100])
assert cluster("small.npy", "3") == 0  # threads and their stacks are there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
sys.exit(cluster("large.npy", "500"))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(dmic.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    where = "out of memory in knn_graph; give a lower max_memory, with which blocks are smaller, use more ranks"
    assert done.stderr == f"dmic cluster: error: {where}, or lower k1=500 or k2=2\n"
    assert not (tmp_path / "large.npy.npz").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_blocks_explain_it_where_their_arguments_are_checked(monkeypatch, tmp_path, error):
    def fail(*_):
        raise error

    np.save(tmp_path / "features.npy", np.zeros((20, 3), np.float32))
    monkeypatch.setattr(sys.modules["dmic.pseudo_labels"], "_check_ids", fail)
    with pytest.raises(MemoryError, match=r"^pseudo_labels: out of memory; the arguments were being checked$"):
        pseudo_labels(tmp_path / "features.npy", k1=5, k2=2)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What memory_checks.py writes after every allocation failed in turn, left nothing behind and changed no bit."""
    build.build([build.library(), build.FAILING_MEMORY])
    report = tmp_path_factory.mktemp("memory") / "report.json"
    checks = build.HERE / "memory_checks.py"
    done = subprocess.run(
        [sys.executable, checks, report],
        env=build.environment("plain") | {"LD_PRELOAD": str(build.FAILING_MEMORY)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(report.read_text())


@pytest.mark.parametrize(("backend", "least"), [("cpu", 25), ("emulated", 80)])
def test_whichever_allocation_fails_one_error_explains_it(found, backend, least):
    failures = found["failures"][backend]
    assert len(failures) > least, "allocations that were not watched"
    explained = {
        "the arguments were being checked",
        r"about .* is needed beyond the features; lower k1=6, k2=3 or eps=0\.6",
    }
    start = "MemoryError: pseudo_labels: out of memory; "
    seen = {next((x for x in explained if re.fullmatch(start + x, error)), error) for error in failures if error}
    assert seen == explained
    assert (None in failures) == (backend == "emulated"), "only scratch memory of kernels can be done without"


SCRATCH = {"knn_graph": 1, "k_reciprocal_encoding": 1, "invariant_expansion": 1, "jaccard_distance": 3}


@pytest.mark.parametrize(("op", "least"), SCRATCH.items())
def test_scratch_memory_is_halved_down_to_one_row_and_no_bit_changes(found, op, least):
    halvings = found["scratch"][op]["halvings"]
    assert len(halvings) >= least
    for halving in halvings:
        error = re.fullmatch(
            r"RuntimeError: out of memory for \w+ \[1, \d+\]: it takes at least (\d+) bytes", halving["error"]
        )
        assert error, halving
        one_row = int(error[1])
        rows = [size / one_row for size in halving["sizes"]]
        assert rows[0] > 1
        assert rows[-1] == 1
        assert rows[1:] == [count // 2 for count in rows[:-1]]


@pytest.mark.parametrize("op", SCRATCH)
def test_the_kernels_name_the_array_that_cannot_be_allocated(found, op):
    """Before torch 2.13 an error of its stable interface does not say why: arrays are allocated by a call that cannot
    fail for another reason."""
    errors = found["scratch"][op]["errors"]
    ours = [error for error in errors if re.match(r"RuntimeError: out of memory for \w+ \[[\d, ]+\]$", error)]
    assert len(ours) >= 9
    for error in set(errors) - set(ours):
        assert "can't allocate memory" in error
        assert "API call failed" not in error or "amax" in error, "not the one value that amax returns"


# Of 32 limits, the highest of which is what an op takes where there is enough: how many it can do with at least
LIMITS = {"knn_graph": 16, "k_reciprocal_encoding": 1, "invariant_expansion": 10, "jaccard_distance": 1}


@pytest.mark.parametrize(("op", "least"), LIMITS.items())
def test_scratch_memory_leaves_room_for_everything_else(found, op, least):
    errors = found["limits"][op]["errors"]
    assert len(errors) == 32
    enough = errors.index(next(filter(None, errors)))
    assert enough >= least
    assert None not in errors[enough:], "with more memory it ran out"
    for error in errors[enough:]:
        assert re.search(r"out of memory for \w+ \[|can't allocate memory", error)


PIECES = ["k_reciprocal_sets", "sampled_dots", "k_reciprocal_weights"]


@pytest.mark.parametrize("op", [*SCRATCH, *PIECES, "dbscan"])
def test_an_interrupt_anywhere_leaves_no_memory_behind(found, op):
    """Nothing held, and the right bits right after it: memory_checks.py has seen to it."""
    stops = found["interrupted"][op]
    assert len(stops["errors"]) == len(stops["taken"]) >= 3
    assert set(stops["errors"]) == {f"RuntimeError: {op}: interrupted"}
    assert max(stops["taken"]) > 1000, "there was nothing to leave behind"


def test_no_stage_of_the_kernels_takes_more_than_estimated(found, monkeypatch):
    """But for the scratch memory of blocks, which is tiny in the emulator."""
    monkeypatch.setattr(sys.modules["dmic.pseudo_labels"], "GPU_SCRATCH_BYTES", 20_000)
    assert len(found["peaks"]) >= 3
    for peaks in found["peaks"]:
        estimate = estimate_memory(**peaks["size"], **peaks["settings"], device="cuda").stages
        assert peaks["stages"].keys() == estimate.keys()
        for stage, peak in peaks["stages"].items():
            assert estimate[stage] / 20 < peak <= estimate[stage], (stage, peaks["settings"])


def test_an_allocation_that_fails_for_another_reason_says_which(capfd):
    """An error of the GPU that is older than the call, for one."""
    if not TORCH_TELLS_WHY:
        pytest.skip("before torch 2.13 its stable interface does not say why")
    k1 = 2**31 - 1
    with pytest.raises(RuntimeError) as caught:
        torch.ops.dmic.knn_graph(torch.empty(k1, 0), k1)
    reason = f"Storage size calculation overflowed with sizes=[{k1}, {k1}]"
    assert str(caught.value) == f"cannot allocate int32 [{k1}, {k1}]: {reason}"
    assert capfd.readouterr().err == ""


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a lost candidate")

    monkeypatch.setattr(ops, "dbscan", fail)
    with pytest.raises(RuntimeError, match=r"^a lost candidate$"):
        pseudo_labels(np.random.default_rng(0).random((20, 3)), k1=5, k2=2)


def test_an_array_that_cannot_be_allocated_is_named():
    """Raised by the helper that every op allocates with, through an op whose result is as large as one asks for."""
    features = torch.zeros(1, 1).expand(2**24, 1)
    with pytest.raises((RuntimeError, MemoryError), match=r"out of memory for int32 \[16777216, 16777216\]"):
        torch.ops.dmic.knn_graph(features, 2**24)


def test_a_gpu_keeps_other_scratch_memory():
    cpu, gpu = (estimate_memory(10**6, 2048, k1=40, k2=32, device=device) for device in ("cpu", "cuda:1"))
    assert gpu.stages["knn_graph"] > 2 * 10**6 * 2048, "the float16 copy"
    assert cpu.stages.keys() == gpu.stages.keys()
    assert dmic.estimate_memory(10, 7, device="cuda").stages["knn_graph"] > 10 * 8 * 4
