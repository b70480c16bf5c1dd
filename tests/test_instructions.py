"""No CPU op needs more instructions than recorded; what is compared, and when."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import instructions

OPS = re.findall(r'"(\w+)\(Tensor', (Path(__file__).parents[1] / "csrc" / "registration.cpp").read_text())


def test_no_op_needs_more_instructions_than_recorded():
    record = instructions.recorded()
    if reason := instructions.reason_not_to_count():
        pytest.skip(reason)
    recorded, here = instructions.major(record["compiler"]), instructions.major(instructions.compiler())
    if recorded != here:
        pytest.skip(f"recorded with {recorded}, this is {here}, whose instructions are others")
    lines = instructions.grown(instructions.count(instructions.build()), record["instructions"])
    assert not lines, "; ".join(lines) + "; if they are worth it: python -m benchmarks.instructions --write"


def test_every_op_is_recorded():
    assert len(OPS) == 9
    assert set(OPS) <= set(instructions.recorded()["instructions"])


def test_growth_beyond_a_tenth_is_named():
    before = {"a": 1000, "b": 1000, "c": 1000}
    assert instructions.grown({"a": 1100, "b": 500, "c": 1000}, before) == []
    assert instructions.grown({"a": 1101, "b": 500, "d": 1}, before) == [
        "c: only recorded",
        "d: only counted",
        "a: 1,101 instructions, recorded 1,000, +10.1%",
    ]


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("c++ (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc 12"),
        ("g++ (GCC) 14.1.1 20240720", "gcc 14"),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)", "clang 18"),
    ],
)
def test_compilers_are_told_apart_by_their_major_version(line, want):
    assert instructions.major(line) == want


def test_a_machine_without_valgrind_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda *_, **__: None)
    assert instructions.reason_not_to_count() == "valgrind was not found; on Debian and Ubuntu: apt install valgrind"
