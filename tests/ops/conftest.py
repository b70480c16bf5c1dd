"""The backends that every op test runs over, with one comparison: equal bits (`compare.assert_same_bits`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import pytest
import torch

import dmic
import dmic.ops

# The same examples in every run: a change that breaks nothing must not fail, and a failure must come back.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


class Backend:
    """The public ops on one device: arrays go there, and results come back as tensors on the CPU."""

    def __init__(self, name: str, device: str):
        self.name = name
        self.device = device

    def __repr__(self) -> str:
        return self.name

    def __getattr__(self, op: str) -> Callable:
        return partial(self._run, getattr(dmic.ops, op))

    def _run(self, op: Callable, *args, **kwargs) -> Any:
        result = op(*(self.put(a) for a in args), **{name: self.put(a) for name, a in kwargs.items()})
        return tuple(a.cpu() for a in result) if isinstance(result, tuple) else result.to("cpu")

    def put(self, array: Any) -> Any:
        """Arrays and Csr as tensors on the device; anything else as it is."""
        if isinstance(array, dmic.Csr):
            return array.to(self.device)
        if hasattr(array, "__array__") and not isinstance(array, torch.Tensor):
            array = torch.as_tensor(array)
        return array.to(self.device) if isinstance(array, torch.Tensor) else array


DEVICES = {"cpu": "CPU", "cuda": "CUDA"}  # device and its dispatch key


def pytest_generate_tests(metafunc):
    """A test that asks for `backend` runs on every device that is here and has a kernel for the op of its file."""
    if "backend" not in metafunc.fixturenames:
        return
    op = metafunc.module.__name__.removeprefix("test_")
    backends = [
        Backend(device, device)
        for device, key in DEVICES.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"dmic::{op}", key)
        and (device == "cpu" or torch.cuda.is_available())
    ]
    assert backends, f"no backend has a kernel for {op}"
    metafunc.parametrize("backend", backends, ids=repr)


@pytest.fixture
def dynamic_shapes():
    """Lets torch.compile trace ops whose output sizes depend on values."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch._dynamo.reset()
        yield
