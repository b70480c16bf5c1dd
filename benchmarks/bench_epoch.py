"""That benchmarks/epoch.py works and both ways agree; measures nothing."""

from __future__ import annotations

import json
import sys

from . import epoch


def test_both_ways_agree_and_are_written(tmp_path, monkeypatch):
    results = tmp_path / "epoch.json"
    arguments = ["--num-visible", "200", "--num-infrared", "90", "--dim", "64", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["epoch", *arguments, "--results", str(results)])
    epoch.main()
    (run,) = json.loads(results.read_text())["runs"]
    assert run["equal"]
    assert all(clusters > 1 for clusters in run["clusters"].values())
    assert run["ratio"]["wall"] > 0
