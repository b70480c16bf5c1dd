"""That the runs of benchmarks/scale.py work; measures nothing."""

from __future__ import annotations

import json
import sys

from . import scale


def test_runs_of_several_ranks_agree_and_are_written(tmp_path, monkeypatch):
    results = tmp_path / "scale.json"
    arguments = ["--num-samples", "600", "--dim", "64", "--ranks", "1", "2", "--k1", "10", "--results", str(results)]
    for _ in range(2):  # the second takes the place of the first
        monkeypatch.setattr(sys, "argv", ["scale", *arguments])
        scale.main()
    one, two = json.loads(results.read_text())["runs"]
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["equal"]
    assert two["equal"]
    assert one["clusters"] > 10
    assert one["purity"] > 0.9
    assert len(two["peak_bytes"]) == 2
    assert min(two["peak_bytes"]) > 0
    libraries = 16_000_000  # on their first use, whatever the size
    assert all(max(row["peak_bytes"]) <= row["estimated_bytes"] + libraries for row in (one, two))
    assert list(two["stages"]) == list(one["stages"])
