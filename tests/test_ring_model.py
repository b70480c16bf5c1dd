"""The model of a clustering over ranks: what can be worked by hand, and what was measured."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from benchmarks import ring_model, scale
from benchmarks.ring_costs import (
    DIM,
    RESULTS,
    STAGES,
    Cost,
    compute_seconds,
    core_rates,
    fit,
    gpu_rates,
    measured_in_blocks,
    measured_in_memory,
    memory,
    times,
    work,
)
from benchmarks.ring_replay import NOTICES, RECORDING, Link, Post, Stage, Together, program, replay, replay_in_step
from benchmarks.sizes import generate_gallery
from benchmarks.traffic import Case, sent_bytes
from dmic.block_memory import LIBRARY_BYTES, RANK_LIBRARY_BYTES, Search
from dmic.commands.cluster import parse_bytes

FACTOR = 1.5
FREE = dict.fromkeys(STAGES, Cost())
RATES = {
    "knn_graph": Cost(pair=3e-9, met=1e-6, row=2e-5),
    "k_reciprocal_encoding": Cost(met=1e-6, row=8e-6),
    "invariant_expansion": Cost(row=3e-6, sample=1e-6),
    "jaccard_distance": Cost(pair=1e-10, met=2e-6, row=6e-6),
    "dbscan": Cost(row=1e-6, sample=1e-7),
}


def within(found: float, want: float, factor: float = FACTOR) -> bool:
    return want / factor <= found <= want * factor


# The schedule


@pytest.mark.parametrize(
    "offsets", [(0, 90), (0, 60, 120), (0, 50, 50, 131), (0, 40, 80, 120, 160), (0, 7, 70, 71, 99, 140)]
)
@pytest.mark.parametrize("block_rows", [16, 100])
def test_a_program_sends_what_is_predicted(offsets, block_rows):
    case = Case(offsets, block_rows, dim=8, k1=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmic.blockwise.dist", RECORDING)
        for rank in range(case.ranks):
            sent, stage = dict.fromkeys(STAGES, 0.0), None
            for event in program(case, rank, RATES):
                if isinstance(event, Stage):
                    stage = event.name
                elif isinstance(event, Post):
                    sent[stage] += sum(nbytes for _, nbytes in event.to)
                elif isinstance(event, Together):
                    sent[stage] += event.nbytes
            assert sent == pytest.approx(sent_bytes(case, rank))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8])
def test_equal_ranks_that_wait_for_no_message_take_what_they_compute(ranks):
    case = Case.even(1680, ranks, 1000, dim=16)
    found = replay(case, RATES)
    assert found.seconds == pytest.approx(compute_seconds(case, 0, RATES))
    assert found.busy == pytest.approx([found.total] * ranks)


@pytest.mark.parametrize("ranks", [1, 3, 8, 9, 24])
@pytest.mark.parametrize("block_rows", [30, 1000])
@pytest.mark.parametrize("link", [Link(), Link(1e6, 1e-4), Link(1e8, 1e-3)])
def test_ranks_in_step_take_the_time_of_one(ranks, block_rows, link):
    case = Case.even(720 * 9, ranks, block_rows, dim=64)
    found, want = (replay_in_step(case, RATES, link), replay(case, RATES, lambda a, b: link))
    assert found.total == pytest.approx(want.total)
    assert found.seconds == pytest.approx(want.seconds)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("block_rows", [10, 1000])
def test_every_pair_is_compared_once(ranks, block_rows):
    case = Case.even(240, ranks, block_rows, dim=16)
    for rank in range(ranks):
        done = work(case, rank)
        assert done["knn_graph"].pairs == done["jaccard_distance"].pairs == 240 * 240 / ranks / 2
    own, blocks = 240 // ranks, -(-240 // ranks // block_rows)
    own_blocks = own * blocks  # each with itself, and two of them once for both
    assert work(case, 0)["k_reciprocal_encoding"].met == own_blocks + 2 * own * blocks * (ranks - 1)
    if ranks % 2:
        assert work(case, 0)["knn_graph"].met == own * blocks * ranks
    elif blocks == 1:  # twice half of another rank's rows meet half of the own
        assert work(case, 0)["knn_graph"].met == own * (ranks + 1)


# Worked by hand


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_everybody_waits_for_one_rank_of_half_the_speed(ranks):
    case = Case.even(1680, ranks, 1000, dim=16)
    even = replay(case, RATES)
    slow = replay(case, RATES, speeds=[1.0] * (ranks - 1) + [0.5])
    assert slow.total == pytest.approx(2 * even.total)
    assert slow.busy[0] == pytest.approx(even.busy[0])


def test_a_slow_link_is_waited_for_once_by_what_goes_over_it():
    n, dim, rate = 60, 16, 1000.0
    case = Case.even(3 * n, 3, 1000, dim, k1=5)
    found = replay(case, FREE, lambda a, b: Link(rate) if (a, b) == (0, 1) else Link())
    features, lists = 4 * (dim + 1) * n, 2 * 4 * 5 * n  # rank 0 to 1, and the lists around the ring
    assert found.seconds["knn_graph"] == pytest.approx((features + lists + 2 * 8) / rate)
    assert found.seconds["k_reciprocal_encoding"] == pytest.approx(4 * dim * n / rate)
    assert found.busy == [0, 0, 0]


def test_a_message_leaves_when_the_later_side_is_ready():
    n, dim = 60, 16
    rates = {**FREE, "k_reciprocal_encoding": Cost(row=1 / n)}  # before anything is sent
    slow = Link(4 * dim * n / 4)  # four seconds
    for speeds in ([0.5, 1, 1], [1, 0.5, 1]):
        found = replay(Case.even(3 * n, 3, 1000, dim), rates, lambda a, b: slow if (a, b) == (0, 1) else Link(), speeds)
        assert found.seconds["k_reciprocal_encoding"] == pytest.approx(2 + 4)


def test_every_message_waits_for_the_latency():
    latency, case = 0.5, Case.even(90, 3, 1000, dim=16)
    found = replay(case, FREE, lambda a, b: Link(latency=latency))
    one = (1 + NOTICES) * latency
    assert found.seconds["k_reciprocal_encoding"] == 2 * one
    assert found.seconds["knn_graph"] == (1 + 2 + 2 * 2) * one  # features; lengths and lists; two gathers of two steps
    assert found.seconds["dbscan"] == (case.rounds * 4 + 4 + 2 * 2) * one


@pytest.mark.parametrize("transfer", [0.25, 4.0])
def test_a_block_travels_while_the_one_before_is_compared(transfer):
    """Three ranks with two blocks each: the first is waited for, the second only where it takes longer."""
    n, dim = 32, 4
    case = Case.even(3 * n, 3, n // 2, dim)
    link = Link(4 * dim * (n // 2) / transfer)
    met = 2 * n  # rows of a block that meets the two of a rank
    rates = {**FREE, "k_reciprocal_encoding": Cost(met=1 / met)}
    found = replay(case, rates, lambda a, b: link)
    waits = transfer + 3 * max(1, transfer) + 1  # across the two turns, too
    assert found.seconds["k_reciprocal_encoding"] == pytest.approx(1 + waits)  # own blocks meet each other once


# What was measured


def test_runs_over_ranks_are_predicted_from_the_other_runs():
    document = json.loads((RESULTS / "scale.json").read_text())
    runs = measured_in_blocks(document)
    assert len(runs) > 4
    rows = [row for row in document["runs"] if row["simd"] is None and row["dim"] == DIM]
    for number, (run, row) in enumerate(zip(runs, rows, strict=True)):
        rates = fit(runs[:number] + runs[number + 1 :])
        rates = {stage: times(cost, 1 / run.cores) for stage, cost in rates.items()}
        found = replay(run.case, rates, lambda a, b: Link(1e9, 1e-4))
        name = f"{row['num_samples']} rows, {row['ranks']} ranks"
        assert within(found.total, sum(run.stages.values())), name
        assert within(found.seconds["knn_graph"], run.stages["knn_graph"]), name
        assert within(max(memory(run.case).values()), max(row["peak_bytes"])), name
        for stage in STAGES:
            assert within(found.seconds[stage], run.stages[stage], 2.5), (name, stage)


def test_runs_without_bfloat16_are_predicted_from_each_other():
    runs = measured_in_blocks(simd="avx512")
    assert len(runs) >= 2
    for number, run in enumerate(runs):
        rates = core_rates(run.case, others=runs[:number] + runs[number + 1 :])
        found = replay(run.case, {stage: times(cost, 1 / run.cores) for stage, cost in rates.items()})
        assert within(found.total, sum(run.stages.values()))
        assert within(found.seconds["knn_graph"], run.stages["knn_graph"])
        assert run.stages["knn_graph"] > 1.5 * compute_seconds(run.case, 0, core_rates(run.case))["knn_graph"]


def test_runs_of_wide_features_are_predicted_from_narrow_ones_and_one_process():
    runs = measured_in_blocks(dim=2048)
    assert {run.case.ranks for run in runs} == {1, 2}
    for run in runs:
        rates = {stage: times(cost, 1 / run.cores) for stage, cost in core_rates(run.case).items()}
        found = replay(run.case, rates, lambda a, b: Link(1e9, 1e-4))
        assert within(found.total, sum(run.stages.values()))


@pytest.mark.parametrize("name", scale.TABLES)
def test_what_runs_were_told_before_the_work_was_right(name):
    """By the formulas as they are: `about` within a fifth, and no more than `at most` and libraries."""
    rows = json.loads((RESULTS / name).read_text())["runs"]
    if name == "scale.json":  # when ranks read an only block anew for whatever it met; ranks.json has three and four
        rows = [row for row in rows if row["ranks"] < 3]
    for row in rows:
        n, ranks, dim, threads = (row[name] for name in ("num_samples", "ranks", "dim", "threads"))
        most, about = scale.estimate(n, ranks, dim, Search(row["k1"], row["k2"], 0.6, 4), row["max_memory"], threads)
        assert (most, about) == (row["estimated_bytes"], row["expected_bytes"])
        assert max(row["peak_bytes"]) == pytest.approx(about, rel=0.2)
        assert max(row["peak_bytes"]) <= 1.01 * most + (LIBRARY_BYTES if ranks == 1 else 2 * RANK_LIBRARY_BYTES)
        assert most <= row["max_memory"]


def test_labels_of_all_runs_are_equal():
    runs = [row for name in scale.TABLES for row in json.loads((RESULTS / name).read_text())["runs"]]
    for row in runs:
        assert set(scale.others(row, runs)) <= {row["labels_sha256"]}, f"{row['num_samples']} rows"
    assert {row["num_samples"] for row in runs if not scale.others(row, runs)} <= {500_000}


@pytest.mark.parametrize(("n", "dim", "limit"), [(10_000, 256, "100MB"), (20_000, 64, "65MB")])
def test_what_is_stated_before_the_work_is_right_within_a_fifth(tmp_path, n, dim, limit):
    """In one block and in several; larger galleries are in the results."""
    made = generate_gallery(n, dim, images_per_identity=3)
    for name in scale.FILES:
        np.save(tmp_path / f"{name}.npy", getattr(made, name))
    max_memory = parse_bytes(limit)
    _, about = scale.estimate(n, 1, dim, Search(30, 6, 0.6, 4), max_memory, threads=1)
    measured, _ = scale.run(tmp_path, 1, {"k1": 30, "k2": 6, "max_memory": max_memory, "threads": 1, "simd": None})
    assert max(measured["peak_bytes"]) == pytest.approx(about, rel=0.2)
    assert max(measured["peak_bytes"]) <= max_memory + LIBRARY_BYTES


def test_the_formula_of_the_documentation_predicts_runs():
    terms = re.search(r"`seconds = (\S+) n N / 2 \+ (\S+) n N / b \+ (\S+) n \+ (\S+) N`", ring_model.PAGE.read_text())
    pair, met, row, sample = (float(term) for term in terms.groups())
    for run in measured_in_blocks():
        n, own = run.case.num_samples, max(run.case.rows())
        block = -(-own // -(-own // run.case.block_rows))
        found = pair * own * n / 2 + met * own * n / block + row * own + sample * n
        assert within(found / run.cores, sum(run.stages.values()))


def test_what_a_slow_network_adds_is_predicted():
    """Of ranks in namespaces: bytes of every stage, and the time by which it is longer."""
    runs = json.loads((RESULTS / "network.json").read_text())["runs"]
    slow = [run for run in runs if run["link"]]
    assert {run["ranks"] for run in slow} == {2, 4}
    for run in slow:
        assert run["equal"]
        for rank in (rank for ranks in run["bytes"].values() for rank in ranks):
            assert rank["predicted"] == pytest.approx(rank["counted"], rel=0.1)
            assert rank["counted"] <= rank["wire"] <= 1.05 * rank["counted"]
        means = {name: run[name] for name in ("k1", "k2", "encoding_length", "expanded_length", "num_pairs", "rounds")}
        case = Case.even(run["num_samples"], run["ranks"], run["block_rows"], run["dim"], **means)
        link = Link(run["link"]["bits_per_second"] / 8, run["link"]["delay"])
        rates = {stage: times(cost, run["ranks"] / 2) for stage, cost in core_rates(case).items()}  # two cores
        found, fast = replay(case, rates, lambda a, b, link=link: link), replay(case, rates)
        (other,) = (one for one in runs if one["ranks"] == run["ranks"] and one["network"] == "not shaped")
        for stage in STAGES:
            longer = run["stages"][stage] - other["stages"][stage]
            assert within(found.seconds[stage] - fast.seconds[stage], longer), stage


def test_wide_features_and_long_lists_are_predicted():
    runs = measured_in_memory()
    assert {run.case.dim for run in runs} == {2048}
    for run in runs:
        found = sum(compute_seconds(run.case, 0, core_rates(run.case)).values()) / run.cores
        assert within(found, sum(run.stages.values()))


def test_a_gpu_takes_the_time_of_its_compare_kernel_where_pairs_are_many():
    """As docs/kernels.md predicts it for one GPU: 126,441 rows."""
    from benchmarks import costs

    case = Case.even(126_441, 1, 126_441, 2048, k1=40, k2=32, encoding_length=40, expanded_length=150, num_pairs=40)
    found = compute_seconds(case, 0, gpu_rates(case))
    for stage in STAGES[:4]:
        assert within(found[stage], costs.expected_seconds(stage, costs.Size(126_441, 2048))), stage


# The command


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ring_model", *arguments])
    ring_model.main()
    return capsys.readouterr().out


def test_the_command_answers_for_any_gallery(monkeypatch, capsys):
    text = run(monkeypatch, capsys, "--num-samples", "1e6", "--dim", "128", "--ranks", "4")
    assert "1,000,000 rows of 128 over 4 ranks" in text
    assert "no GPU has confirmed" in text
    text = run(monkeypatch, capsys, "--num-samples", "1e5", "--ranks", "2", "--device", "cpu", "--slow-rank", "1:0.5")
    assert "what is slow makes it 1.9" in text or "what is slow makes it 2.0" in text
    assert "no GPU" not in text


@pytest.mark.parametrize("slow", [("--slow-rank", "2:0.5"), ("--slow-link", "0-2:1"), ("--slow-rank", "1:0")])
def test_a_rank_that_is_not_there_is_named(monkeypatch, capsys, slow):
    with pytest.raises(SystemExit, match=r"'.*': ranks are 0 to 1, and a speed is more than 0"):
        run(monkeypatch, capsys, "--num-samples", "1e5", "--ranks", "2", *slow)


def test_the_page_of_the_benchmarks_is_that_of_the_results():
    pytest.importorskip("matplotlib")
    from benchmarks import growth

    suite = json.loads((RESULTS / "suite.json").read_text())
    assert growth.block(suite) in (growth.DOCS / "benchmarks.md").read_text()


def test_the_tables_of_the_documentation_are_those_of_the_commands(monkeypatch):
    page = ring_model.PAGE.read_text()
    assert scale.written(page) == page
    monkeypatch.setattr(ring_model, "RANKS", (8, 512))  # 64 ranks take seconds
    text = ring_model.page_table(ring_model.parser().parse_args([]))
    assert len(text.splitlines()) == 2 + 3 * 2
    assert all(line in page for line in text.splitlines())
