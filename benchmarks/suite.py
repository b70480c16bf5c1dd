"""Every op and the whole clustering against what is used instead: one process, one table, one JSON file.

    python -m benchmarks.suite            # `make bench`: about 25 minutes on two cores, 15 GB
    python -m benchmarks.suite --quick    # `make bench-quick`: under 3 minutes
    python -m benchmarks.suite --smoke    # seconds; shows that it works, measures nothing
    python -m benchmarks.suite --sizes sysu --difficulties hard --methods dmic

The last form measures a part. A part joins what its JSON file already has, so that a long run can be split and an
interrupted one goes on; the file belongs to one commit, machine and set of versions, and other numbers are refused.

Times are medians of repeats that take turns in one process; a method that took longer than 20 s runs once. Peak
memory is the high-water mark of a method's first repeat, of the process and above what the process had before it.
An answer that differs is reported as wrong or with its recall, whatever its speed; if labels differ, the exit status
is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dmic
from dmic import directions
from dmic.ops import k_reciprocal_sets, k_reciprocal_weights, round_features, sampled_dots

from . import baselines, growth, measuring
from .sizes import DIFFICULTY, DIM, EPS, K1, K2, MIN_SAMPLES, SIZES, Gallery, generate_gallery

RESULTS = Path(__file__).parent / "results" / "suite.json"
STAGES = ("knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan")
SEARCH, ENCODE, EXPAND, JACCARD, CLUSTER = STAGES
PIECES = ("k_reciprocal_sets", "sampled_dots", "k_reciprocal_weights")  # of an encoding
SETS, DOTS, WEIGHTS = PIECES
ROUNDING, ALL = "round_features", "all five"
OURS, IN_PIECES, DENSE = "dmic", "dmic, encoding in pieces", "published dense pipeline"
SAMPLING = "torch sampled_addmm"
ONCE_SECONDS = 20  # a method that takes longer is not repeated
TOLERANCE = 1e-5  # of one weight or distance, against float32 sums in another order
EXPONENT = 5  # of round_features: keeps typical values of unit rows clear of float16's subnormals


@dataclass(frozen=True)
class Case:
    """One input: a size by name, and the kind of features."""

    size: str = "regdb"
    difficulty: str = "easy"
    unit_norm: bool = False
    dim: int = DIM
    k1: int = K1
    k2: int = K2

    @property
    def num_samples(self) -> int:
        return SIZES[self.size]

    @property
    def k1_half(self) -> int:
        return int(np.around(self.k1 / 2))

    def __str__(self) -> str:
        norms = "unit" if self.unit_norm else "free"
        return f"{self.difficulty}, {norms} norms, d {self.dim}, k {self.k1}/{self.k2}"

    def gallery(self) -> Gallery:
        return generate_gallery(self.num_samples, self.dim, self.difficulty, self.unit_norm)


VARIED = [
    Case(),
    Case(difficulty="hard"),
    Case(difficulty="noise"),
    Case(unit_norm=True),
    Case(dim=512),
    Case(k1=30, k2=6),
    Case(k1=38, k2=18),
]
QUICK = [dataclasses.replace(case, size="2k") for case in VARIED]
FULL = [*VARIED, *(Case(size) for size in ("market", "sysu", "msmt"))]


class Recorder:
    """Seconds and peak memory of each stage of one run of one method, and how its answers compare with ours."""

    def __init__(self, wanted: Wanted | None) -> None:
        self.wanted = wanted  # None: not compared again
        self.before: int | None = None  # resident bytes before the first stage
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.answers: dict[str, str] = {}
        self.facts: dict[str, float] = {}  # of the data, for the floors
        self.labels: np.ndarray | None = None

    @property
    def total(self) -> float:
        return sum(seconds for stage, seconds in self.seconds.items() if stage in STAGES)

    def time(self, stage: str, function: Callable, *args):
        left = measuring.trim()  # what the C library keeps of the stage before, as `pseudo_labels` does
        self.before = left if self.before is None else self.before
        measuring.reset_peak()
        start = time.perf_counter()
        result = function(*args)
        self.seconds[stage] = time.perf_counter() - start
        self.peaks[stage] = measuring.peak_bytes()
        return result

    def compare(self, stage: str, compare: Callable[..., str], found, want: str) -> None:
        """Outside of what is timed; `want` names one of our results."""
        if self.wanted:
            self.answers[stage] = compare(found, getattr(self.wanted, want))


class Wanted:
    """Our result of every stage, which the others are compared with: computed when first asked for, not measured."""

    def __init__(self, case: Case, gallery: Gallery) -> None:
        self.case, self.gallery = case, gallery

    @cached_property
    def neighbor_idx(self) -> np.ndarray:
        return dmic.knn_graph(self.gallery.features, self.case.k1)[0]

    @cached_property
    def sets(self) -> tuple[np.ndarray, np.ndarray]:
        return k_reciprocal_sets(self.neighbor_idx, self.case.k1_half)

    @cached_property
    def dots(self) -> np.ndarray:
        return sampled_dots(self.gallery.features, self.gallery.features, *self.sets)

    @cached_property
    def encoding(self) -> dmic.Csr:
        return dmic.k_reciprocal_encoding(self.gallery.features, self.neighbor_idx, self.case.k1_half)

    @cached_property
    def expanded(self) -> dmic.Csr:
        ids = (self.gallery.camera_ids, self.gallery.modality_ids)
        return dmic.invariant_expansion(self.encoding, self.neighbor_idx, self.case.k2, *ids)

    @cached_property
    def distance(self) -> dmic.Csr:
        return dmic.jaccard_distance(self.expanded, EPS)

    @cached_property
    def labels(self) -> np.ndarray:
        return dmic.dbscan(self.distance, EPS, MIN_SAMPLES)[0]

    @cached_property
    def rounded(self) -> torch.Tensor:
        return round_features(torch.from_numpy(self.gallery.features), EXPONENT)[0]


# ---- what is compared with ours, and how ---------------------------------------------------------------------------


def recall(found: np.ndarray, want: np.ndarray) -> str:
    """Share of the true neighbours that an uncertified search has in its lists."""
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, want, strict=True))
    return f"recall {hits / want.size:.6f}"


def same_rows(found: np.ndarray | dmic.Csr, want: dmic.Csr, fill: float = 0, below: float = math.inf) -> str:
    """Whether all entries agree, `fill` where none is stored; two that both exceed `below` need not."""
    differing, want = 0, want.to_float()
    for start in range(0, want.num_rows, 256):  # never a second N x N array
        rows = slice(start, start + 256)
        ours = _dense(want, rows, fill)
        theirs = _dense(found, rows, fill) if isinstance(found, dmic.Csr) else found[rows]
        differs = (np.abs(theirs - ours) > TOLERANCE) & (np.minimum(theirs, ours) <= below)
        differing += int(differs.any(axis=1).sum())
    return "equal" if differing == 0 else f"WRONG: {differing} rows differ"


def _dense(csr: dmic.Csr, rows: slice, fill: float) -> np.ndarray:
    row_ptr = csr.row_ptr[rows.start : rows.stop + 1]
    entries = slice(row_ptr[0], row_ptr[-1])
    return dmic.Csr(row_ptr - row_ptr[0], csr.col_idx[entries], csr.values[entries], csr.num_cols).to_dense(fill)


def same_pairs(found: np.ndarray | dmic.Csr, want: dmic.Csr) -> str:
    """Whether pairs within EPS have the same distances; rounding may put a pair at EPS on either side of it."""
    return same_rows(found, want, fill=1, below=EPS - TOLERANCE)


def same_dots(found: np.ndarray, want: np.ndarray) -> str:
    """Relative to one, the largest that unit rows have."""
    differing = int((np.abs(found - want) > TOLERANCE * np.maximum(1, np.abs(want))).sum())
    return "equal" if differing == 0 else f"WRONG: {differing} dot products differ"


def same_bits(found: torch.Tensor, want: torch.Tensor) -> str:
    return "equal" if torch.equal(found, want) else f"WRONG: {int((found != want).any(1).sum())} rows differ"


def same_labels(found: np.ndarray, want: np.ndarray) -> str:
    agreement = measuring.compare_labels(found, want)
    if agreement["equal"]:
        return "equal"
    if agreement["equal_up_to_renumbering"]:
        return "equal, renumbered"
    return "WRONG: {differing_samples} labels differ, ARI {adjusted_rand_index:.6f}".format(**agreement)


# ---- methods: stages are timed, what lies between them is not ------------------------------------------------------


def run_ours(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    n = len(gallery.features)
    neighbor_idx, neighbor_dist = run.time(SEARCH, dmic.knn_graph, gallery.features, case.k1)
    del neighbor_dist
    encoding = run.time(ENCODE, dmic.k_reciprocal_encoding, gallery.features, neighbor_idx, case.k1_half)
    ids = (gallery.camera_ids, gallery.modality_ids)
    expanded = run.time(EXPAND, dmic.invariant_expansion, encoding, neighbor_idx, case.k2, *ids)
    in_column = np.bincount(expanded.col_idx).astype(np.float64)
    run.facts |= {
        "encoding_nnz_per_row": encoding.nnz / n,
        "expanded_nnz_per_row": expanded.nnz / n,
        "overlaps_per_row": float((in_column * (in_column - 1) / 2).sum()) / n,
    }
    del encoding, neighbor_idx, in_column
    distance = run.time(JACCARD, dmic.jaccard_distance, expanded, EPS)
    del expanded
    run.facts["pairs_within_eps_per_row"] = distance.nnz / n
    run.labels = run.time(CLUSTER, dmic.dbscan, distance, EPS, MIN_SAMPLES)[0]
    del distance
    run.time(ROUNDING, round_features, torch.from_numpy(gallery.features), EXPONENT)
    run.answers[ALL] = f"{run.labels.max() + 1} clusters, {(run.labels == -1).sum()} outliers"


def run_pieces(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    sets = run.time(SETS, k_reciprocal_sets, wanted.neighbor_idx, case.k1_half)
    dots = run.time(DOTS, sampled_dots, gallery.features, gallery.features, *sets)
    weights = run.time(WEIGHTS, k_reciprocal_weights, *sets, dots)
    run.compare(WEIGHTS, same_rows, weights.to_float(), "encoding")


def run_dense(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    ranks = run.time(SEARCH, baselines.search, gallery.features, case.k1)
    run.compare(SEARCH, recall, ranks, "neighbor_idx")
    encoding = run.time(ENCODE, baselines.encode, gallery.features, ranks, case.k1)
    run.compare(ENCODE, same_rows, encoding, "encoding")
    ids = (gallery.camera_ids, gallery.modality_ids)
    expanded = run.time(EXPAND, baselines.expand, encoding, ranks, case.k2, *ids)
    del encoding, ranks
    run.compare(EXPAND, same_rows, expanded, "expanded")
    distance = run.time(JACCARD, baselines.jaccard, expanded)
    del expanded
    run.compare(JACCARD, same_pairs, distance, "distance")
    run.labels = run.time(CLUSTER, baselines.cluster, distance, EPS, MIN_SAMPLES)
    run.compare(CLUSTER, same_labels, run.labels, "labels")
    run.compare(ALL, same_labels, run.labels, "labels")


def run_faiss(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    run.compare(SEARCH, recall, run.time(SEARCH, baselines.search, gallery.features, case.k1), "neighbor_idx")


def run_torch(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    run.compare(SEARCH, recall, run.time(SEARCH, baselines.search_in_torch, gallery.features, case.k1), "neighbor_idx")


def run_sampling(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    sets = wanted.sets
    run.compare(DOTS, same_dots, run.time(DOTS, baselines.sample_in_torch, gallery.features, *sets), "dots")


def run_scipy(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    encoding = wanted.expanded.to_float().to_scipy()
    found = run.time(JACCARD, baselines.sparse_jaccard, encoding, EPS)
    run.compare(JACCARD, same_pairs, dmic.Csr.from_scipy(found), "distance")


def run_scikit_learn(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    distance = wanted.distance.to_scipy()
    run.labels = run.time(CLUSTER, baselines.cluster, distance, EPS, MIN_SAMPLES)
    run.compare(CLUSTER, same_labels, run.labels, "labels")


def run_torch_rounding(case: Case, gallery: Gallery, wanted: Wanted, run: Recorder) -> None:
    rounded, _ = run.time(ROUNDING, baselines.round_in_torch, torch.from_numpy(gallery.features), EXPONENT)
    run.compare(ROUNDING, same_bits, rounded, "rounded")


METHODS = {
    OURS: run_ours,
    IN_PIECES: run_pieces,
    DENSE: run_dense,
    "faiss-cpu": run_faiss,
    "torch mm + topk": run_torch,
    SAMPLING: run_sampling,
    "scipy sparse": run_scipy,
    "scikit-learn sparse": run_scikit_learn,
    "torch rounding": run_torch_rounding,
}
DENSE_BYTES = 12  # of each entry of N x N: the encoding and its expansion, or that and the distance, and indices of it


# ---- floors --------------------------------------------------------------------------------------------------------


def measure_rates() -> dict[str, float]:
    """What this machine reaches now: float32 operations of a matrix product, bytes of a copy read and written."""

    def fastest(function: Callable, repeats: int = 5) -> float:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    side = 1536
    a, b, c = (torch.rand(side, side) for _ in range(3))
    source, target = torch.zeros(1 << 25), torch.zeros(1 << 25)
    return {
        "float32_operations_per_s": 2 * side**3 / fastest(lambda: torch.mm(a, b, out=c)),
        "memory_bytes_per_s": 2 * source.nbytes / fastest(lambda: target.copy_(source)),
    }


def floors(case: Case, facts: dict[str, float], rates: dict[str, float]) -> dict[str, float]:
    """Seconds below which no exhaustive method gets on a machine of these rates: every operation or byte that the
    definition asks for, once. A method that need not look at all pairs can be below it."""
    n, d = case.num_samples, case.dim
    encoded, expanded = n * facts["encoding_nnz_per_row"], n * facts["expanded_nnz_per_row"]
    overlaps, pairs = n * facts["overlaps_per_row"], n * facts["pairs_within_eps_per_row"]
    operations_and_bytes = {
        SEARCH: (n * n * d, 4 * n * d + 8 * n * case.k1),  # each pair once
        ENCODE: (2 * d * encoded, 4 * n * d + 4 * n * case.k1 + 8 * encoded),
        SETS: (n * case.k1**2, 4 * n * case.k1 + 4 * encoded),
        DOTS: (2 * d * encoded, 4 * n * d + 12 * encoded),
        WEIGHTS: (20 * encoded, 20 * encoded),
        EXPAND: (2 * case.k2 * encoded, 8 * encoded + 4 * n * case.k2 + 8 * expanded),
        JACCARD: (2 * overlaps, 8 * expanded + 8 * pairs),
        CLUSTER: (pairs, 8 * pairs + 9 * n),
        ROUNDING: (4 * n * d, 6 * n * d + 4 * n),
    }
    seconds = {
        stage: max(operations / rates["float32_operations_per_s"], moved / rates["memory_bytes_per_s"])
        for stage, (operations, moved) in operations_and_bytes.items()
    }
    return seconds | {ALL: sum(seconds[stage] for stage in STAGES)}


# ---- measuring -----------------------------------------------------------------------------------------------------


def reason_to_skip(name: str, case: Case, results: list[dict], budget_s: float) -> str | None:
    """Why a baseline is not even tried: memory, or the time predicted from a smaller size of the same kind; what it is
    compared with, which is computed once more for it, counts too. Ours is always tried."""
    n = case.num_samples
    if name == DENSE and (needed := DENSE_BYTES * n * n) > (available := measuring.available_bytes()):
        return f"skipped: needs {needed / 1e9:.0f} GB, {available / 1e9:.0f} GB are available"
    if name == SAMPLING and not torch.backends.mkl.is_available():
        return "skipped: torch has no MKL here"
    smaller = [
        (SIZES[r["case"]["size"]], r["methods"][name]["total_s"] + r["methods"].get(OURS, {}).get("total_s", 0))
        for r in results
        if r["case"] | {"size": case.size} == dataclasses.asdict(case)
        and "total_s" in r["methods"].get(name, {})
        and SIZES[r["case"]["size"]] < n
    ]
    if name != OURS and smaller:
        size, seconds = max(smaller)
        predicted = seconds * (n / size) ** 2
        if predicted > budget_s:
            return f"skipped: {predicted:.0f} s predicted from N = {size:,}, the budget is {budget_s:.0f} s"
    return None


def measure(case: Case, names: list[str], repeats: int, budget_s: float, results: list[dict]) -> dict[str, dict]:
    """What the methods took and answered, by name; `results` of earlier cases predict what would take too long."""
    skipped = {name: reason_to_skip(name, case, results, budget_s) for name in names}
    found: dict[str, dict] = {name: {"skipped": reason} for name, reason in skipped.items() if reason}
    todo = [name for name in names if name not in found]
    if not todo:
        return found
    gallery = case.gallery()
    wanted = Wanted(case, gallery)
    runs: dict[str, list[Recorder]] = {name: [] for name in todo}
    for repeat in range(repeats):
        for name in todo:
            if repeat and (name in found or runs[name][0].total > ONCE_SECONDS):
                continue
            if name != OURS:
                _ = wanted.labels  # computes all of them, now
            run = Recorder(None if repeat else wanted)
            try:
                METHODS[name](case, gallery, wanted, run)
            except MemoryError:
                found[name] = {"skipped": "ran out of memory"}
            else:
                runs[name].append(run)
    return {name: found.get(name) or summary(runs[name]) for name in names}


def warm_up(names: list[str]) -> None:
    """Loads libraries and starts threads, outside of what is measured."""
    measure(Case("smoke", dim=64), names, 1, math.inf, [])
    dmic.knn_graph(np.random.default_rng(0).random((directions.MIN_SAMPLES, directions.MIN_COLUMNS), np.float32), K1)


def summary(runs: list[Recorder]) -> dict[str, object]:
    first = runs[0]
    stages = {
        stage: {
            "seconds": measuring.spread([run.seconds[stage] for run in runs]),
            "peak_bytes": first.peaks[stage] - first.before,
            "answer": first.answers.get(stage),
        }
        for stage in first.seconds
    }
    if set(STAGES) <= set(stages):
        stages[ALL] = {
            "seconds": measuring.spread([run.total for run in runs]),
            "peak_bytes": max(stages[stage]["peak_bytes"] for stage in STAGES),
            "answer": first.answers.get(ALL),
        }
    if any(run.labels is not None and not np.array_equal(run.labels, first.labels) for run in runs):
        stages[CLUSTER]["answer"] = "WRONG: other labels in another repeat"
    return {
        "stages": stages,
        "total_s": float(np.median([sum(run.seconds.values()) for run in runs])),
        "process_peak_bytes": max(first.peaks.values()),
        "facts": first.facts,
    }


def is_wrong(result: dict) -> bool:
    """Whether any method has other labels than ours."""
    answers = (m["stages"].get(CLUSTER, {}).get("answer") for m in result["methods"].values() if "stages" in m)
    return any((answer or "").startswith("WRONG") for answer in answers)


# ---- table ---------------------------------------------------------------------------------------------------------

COLUMNS = ("N", "features", "op", "method", "median s", "spread, runs", "peak MB", "process MB", "of floor", "answer")


def rows(result: dict) -> list[tuple[str, ...]]:
    """One row for each op and method, ops in order; a method that was skipped has one row."""
    case, lines = Case(**result["case"]), []
    for stage in (*STAGES, ALL, *PIECES, ROUNDING):
        for name, method in result["methods"].items():
            if stage not in method.get("stages", {}):
                continue
            measured = method["stages"][stage]
            seconds, floor = measured["seconds"], result["floors_s"].get(stage)
            numbers = (
                f"{seconds['median']:.3f}",
                f"{seconds['min']:.3f}-{seconds['max']:.3f}, {len(seconds['repeats'])}",
                f"{measured['peak_bytes'] / 1e6:.0f}",
                f"{method['process_peak_bytes'] / 1e6:.0f}",
                f"{floor / seconds['median']:.0%}" if floor else "-",
            )
            lines.append((f"{case.num_samples:,}", str(case), stage, name, *numbers, measured["answer"] or "-"))
    for name, method in result["methods"].items():
        if "skipped" in method:
            lines.append((f"{case.num_samples:,}", str(case), "", name, "", "", "", "", "", method["skipped"]))
    return lines


def print_table(results: list[dict], console: Console) -> None:
    table = Table(title="Seconds; peak memory above what was there before, and of the process; share of the floor")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("features", "op", "method", "answer") else "right")
    for result in results:
        for line in rows(result):
            table.add_row(*line)
        table.add_section()
    console.print(table)


# ---- the command ---------------------------------------------------------------------------------------------------


def open_document(path: Path | None, fresh: bool) -> dict:
    """What was measured already, if it was measured with the same code on the same machine."""
    header = {
        "benchmark": "suite",
        "commit": measuring.commit(),
        "machine": measuring.machine(),
        "versions": measuring.versions(),
        "settings": {"eps": EPS, "min_samples": MIN_SAMPLES},
    }
    if fresh or path is None or not path.exists():
        return header | {"commands": [], "results": []}
    document = json.loads(path.read_text())
    for key, value in header.items():
        if document.get(key) != value:
            raise SystemExit(
                f"benchmarks.suite: {path} was measured with another {key}: {document.get(key)}, now {value}; "
                "--fresh starts it anew, --output names another file"
            )
    return document


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The fixed list, or the product of what the options name, other properties as in a plain Case."""
    axes = {
        "size": options.sizes,
        "difficulty": options.difficulties,
        "unit_norm": options.norms and [norm == "unit" for norm in options.norms],
        "dim": options.dims,
        "k": options.k,
    }
    if not any(axes.values()):
        return QUICK if options.quick else FULL
    cases = [Case()]
    for name, values in axes.items():
        if name == "k" and values:
            settings = [dict(zip(("k1", "k2"), map(int, value.split("/")), strict=True)) for value in values]
        else:
            settings = [{name: value} for value in values or ()]
        cases = [dataclasses.replace(case, **setting) for case in cases for setting in settings or [{}]]
    return cases


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--difficulties", nargs="+", choices=DIFFICULTY)
    parser.add_argument("--norms", nargs="+", choices=("free", "unit"))
    parser.add_argument("--dims", nargs="+", type=int, help="feature columns")
    parser.add_argument("--k", nargs="+", choices=("30/6", "40/32", "38/18"), help="k1/k2")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="of: %(choices)s"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each method; default 3")
    parser.add_argument(
        "--budget", type=float, default=600, help="seconds that a baseline may be predicted to take; default 600"
    )
    parser.add_argument("--quick", action="store_true", help="2,048 samples only, one repeat, nothing written")
    parser.add_argument("--smoke", action="store_true", help="512 samples of 64 columns, one repeat")
    parser.add_argument("--fresh", action="store_true", help="forget what the JSON file has")
    parser.add_argument("--output", type=Path, help="JSON file; default: results/suite.json, and the charts in docs")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.quick or options.smoke:
        options.repeats = 1
    if options.smoke:
        options.sizes, options.dims = ["smoke"], [64]
    return options


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    is_default = options.output is None and not (options.quick or options.smoke)
    path = RESULTS if is_default else options.output
    measuring.warn_about_openblas()
    console = Console(width=None if sys.stdout.isatty() else 220)
    document = open_document(path, options.fresh)
    document["commands"].append(shlex.join(["python", "-m", "benchmarks.suite", *arguments]))
    results, shown = document["results"], []
    warm_up(options.methods)
    for case in chosen_cases(options):
        result = next((r for r in results if r["case"] == dataclasses.asdict(case)), None)
        if result is None:
            result = {"case": dataclasses.asdict(case), "num_samples": case.num_samples, "floors_s": {}, "methods": {}}
            results.append(result)
        names = [name for name in options.methods if "stages" not in result["methods"].get(name, {})]
        console.print(f"{case.num_samples:,} samples, {case}: {', '.join(names) or 'measured already'}", style="dim")
        result["methods"] |= measure(case, names, options.repeats, options.budget, results)
        facts = result["methods"].get(OURS, {}).get("facts")
        if facts and OURS in names:
            result["rates"] = measure_rates()
            result["floors_s"] = floors(case, facts, result["rates"])
        shown.append(result)
        if path:  # after every case, so that an interrupted run keeps what it has
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=1) + "\n")
    print_table(shown, console)
    if is_default:
        growth.publish(document, dataclasses.asdict(Case()))
    return int(any(is_wrong(result) for result in shown))


if __name__ == "__main__":
    sys.exit(main())
