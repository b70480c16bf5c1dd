"""That the runs of benchmarks/scale.py work; measures nothing."""

from __future__ import annotations

import json
import sys

import numpy as np
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


def test_runs_that_are_repeated_take_turns(tmp_path, monkeypatch, capsys):
    results, order = tmp_path / "scale.json", []
    seconds = iter([4.0, 2.0, 9.0, 3.0, 5.0, 2.0])

    def run(folder, ranks, settings):
        order.append(ranks)
        return {"seconds": 10.0, "stages": {"knn_graph": next(seconds)}, "peak_bytes": [7, len(order)]}, np.zeros(
            300, np.int64
        )

    monkeypatch.setattr(scale, "run", run)
    arguments = ["--num-samples", "300", "--ranks", "1", "2", "--repeats", "3", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["scale", *arguments])
    scale.main()
    assert order == [1, 2, 1, 2, 1, 2]
    one, two = json.loads(results.read_text())["runs"]
    assert (one["stages"]["knn_graph"], two["stages"]["knn_graph"]) == (5.0, 2.0)
    assert (one["search_seconds"], two["search_seconds"]) == ([4.0, 9.0, 5.0], [2.0, 3.0, 2.0])
    assert two["peak_bytes"] == [7, 6]
    assert "2 ranks search 2.50 times as fast as one" in capsys.readouterr().out
    runs = [{"seconds": 1.0, "stages": {}, "peak_bytes": [1], "labels_sha256": digest} for digest in "ab"]
    with pytest.raises(SystemExit, match=r"labels differ between runs of one number of ranks: \['a', 'b'\]"):
        scale.median_of(runs)
