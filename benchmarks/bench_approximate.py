"""That the runs of benchmarks/approximate.py work; measures nothing."""

from __future__ import annotations

import json
import sys

import numpy as np

from . import approximate


def test_a_sample_leads_its_list_once():
    found = np.array([[0, 4, 5], [3, 2, 1], [3, 2, 0], [7, 8, 9]])
    np.testing.assert_array_equal(approximate.self_first(found), [[0, 4, 5], [1, 3, 2], [2, 3, 0], [3, 7, 8]])


def test_short_lists_are_searched_again_until_they_are_full():
    asked = []

    def search(rows, effort):
        asked.append((len(rows), effort))
        found = np.tile(np.array([5, 6, 7]), (len(rows), 1))
        found[rows[:, 0] >= effort, 2] = -1
        return found

    lists, again = approximate.full_lists(np.arange(10)[:, None], search, 2)
    assert asked == [(10, 2), (8, 4), (6, 8), (2, 16)]
    assert again == 8
    assert (lists >= 0).all()


def test_agreement_counts_outliers_one_by_one():
    want = np.array([0, 0, 0, 1, 1, -1])
    assert approximate.compare(want, want) == {"agreement": 1.0, "differing_samples": 0}
    moved = approximate.compare(np.array([5, 5, -1, 2, 2, -1]), want)
    assert moved["differing_samples"] == 1
    assert 0 < moved["agreement"] < 1


def test_more_effort_finds_more(tmp_path, monkeypatch):
    results = tmp_path / "approximate.json"
    arguments = ["--num-samples", "2000", "--dim", "32", "--difficulties", "easy", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["approximate", *arguments])
    approximate.main()
    exact, *runs = json.loads(results.read_text())["runs"]
    assert exact["recall"] == exact["agreement"] == 1
    for name in {run["source"] for run in runs}:
        recalls = [run["recall"] for run in runs if run["source"] == name]
        assert recalls == sorted(recalls)
        assert recalls[-1] > 0.95
