"""The backends that every op test runs over, with one comparison: equal bits (`compare.assert_same_bits`).

`cpu` is always there, `cuda` where there is a GPU, and `emulated` always: the CUDA kernels, executed from their own
source on the CPU by tests/cuda_emulator.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

import dmic
import dmic.ops
from dmic import _native

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda_emulator"))

import kernel_checks

# The same examples in every run: a change that breaks nothing must not fail, and a failure must come back.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


class Backend:
    """The public ops on one device: arrays go there, and results come back as tensors on the CPU."""

    schedules: tuple[int, ...] = ()

    def __init__(self, name: str, device: str):
        self.name = name
        self.device = device

    def __repr__(self) -> str:
        return self.name

    @property
    def raw(self) -> Any:
        """The registered ops, without the public wrappers."""
        return torch.ops.dmic

    def __getattr__(self, op: str) -> Callable:
        return partial(self._run, getattr(dmic.ops, op))

    def _run(self, op: Callable, *args, **kwargs) -> Any:
        result = op(*(self.put(a) for a in args), **{name: self.put(a) for name, a in kwargs.items()})
        return tuple(a.cpu() for a in result) if isinstance(result, tuple) else result.to("cpu")

    def size(self, of_all: Any, emulated: Any) -> Any:
        """A size, or several: one that asks the same in about a second where kernels are emulated."""
        return of_all

    def put(self, array: Any) -> Any:
        """Arrays and Csr as tensors on the device; anything else as it is."""
        if isinstance(array, dmic.Csr):
            return array.to(self.device)
        if hasattr(array, "__array__") and not isinstance(array, torch.Tensor):
            array = torch.as_tensor(array)
        return array.to(self.device) if isinstance(array, torch.Tensor) else array


# Operations of the largest inputs that the emulator takes in about a second; tests give it none that are larger.
EMULATED_WORK = {
    "knn_graph": (4e6, lambda features, k1, **_: len(features) ** 2 * (np.shape(features)[1] + 64)),
    "knn_between": (
        4e6,
        lambda features, split, *_, **__: 2 * split * (len(features) - split) * (np.shape(features)[1] + 64),
    ),
    "k_reciprocal_encoding": (
        4e6,
        lambda features, idx, *_: math.prod(np.shape(idx)) * sum(np.shape(features)[1:], idx.shape[1]),
    ),
    "k_reciprocal_sets": (4e6, lambda idx, *_: math.prod(np.shape(idx)) * idx.shape[1]),
    "sampled_dots": (4e6, lambda rows, others, row_ptr, col_idx, **_: len(col_idx) * (16 + np.shape(rows)[1])),
    "k_reciprocal_weights": (1e5, lambda row_ptr, col_idx, *_, **__: len(col_idx)),
    "invariant_expansion": (4e5, lambda encoding, idx, k2, *_, **__: encoding.nnz * k2),
    "jaccard_distance": (1e6, lambda encoding, *_, **__: encoding.nnz**2 / max(1, encoding.num_rows)),
    "dbscan": (2e5, lambda distance, *_: distance.nnz),
    "round_features": (2e6, lambda features, *_: math.prod(np.shape(features))),
}


class Emulated(Backend):
    """The CUDA kernels without a GPU: tensors on the CPU, the public wrappers, another library below them."""

    schedules = kernel_checks.SCHEDULES

    @property
    def raw(self) -> Any:
        return kernel_checks.plain_emulator().ops

    def size(self, of_all: Any, emulated: Any) -> Any:
        return emulated

    def set_schedule(self, schedule: int) -> None:
        kernel_checks.plain_emulator().configure(schedule, workers=1 + schedule % 2)

    def _run(self, op: Callable, *args, **kwargs) -> Any:
        limit, work_of = EMULATED_WORK[op.__name__]
        try:
            work = work_of(*args, **kwargs)
        except (AttributeError, IndexError, TypeError, ValueError):
            work = 0  # arguments that the op is to refuse
        if work > limit:
            pytest.fail(f"too large for the emulator, see Backend.size: {op.__name__} of {work:.1g} operations")
        return super()._run(op, *args, **kwargs)


@pytest.fixture(autouse=True)
def public_functions_run_on_the_backend(request, monkeypatch):
    """Also those that a test calls itself, without going through `backend`."""
    backend = request.getfixturevalue("backend") if "backend" in request.fixturenames else None
    if isinstance(backend, Emulated):
        monkeypatch.setattr(_native, "OPS", backend.raw)


def pytest_generate_tests(metafunc):
    """A test that asks for `backend` runs on every device that is here; `not_emulated(reason)` excepts one."""
    if "backend" not in metafunc.fixturenames:
        return
    backends = [Backend("cpu", "cpu")]
    if not metafunc.definition.get_closest_marker("not_emulated"):
        backends.append(Emulated("emulated", "cpu"))
    if torch.cuda.is_available():
        backends.append(Backend("cuda", "cuda"))
    metafunc.parametrize("backend", backends, ids=repr)


@pytest.fixture
def dynamic_shapes():
    """Lets torch.compile trace ops whose output sizes depend on values."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch._dynamo.reset()
        yield
