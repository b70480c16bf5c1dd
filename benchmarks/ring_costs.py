"""What a rank of a clustering computes and holds, in closed formulas, and what that takes a CPU core or a GPU.

Seconds of a CPU core are fitted to committed measurements (scale.json, suite.json). Those of a GPU are what
`benchmarks.costs` predicts for an H100: no GPU has confirmed them. What a rank sends is in `benchmarks.traffic`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmic import directions
from dmic.block_memory import Lengths, Search, block_memory, choose_block_rows, joined_rows
from dmic.blockwise import Ring, Rows

from . import costs
from .traffic import STAGES, Case

DIM = 256  # of the runs that costs are fitted to
EPS, MIN_SAMPLES = 0.6, 4  # of the runs; without effect on what is computed but through the means of a case
RESULTS = Path(__file__).parent / "results"


# What a rank computes


@dataclass(frozen=True)
class Cost:
    """Seconds that a stage takes a rank for each of what it does."""

    pair: float = 0.0  # of samples compared
    met: float = 0.0  # row of either side of two blocks that are compared, or of a block with itself
    row: float = 0.0  # of its own
    sample: float = 0.0  # of the gallery


Rates = dict[str, Cost]


class Work(NamedTuple):
    """How often a rank does what a Cost is for."""

    pairs: float
    met: float
    rows: float
    samples: float

    def seconds(self, cost: Cost) -> float:
        return self.pairs * cost.pair + self.met * cost.met + self.rows * cost.row + self.samples * cost.sample


def inside(ring: Ring, rows: Rows) -> tuple[float, float]:
    """Pairs and met rows where rows are compared among themselves."""
    blocks = ring.blocks(rows)
    return len(rows) ** 2 / 2, len(rows) + sum(len(x) + len(y) for t, x in enumerate(blocks) for y in blocks[:t])


def between(ring: Ring, rows: Rows, block: Rows) -> tuple[float, float]:
    """The same where all blocks of some rows meet a block."""
    return len(rows) * len(block), len(rows) + len(ring.blocks(rows)) * len(block)


def joined_inside(ring: Ring, rows: Rows) -> tuple[float, float]:
    """Pairs of the join among the rows of a rank, and rows of what is joined: a block, and all before it with it."""
    blocks = ring.of_partners().blocks(rows)
    return len(rows) ** 2 / 2, len(rows) + sum(block.end - rows.begin for block in blocks[1:])


def joined_between(rows: Rows, block: Rows) -> tuple[float, float]:
    """The same of some rows with a block."""
    return len(rows) * len(block), len(rows) + len(block)


def work(case: Case, rank: int) -> dict[str, Work]:
    """Of a rank in every stage."""
    ring = case.ring(rank)
    own, n = ring.own, ring.num_samples
    compared = [inside(ring, own)]
    compared += [
        between(ring, turn.met_by, block) for turn in ring.half_turns() for block in ring.blocks(turn.received)
    ]
    pairs, met = map(sum, zip(*compared, strict=True))
    joined = [joined_inside(ring, own)]
    joined += [
        joined_between(turn.met_by, block)
        for turn in ring.half_turns()
        for block in ring.of_partners().blocks(turn.received)
    ]
    others = [block for turn in ring.full_turns() for block in ring.blocks(turn.received)]
    multiplied = inside(ring, own)[1] + sum(between(ring, own, block)[1] for block in others)
    return {
        "knn_graph": Work(pairs, met, len(own), 0),
        "k_reciprocal_encoding": Work(0, multiplied, len(own), 0),
        "invariant_expansion": Work(0, 0, len(own), n),
        "jaccard_distance": Work(*map(sum, zip(*joined, strict=True)), len(own), 0),
        "dbscan": Work(0, 0, len(own), n),
    }


def compute_seconds(case: Case, rank: int, rates: Rates) -> dict[str, float]:
    """Of every stage if no rank waited for another."""
    return {stage: done.seconds(rates[stage]) for stage, done in work(case, rank).items()}


# What a rank holds


def memory(case: Case, on_gpu: bool = False) -> dict[str, float]:
    """Bytes of every stage beyond the features, of the rank with most rows, with the means of the case."""
    own, search = max(case.rows()), Search(case.k1, case.k2, EPS, MIN_SAMPLES)
    lengths = Lengths(case.encoding_length, case.expanded_length, case.num_pairs)
    device = "cuda" if on_gpu else "cpu"
    return block_memory(case.num_samples, own, case.ranks, case.dim, search, case.block_rows, lengths, device)


# What a core of a CPU takes, fitted to measurements

COLUMNS = {
    "knn_graph": ("pair", "met", "row"),
    "k_reciprocal_encoding": ("met", "row"),
    "invariant_expansion": ("row", "sample"),
    "jaccard_distance": ("pair", "met", "row"),
    "dbscan": ("row", "sample"),
}


MEANS = ("encoding_length", "expanded_length", "num_pairs")
LENGTHS = {3: (19, 90, 3.6), 10: (30, 60, 11)}  # by images of an identity: easy features, k1 = 30, k2 = 6


class Measured(NamedTuple):
    """A run: what was clustered, seconds of each stage, and how many cores' work a rank did in one of them."""

    case: Case
    stages: dict[str, float]
    cores: float


def measured_in_blocks(
    document: dict[str, Any] | None = None, simd: str | None = None, dim: int = DIM
) -> list[Measured]:
    """The runs of benchmarks/results/scale.json with these instructions, or the best that the machine has."""
    document = document or json.loads((RESULTS / "scale.json").read_text())
    cores = document["machine"]["cores"]
    runs = []
    for run in document["runs"]:
        if (run["simd"], run["dim"]) != (simd, dim):
            continue
        n, ranks = run["num_samples"], run["ranks"]
        search = Search(run["k1"], run["k2"], EPS, MIN_SAMPLES)
        block_rows = choose_block_rows("ring_model", n, -(-n // ranks), ranks, run["dim"], search, run["max_memory"])
        means = dict(zip(MEANS, LENGTHS[run["images_per_identity"]], strict=True))
        case = Case.even(n, ranks, block_rows, run["dim"], k1=run["k1"], k2=run["k2"], **means)
        busy = ranks * run["threads"]
        runs.append(Measured(case, run["stages"], run["threads"] * min(1, cores / busy)))
    return runs


def measured_in_memory(document: dict[str, Any] | None = None) -> list[Measured]:
    """The runs of benchmarks/results/suite.json on easy features with enough rows for directions."""
    document = document or json.loads((RESULTS / "suite.json").read_text())
    runs = []
    for result in document["results"]:
        case, n = result["case"], result["num_samples"]
        if case["difficulty"] != "easy" or n < directions.MIN_SAMPLES or case["dim"] < directions.MIN_COLUMNS:
            continue
        found = result["methods"]["dmic"]["stages"]
        stages = {stage: found[stage]["seconds"]["median"] for stage in STAGES}
        whole = Case.even(n, 1, n, case["dim"], k1=case["k1"], k2=case["k2"])
        runs.append(Measured(whole, stages, document["machine"]["torch_threads"]))
    return runs


def fit(runs: list[Measured], columns: dict[str, tuple[str, ...]] = COLUMNS) -> Rates:
    """Costs >= 0 of the stages with the least squares of relative errors."""
    from scipy.optimize import nnls

    rates = {}
    for stage, names in columns.items():
        seconds = np.array([run.stages[stage] * run.cores for run in runs])
        done = [_slowest(run.case, stage) for run in runs]
        amounts = np.array([[getattr(one, f"{name}s" if name != "met" else name) for name in names] for one in done])
        found, _ = nnls(amounts / seconds[:, None], np.ones(len(runs)))
        rates[stage] = Cost(**dict(zip(names, found.tolist(), strict=True)))
    return rates


def times_as_long(rates: Rates, runs: list[Measured]) -> float:
    """What a pair of the search takes in runs with other instructions: only those pairs depend on them."""
    search, found = rates["knn_graph"], []
    for run in runs:
        done = _slowest(run.case, "knn_graph")
        rest = done.seconds(replace(search, pair=0))
        found.append((run.stages["knn_graph"] * run.cores - rest) / (done.pairs * search.pair))
    return float(np.mean(found))


def _slowest(case: Case, stage: str) -> Work:
    return max((work(case, rank)[stage] for rank in range(case.ranks)), key=sum)


def core_rates(
    case: Case,
    blocked: list[Measured] | None = None,
    whole: list[Measured] | None = None,
    others: list[Measured] | None = None,
) -> Rates:
    """Seconds of a core, for features that vary in few directions, as networks' do (`dmic/directions.py`), with the
    instructions of `blocked` and `whole`, or of the runs `others`.

    What blocks that meet cost the search is proportional to d; its pairs and the rows of the encoding are linear in d
    between what was measured at two of them, rows of both in k1. Expansion and join are linear in k2, by their times in
    suite.json.
    """
    blocked, whole = blocked or measured_in_blocks(), whole or measured_in_memory()
    narrow = fit(blocked)
    wide = fit(whole, {"knn_graph": ("pair", "row"), "k_reciprocal_encoding": ("row",)})
    low, high = blocked[0].case, whole[0].case
    place = max(0.0, (case.dim - low.dim) / (high.dim - low.dim))

    def along(first: float, last: float) -> float:
        return max(first, first + place * (last - first))

    found = dict(narrow)
    search, rows = narrow["knn_graph"], narrow["k_reciprocal_encoding"].row / low.k1
    found["knn_graph"] = Cost(
        pair=along(search.pair, wide["knn_graph"].pair),
        met=search.met * case.dim / low.dim,
        row=search.row / low.k1 * case.k1,
    )
    rows = along(rows, wide["k_reciprocal_encoding"].row / high.k1) * case.k1
    found["k_reciprocal_encoding"] = replace(narrow["k_reciprocal_encoding"], row=rows)
    for stage, more in (("invariant_expansion", 2), ("jaccard_distance", 3)):
        found[stage] = times(narrow[stage], (case.k2 + more) / (low.k2 + more))
    if others:
        search = found["knn_graph"]
        found["knn_graph"] = replace(search, pair=search.pair * times_as_long(narrow, others))
    return found


def times(cost: Cost, factor: float) -> Cost:
    return Cost(*(factor * value for value in vars(cost).values()))


# What a GPU takes, predicted

LARGE = 1 << 20  # rows at which a launch costs nothing
PASSES = 8  # over keys of 64 bits when lists are merged
ROUND_BYTES = 120  # a sample: parents read, gathered, reduced and compared in a round of DBSCAN


def gpu_rates(case: Case) -> Rates:
    """Seconds of an H100, from what `benchmarks.costs` predicts of its kernels; no GPU has confirmed them."""
    means = {"k1": case.k1, "k2": case.k2, "encoding_length": case.encoding_length}
    means |= {"expanded_length": case.expanded_length, "num_pairs": case.num_pairs}
    size = costs.Size(LARGE, case.dim, **means)
    of_blocks, of_partners = (
        costs.Size(2 * min(rows, max(case.rows())), case.dim, **means)
        for rows in (case.block_rows, joined_rows(case.block_rows, case.ranks))
    )
    memory_rate = costs.EXPECTED["memory"]

    def seconds(op: str, at: costs.Size, names: tuple[str, ...]) -> float:
        chosen = [
            kernel for kernel in costs.KERNELS if kernel.op == op and kernel.name.removesuffix("_kernel") in names
        ]
        assert len({kernel.name for kernel in chosen}) == len(names), names
        return sum(kernel.expected_seconds(at) for kernel in chosen) / at.num_samples

    def rest(op: str, at: costs.Size, names: tuple[str, ...]) -> float:
        return costs.expected_seconds(op, at) / at.num_samples - seconds(op, at, names)

    compare, finish = ("knn_graph_compare",), ("knn_graph_finish",)
    # A block brings a row new neighbours in proportion to its share of what the row has seen: 1, 1/2, 1/3, ... of k1.
    blocks = sum(len(case.ring(rank).blocks(case.ring(rank).own)) for rank in range(case.ranks))
    scored = seconds("knn_graph", size, finish) * (1 + math.log(blocks))
    merged = 2 * 8 * case.k1 * (PASSES + 4) / memory_rate  # keys are made, mirrored and taken apart, too
    joined = ("join", "mirror", "unpack", "diagonal", "diagonal_lengths")
    return {
        "knn_graph": Cost(
            pair=seconds("knn_graph", size, compare) * 2 / LARGE,
            met=rest("knn_graph", of_blocks, compare + finish) + merged,
            row=scored,
        ),
        "k_reciprocal_encoding": Cost(
            met=20 * case.encoding_length / memory_rate,  # which members are in a block
            row=costs.expected_seconds("k_reciprocal_encoding", size) / LARGE,
        ),
        "invariant_expansion": Cost(row=costs.expected_seconds("invariant_expansion", size) / LARGE),
        "jaccard_distance": Cost(
            met=rest("jaccard_distance", of_partners, joined),
            row=seconds("jaccard_distance", size, joined) + case.num_pairs * 60 / memory_rate,
        ),
        "dbscan": Cost(
            row=case.rounds * 60 * case.num_pairs / memory_rate, sample=case.rounds * ROUND_BYTES / memory_rate
        ),
    }
