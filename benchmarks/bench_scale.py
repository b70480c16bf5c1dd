"""That the runs of benchmarks/scale.py work; measures nothing."""

from __future__ import annotations

import json
import sys

import pytest

from . import scale


def test_runs_of_several_ranks_agree_and_are_written(tmp_path, monkeypatch):
    results = tmp_path / "scale.json"
    arguments = ["--num-samples", "600", "--dim", "64", "--ranks", "1", "2", "--k1", "10", "--results", str(results)]
    for more in ((), ("--threads", "2"), ()):  # the last takes the place of the first
        monkeypatch.setattr(sys, "argv", ["scale", *arguments, *more])
        scale.main()
    _, _, one, two = json.loads(results.read_text())["runs"]
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert len({run["labels_sha256"] for run in json.loads(results.read_text())["runs"]}) == 1
    assert one["clusters"] > 10
    assert one["purity"] > 0.9
    assert len(two["peak_bytes"]) == 2
    assert min(two["peak_bytes"]) > 0
    libraries = 16_000_000  # on their first use, whatever the size
    assert all(max(row["peak_bytes"]) <= row["estimated_bytes"] + libraries for row in (one, two))
    assert list(two["stages"]) == list(one["stages"])


def test_other_labels_and_another_commit_are_noticed(tmp_path, monkeypatch):
    results = tmp_path / "scale.json"
    arguments = ["scale", "--num-samples", "300", "--dim", "64", "--k1", "10", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", arguments)
    scale.main()
    document = json.loads(results.read_text())
    document["runs"][0] |= {"threads": 9, "labels_sha256": "0"}
    results.write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="labels differ between runs of 300 rows"):
        scale.main()
    results.write_text(json.dumps(document | {"commit": "another"}))
    before = results.read_bytes()
    with pytest.raises(SystemExit, match="measured with another commit: another"):
        scale.main()
    assert results.read_bytes() == before
    monkeypatch.setattr(sys, "argv", [*arguments, "--fresh"])
    scale.main()
    assert len(json.loads(results.read_text())["runs"]) == 1
