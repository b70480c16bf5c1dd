"""One comparison for every op and every backend: equal bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dmic
from dmic import Csr
from dmic._native import set_simd_level

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(got: Any, want: Any, name: str = "result") -> None:
    """Tensors, numpy arrays, Csr and tuples of them: same shape, same dtype, same bits (so -0.0 is not 0.0)."""
    if isinstance(want, tuple | list):
        assert type(got) is type(want), f"{name}: {type(got).__name__} instead of {type(want).__name__}"
        assert len(got) == len(want), f"{name}: {len(got)} items instead of {len(want)}"
        for position, pair in enumerate(zip(got, want, strict=True)):
            assert_same_bits(*pair, f"{name}[{position}]")
    elif isinstance(want, Csr):
        assert isinstance(got, Csr), f"{name}: {type(got).__name__} instead of a Csr"
        assert got.shape == want.shape, f"{name}: shape {got.shape} instead of {want.shape}"
        for field in ("row_ptr", "col_idx", "values"):
            assert_same_bits(getattr(got, field), getattr(want, field), f"{name}.{field}")
    else:
        got, want = (torch.as_tensor(a).cpu() for a in (got, want))
        assert got.dtype == want.dtype, f"{name}: {got.dtype} instead of {want.dtype}"
        assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        bits = _BITS[want.element_size()]
        got_bits, want_bits = (a.contiguous().view(bits) for a in (got, want))
        if not torch.equal(got_bits, want_bits):
            wrong = (got_bits != want_bits).nonzero()
            at = tuple(wrong[0].tolist())
            raise AssertionError(
                f"{name}: {len(wrong)} of {want.numel()} differ, first at {at}: {got[at]} instead of {want[at]}"
            )


def assert_same_clusters(labels: np.ndarray, want: np.ndarray) -> None:
    """Equal labels up to renumbering of the clusters; noise (-1) stays noise."""
    pairs = set(zip(np.asarray(labels).tolist(), np.asarray(want).tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}), "the samples are grouped differently"
    assert all((a == -1) == (b == -1) for a, b in pairs), "noise is not the same"


def assert_reproducible(run: Callable[[], Any], inputs: Any, backend: Any) -> Any:
    """`run()` gives the same bits every time, for 1 and 2 threads, every instruction set of the CPU and every schedule
    of emulated kernels, and leaves its inputs as they were. Returns the result."""
    before = copy.deepcopy(inputs)
    want = run()
    try:
        for schedule in backend.schedules:
            backend.set_schedule(schedule)
            assert_same_bits(run(), want, f"schedule {schedule}")
    finally:
        if backend.schedules:
            backend.set_schedule(0)
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            assert_same_bits(run(), want, f"{num_threads} threads")
    finally:
        torch.set_num_threads(threads)
    if backend.name == "cpu":
        levels = dmic.build_info()["simd_available"]
        assert levels, "no instruction set is available"
        try:
            for level in levels:
                set_simd_level(level)
                assert_same_bits(run(), want, level)
        finally:
            set_simd_level(None)
    assert_same_bits(inputs, before, "inputs")
    return want


def assert_refused(run: Callable[[], Any], op: str, *parts: str) -> None:
    """`run()` raises a ValueError of one line that starts with the op's name and contains all of `parts`."""
    with pytest.raises(ValueError) as caught:
        run()
    message = str(caught.value)
    assert message.startswith(f"{op}: "), message
    assert "\n" not in message, message
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
