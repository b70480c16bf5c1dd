"""That the runs of benchmarks/levels.py work; measures nothing."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from dmic import build_info, ops

from . import levels


def test_every_instruction_set_is_measured(tmp_path, monkeypatch):
    results, available = tmp_path / "levels.json", build_info()["simd_available"]
    threads = torch.get_num_threads()
    arguments = ["--quick", "--levels", *available, "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["levels", *arguments])
    levels.main()
    runs = json.loads(results.read_text())["runs"]
    assert [run["simd"] for run in runs] == list(available) * len(levels.CASES)
    assert (build_info()["simd_used"], torch.get_num_threads()) == (available[-1], threads)


def test_other_bits_are_an_error(monkeypatch):
    found = iter([(torch.zeros(3),), (torch.ones(3),)])
    monkeypatch.setattr(ops, "knn_graph", lambda *_: next(found))
    with pytest.raises(AssertionError, match=r"^generic: other bits than generic$"):
        levels.measure(300, 16, 5, 1, ["generic", "generic"], 1)
