"""The suite runs, and says so when an answer differs."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest
import torch

import dmic

from . import growth, suite


def test_every_method_is_measured_and_agrees(tmp_path, capsys):
    output = tmp_path / "results.json"
    assert suite.main(["--smoke", "--output", str(output)]) == 0
    document = json.loads(output.read_text())
    (result,) = document["results"]
    assert set(result["methods"]) == set(suite.METHODS)
    assert set(result["methods"][suite.OURS]["stages"]) == {*suite.STAGES, suite.ALL, suite.ROUNDING}
    answers = {
        (stage, name): measured["answer"]
        for name, method in result["methods"].items()
        for stage, measured in method.get("stages", {}).items()
    }
    assert not [answer for answer in answers.values() if answer and "WRONG" in answer]
    assert answers[suite.ALL, suite.DENSE] in ("equal", "equal, renumbered")
    assert answers[suite.SEARCH, "faiss-cpu"] == "recall 1.000000"
    assert answers[suite.JACCARD, "scipy sparse"] == "equal"
    assert answers[suite.WEIGHTS, suite.IN_PIECES] == "equal"
    assert not torch.backends.mkl.is_available() or answers[suite.DOTS, suite.SAMPLING] == "equal"
    table = capsys.readouterr().out
    assert all(name in table for name in suite.METHODS)
    assert all(result["floors_s"][stage] > 0 for stage in (*suite.STAGES, suite.ALL, *suite.PIECES, suite.ROUNDING))

    (tmp_path / "benchmarks.md").write_text(f"before\n{growth.BEGIN}\nold\n{growth.END}\nafter\n")
    growth.publish(document, result["case"], tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.startswith("before")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| published dense pipeline |" in page
    (cost,) = re.findall(r"^\| easy, .* \| 512 \| (.*) \| (.*) \| (.*) \| (.*) \| (.*)% \|$", page, re.MULTILINE)
    ours = result["methods"][suite.OURS]["stages"]
    after = [ours[stage]["seconds"]["median"] for stage in growth.PANELS[2:]]
    assert [float(micros) for micros in cost[:4]] == [round(seconds / 512 * 1e6, 1) for seconds in after]
    assert abs(float(cost[4]) / 100 - sum(after) / (sum(after) + ours[suite.SEARCH]["seconds"]["median"])) < 0.01
    assert (tmp_path / "growth.svg").stat().st_size > 10_000
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_a_part_joins_what_was_measured_and_another_commit_is_refused(tmp_path):
    output = tmp_path / "results.json"
    arguments = ["--smoke", "--output", str(output), "--methods"]
    assert suite.main([*arguments, suite.OURS]) == 0
    ours = json.loads(output.read_text())["results"][0]["methods"][suite.OURS]
    assert suite.main([*arguments, suite.OURS, "faiss-cpu"]) == 0
    document = json.loads(output.read_text())
    assert document["results"][0]["methods"][suite.OURS] == ours
    assert set(document["results"][0]["methods"]) == {suite.OURS, "faiss-cpu"}
    output.write_text(json.dumps(document | {"commit": "another"}))
    with pytest.raises(SystemExit, match="measured with another commit: another"):
        suite.main([*arguments, suite.DENSE])


@pytest.mark.parametrize("broken", ["cluster", "jaccard", "encode", "search"])
def test_an_answer_that_differs_is_wrong(broken, monkeypatch):
    right = getattr(suite.baselines, broken)

    def wrong(*arguments):
        result = right(*arguments)
        result[7] = result[8]
        result[8] = np.roll(result[8], 1)
        return result

    monkeypatch.setattr(suite.baselines, broken, wrong)
    case = suite.Case("smoke", dim=64)
    found = suite.measure(case, [suite.DENSE], 1, 300, [])
    stage = {"cluster": suite.CLUSTER, "jaccard": suite.JACCARD, "encode": suite.ENCODE, "search": suite.SEARCH}[broken]
    answer = found[suite.DENSE]["stages"][stage]["answer"]
    assert answer.startswith("recall 0.") if broken == "search" else answer.startswith("WRONG")


def test_other_labels_end_the_suite_with_status_1(monkeypatch):
    right = suite.baselines.cluster
    monkeypatch.setattr(suite.baselines, "cluster", lambda *a: np.where(np.arange(512) == 7, 99, right(*a)))
    assert suite.main(["--smoke", "--methods", "scikit-learn sparse"]) == 1


def test_pairs_at_the_radius_may_fall_on_either_side_and_others_may_not():
    pairs = {(0, 0): 0.0, (1, 1): 0.0, (0, 1): suite.EPS - 1e-7}
    dense = np.ones((2, 2), np.float32)
    for (i, j), distance in pairs.items():
        dense[i, j] = distance
    diagonal = dmic.Csr(np.array([0, 1, 2]), np.array([0, 1], np.int32), np.zeros(2, np.float32), 2)
    assert suite.same_pairs(dense, diagonal) == "equal"
    dense[0, 1] = suite.EPS / 2
    assert suite.same_pairs(dense, diagonal) == "WRONG: 1 rows differ"


def test_dot_products_may_differ_by_a_rounding_and_not_by_more():
    want = np.array([1.0, 0.0, 1e4])
    assert suite.same_dots(want.astype(np.float32) + np.float32([1e-6, 1e-6, 1e-2]), want) == "equal"
    assert suite.same_dots(want + np.array([1e-4, 0, 1]), want) == "WRONG: 2 dot products differ"


def test_what_needs_too_much_memory_or_time_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(suite.measuring, "available_bytes", lambda: 10**9)
    huge = suite.Case("sysu")
    assert suite.reason_to_skip(suite.DENSE, huge, [], 300) == "skipped: needs 14 GB, 1 GB are available"
    assert suite.reason_to_skip("faiss-cpu", huge, [], 300) is None
    smaller = {"case": dataclasses.asdict(suite.Case("market")), "methods": {"faiss-cpu": {"total_s": 50.0}}}
    reason = suite.reason_to_skip("faiss-cpu", huge, [smaller], 300)
    assert reason == "skipped: 349 s predicted from N = 12,936, the budget is 300 s"
    assert suite.reason_to_skip(suite.OURS, huge, [smaller | {"methods": {suite.OURS: {"total_s": 50.0}}}], 300) is None
    with_ours = smaller | {"methods": {"faiss-cpu": {"total_s": 30.0}, suite.OURS: {"total_s": 20.0}}}
    assert suite.reason_to_skip("faiss-cpu", huge, [with_ours], 300) == reason
    other_kind = smaller | {"case": smaller["case"] | {"dim": 512}}
    assert suite.reason_to_skip("faiss-cpu", huge, [other_kind], 300) is None
    assert suite.measure(huge, ["faiss-cpu"], 1, 300, [smaller]) == {"faiss-cpu": {"skipped": reason}}


def test_other_labels_in_another_repeat_are_wrong(monkeypatch):
    labels = iter(np.arange(2))
    right = suite.baselines.cluster
    monkeypatch.setattr(suite.baselines, "cluster", lambda *a: np.where(np.arange(512) == next(labels), 99, right(*a)))
    methods = suite.measure(suite.Case("smoke", dim=64), ["scikit-learn sparse"], 2, 300, [])
    assert methods["scikit-learn sparse"]["stages"][suite.CLUSTER]["answer"] == "WRONG: other labels in another repeat"
    assert suite.is_wrong({"methods": methods})


def test_a_curve_has_the_sizes_of_one_kind_in_order():
    def result(size: str, seconds: float, **other) -> dict:
        measured = {"seconds": {"median": seconds}, "peak_bytes": 2e6}
        methods = {suite.OURS: {"stages": {suite.SEARCH: measured}}, suite.DENSE: {"skipped": "too large"}}
        case = suite.Case(size, **other)
        return {"case": dataclasses.asdict(case), "num_samples": case.num_samples, "methods": methods}

    results = [result("sysu", 9.0), result("market", 3.0, dim=512), result("regdb", 1.0)]
    kind = dataclasses.asdict(suite.Case())
    assert growth.curves(results, kind, suite.SEARCH, "seconds") == {suite.OURS: ([4120, 34167], [1.0, 9.0])}
    assert growth.curves(results, kind, suite.SEARCH, "bytes") == {suite.OURS: ([4120, 34167], [2.0, 2.0])}


def test_written_results_leave_a_commit_clean_and_changed_code_does_not(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(suite.measuring, "ROOT", tmp_path)
    assert suite.measuring.commit() is None
    files = [tmp_path / name for name in ("benchmarks/results/suite.json", "docs/growth.svg", "dmic/ops.py")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    measured = git("rev-parse", "HEAD")
    for file in files[:2]:
        file.write_text("after")
        assert suite.measuring.commit() == measured
    git("commit", "-qam", "results")
    assert suite.measuring.commit() == measured
    files[2].write_text("after")
    assert suite.measuring.commit() == f"{measured}-dirty"
