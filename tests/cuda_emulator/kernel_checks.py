"""What an emulated kernel must do, as cases with the result of the CPU op: the same bits, or the same error.

As a program, `kernel_checks.py REPORT LIBRARY...` checks each library in a child process of its own, which a sanitizer
or a wild pointer may stop, and writes {library: what was found, or null} as JSON. test_kernels.py starts it with a
sanitizer preloaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import emulator_build as build
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # compare
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # dmic

from compare import assert_same_bits

import dmic.ops  # noqa: F401  registers torch.ops.dmic

SCHEDULES = (0, 1, 2, 3)
MAX_HALF = 65504.0
CHILD_SECONDS = 60
UNDER_THREAD_SANITIZER = "libtsan" in os.environ.get("LD_PRELOAD", "")


@dataclass
class Case:
    """Arguments of an op, and what the CPU makes of them: tensors, or the text of a ValueError."""

    name: str
    op: str
    arguments: tuple
    expected: tuple[torch.Tensor, ...] | str = field(init=False)

    def __post_init__(self):
        self.expected = self.run(torch.ops.dmic)

    def run(self, ops) -> tuple[torch.Tensor, ...] | str:
        try:
            return getattr(ops, self.op)(*self.arguments)
        except ValueError as error:
            return str(error)

    def check(self, ops) -> None:
        got = self.run(ops)
        if isinstance(got, str) or isinstance(self.expected, str):
            assert got == self.expected, f"{self.name}: {got!r} instead of {self.expected!r}"
        else:
            assert_same_bits(got, self.expected, self.name)


def mixed(rows: int, d: int, exponent: int = 0, seed: int = 0) -> torch.Tensor:
    """Magnitudes from below the float16 denormals to the largest float16, for features scaled by 2**exponent."""
    random = np.random.default_rng([rows, d, seed])
    values = np.ldexp(random.uniform(-1, 1, (rows, d)), random.integers(-32, 16, (rows, d)))
    values = np.where(random.random((rows, d)) < 0.05, random.choice([0.0, -0.0, MAX_HALF, -MAX_HALF]), values)
    return torch.from_numpy(np.ldexp(values, -exponent).astype(np.float32))


def every_half_and_tie() -> torch.Tensor:
    """Every finite float16, the middle between each and the next, and the float32 numbers next to the middle."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate(
        [halves, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))]
    )
    signs = np.where(np.arange(values.size) % 2, np.float32(-1), np.float32(1))
    d = 515
    return torch.from_numpy(np.resize(values * signs, (values.size // d + 1, d)))


def norm_above(sum_sq: float) -> np.float32:
    """As in csrc/canonical/half.h."""
    bound = np.sqrt(sum_sq) * (1 + 2.0**-40)
    rounded = np.float32(bound)
    return np.nextafter(rounded, np.float32(np.inf)) if rounded < bound else rounded


def order_sensitive(rows: int, d: int) -> torch.Tensor:
    """Rows whose residual norm changes with the order in which the squares are added.

    Numbers below 2**-25 round to zero and are their own residual. The first three columns of one partial sum add up to
    the largest float64 whose norm is a given float32; a few more squares of 0.3 units in its last place are lost one by
    one, but not once two of them have met.
    """
    random = np.random.default_rng(7)
    features = np.zeros((rows, d), np.float32)
    for row in features:
        target = random.uniform(1, 2) * 2.0**-60
        limit = norm_above(target)
        low, high = target, target * (1 + 2.0**-20)  # bisection: the largest sum with this norm
        while np.nextafter(low, np.inf) < high:
            middle = (low + high) / 2
            low, high = (middle, high) if norm_above(middle) == limit else (low, middle)
        lane = random.integers(128)
        rest = low
        for k in range(lane, lane + 3 * 128, 128):
            row[k] = np.nextafter(np.float32(np.sqrt(rest)), np.float32(0))
            rest -= float(row[k]) ** 2
        others = random.permutation(np.setdiff1d(np.arange(128), [lane]))[: random.integers(2, 8)]
        row[others] = np.float32(np.sqrt(0.3 * np.spacing(low)))
    return torch.from_numpy(features)


def rounding(name: str, features: torch.Tensor, exponent: int) -> Case:
    return Case(f"round_features, {name}", "round_features", (features, exponent))


def good_cases() -> Iterator[Case]:
    for rows in (1, 7, 8, 9, 129):
        for d in (1, 3, 4, 31, 127, 128, 129, 2048 + 32):
            yield rounding(f"{rows} x {d}", mixed(rows, d), 0)
    yield rounding("no rows", torch.zeros(0, 7), 3)
    yield rounding("no columns", torch.zeros(5, 0), 3)
    for exponent in (-100, -14, 9, 100, 127):
        yield rounding(f"exponent {exponent}", mixed(9, 33, exponent), exponent)
    limits = torch.finfo(torch.float32)
    extreme = torch.tensor([[limits.max, limits.min, limits.tiny, -limits.smallest_normal, 1e-45, -1e-45, 0.0, -0.0]])
    yield rounding("the range of float32", extreme, -126)
    yield rounding("every half and every tie", every_half_and_tie(), 0)
    yield rounding("the order of additions", order_sensitive(64, 515), 0)
    flat = mixed(1, 8 * 9 * 4 + 4).flatten()
    for offset in (1, 2, 3):  # rows of a multiple of 16 bytes that do not start at one
        yield rounding(f"starting at float {offset}", flat[offset : offset + 8 * 9 * 4].view(9, 32), 0)
    yield rounding("transposed", mixed(40, 9).T, 0)
    yield rounding("one column again and again", mixed(9, 1).expand(-1, 7), 0)


def bad_cases() -> Iterator[Case]:
    beyond = float(np.nextafter(np.float32(MAX_HALF), np.float32(1e9)))
    rows, d = 129, 131
    for value in (float("nan"), float("inf"), float("-inf"), beyond, -1e30):
        for row, column in ((0, 0), (8, 130), (128, 64), (77, 3)):
            features = mixed(rows, d)
            features[row, column] = value
            yield rounding(f"{value} at {row}, {column}", features, 0)
    features = mixed(rows, d)
    features[100, 5] = float("nan")
    features[41, 130] = 7e4
    features[41, 129] = -1e5
    features[42, 0] = float("inf")
    yield rounding("several bad rows", features, 0)
    yield rounding("every row is bad", torch.full((rows, 5), 40000.0), 1)
    yield rounding("exponent too large", mixed(2, 2), 128)
    yield rounding("exponent too small", mixed(2, 2), -127)
    yield rounding("one axis", torch.zeros(4), 0)
    yield rounding("float64", torch.zeros(4, 4, dtype=torch.float64), 0)


def all_cases() -> list[Case]:
    good, bad = list(good_cases()), list(bad_cases())
    for case in good:
        assert not isinstance(case.expected, str), f"{case.name}: {case.expected}"
    for case in bad:
        assert isinstance(case.expected, str), f"{case.name} raised nothing"
    return good + bad


class Emulator:
    """An op library that is built for the emulator; one per process, since it registers torch.ops.dmic_emu."""

    def __init__(self, library: str | Path):
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.dmic_emulator_configure.argtypes = [ctypes.c_long, ctypes.c_int]
        self.ops = torch.ops.dmic_emu

    def configure(self, schedule: int = 0, workers: int = 1) -> None:
        self._library.dmic_emulator_configure(schedule, workers)


@cache
def plain_emulator() -> Emulator:
    """The one of this process, without sanitizers; built first."""
    build.build([build.library()])
    return Emulator(build.library())


def check_library(library: str, cases: list[Case]) -> None:
    emulator = Emulator(library)
    for schedule in SCHEDULES:
        emulator.configure(schedule, workers=2)
        for case in cases:
            case.check(emulator.ops)


def check_in_child(library: str, cases: list[Case]) -> str | None:
    """What is wrong with a library, or None. The child leaves with a message and a status, or is killed."""
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            signal.alarm(CHILD_SECONDS)
            status = 1
            try:
                check_library(library, cases)
                status = 0
            except Exception as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        text = log.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        return f"{signal.Signals(os.WTERMSIG(status)).name} {text}"
    if os.WEXITSTATUS(status) or "Sanitizer" in text:
        return f"exit status {os.WEXITSTATUS(status)}: {text}"
    return None


def main() -> None:
    report, *libraries = sys.argv[1:]
    torch.set_num_threads(1)  # a forked child has no pool
    cases = all_cases()
    if UNDER_THREAD_SANITIZER:  # which is slow, and does not care for values
        cases = [case for case in cases if case.arguments[0].numel() < 5_000]
    Path(report).write_text(json.dumps({library: check_in_child(library, cases) for library in libraries}))


if __name__ == "__main__":
    main()
