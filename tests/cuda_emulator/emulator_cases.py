"""What kernels/<stem>.py is made of: the cases of a kernel file and its mutants."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # compare, generators
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # dmic

from compare import assert_same_bits

import dmic.ops  # noqa: F401  registers torch.ops.dmic


def places(values: tuple) -> list[int]:
    """Where the tensors among the values are, those without elements left out."""
    return [v.untyped_storage().data_ptr() for v in values if isinstance(v, torch.Tensor) and v.numel()]


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
            given, made = places(self.arguments), places(got if isinstance(got, tuple) else (got,))
            assert len(set(made)) == len(made), f"{self.name}: two results share memory"
            assert not set(given).intersection(made), f"{self.name}: a result is an argument"

    def num_elements(self) -> int:
        return sum(a.numel() for a in self.arguments if isinstance(a, torch.Tensor))


@dataclass(frozen=True)
class Mutant:
    """A kernel source with one mistake: `old`, which is in it once, becomes `new`. The cases must notice; results and
    errors are compared in every run, so `plain` is enough unless only a sanitizer can see it.

    file: what is changed, if not the kernel file itself: a header beside it that it includes.
    """

    name: str
    old: str
    new: str
    sanitizer: str = "plain"
    file: str | None = None
