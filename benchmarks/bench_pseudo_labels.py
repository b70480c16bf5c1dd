"""From features to labels: this package against the published dense pipeline, same process, same data.

    python -m benchmarks.bench_pseudo_labels                     # 4,096, 8,192 and 16,384 samples; minutes and 4 GB
    python -m benchmarks.bench_pseudo_labels --smoke             # seconds; shows that it works, measures nothing
    python -m benchmarks.bench_pseudo_labels --sizes sysu --difficulty hard --repeats 1

Times are medians of interleaved repeats in one process. Peak memory is the high-water mark of a separate process that
has loaded and warmed up everything, counted from the moment before the first stage, features excluded. Labels are
compared with the baseline's; an answer that differs is reported as wrong, whatever its speed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dmic

from . import baselines, measuring
from .sizes import DIFFICULTY, DIM, EPS, K1, K1_HALF, K2, MIN_SAMPLES, SIZES, Gallery, generate_gallery

STAGES = ("knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan")
BASELINE, OURS = "published dense pipeline", "dmic"


class Clock:
    """Seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, function: Callable, *args):
        start = time.perf_counter()
        result = function(*args)
        self.seconds[stage] = time.perf_counter() - start
        return result


def run_baseline(gallery: Gallery) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
    """Labels, seconds by stage, and the sparsity of what it computed (nothing extra is computed for it)."""
    clock = Clock()
    ranks = clock.time("knn_graph", baselines.search, gallery.features, K1)
    encoding = clock.time("k_reciprocal_encoding", baselines.encode, gallery.features, ranks, K1)
    ids = (gallery.camera_ids, gallery.modality_ids)
    expanded = clock.time("invariant_expansion", baselines.expand, encoding, ranks, K2, *ids)
    del encoding
    distance = clock.time("jaccard_distance", baselines.jaccard, expanded)
    del expanded
    labels = clock.time("dbscan", baselines.cluster, distance, EPS, MIN_SAMPLES)
    return labels, clock.seconds, {}


def run_ours(gallery: Gallery) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
    clock, n = Clock(), len(gallery.features)
    neighbor_idx, neighbor_dist = clock.time("knn_graph", dmic.knn_graph, gallery.features, K1)
    del neighbor_dist
    encoding = clock.time("k_reciprocal_encoding", dmic.k_reciprocal_encoding, gallery.features, neighbor_idx, K1_HALF)
    ids = (gallery.camera_ids, gallery.modality_ids)
    expanded = clock.time("invariant_expansion", dmic.invariant_expansion, encoding, neighbor_idx, K2, *ids)
    sparsity = {"encoding_nnz_per_row": encoding.nnz / n, "expanded_nnz_per_row": expanded.nnz / n}
    del encoding, neighbor_idx
    distance = clock.time("jaccard_distance", dmic.jaccard_distance, expanded, EPS)
    del expanded
    sparsity["pairs_within_eps_per_row"] = distance.nnz / n
    labels, _ = clock.time("dbscan", dmic.dbscan, distance, EPS, MIN_SAMPLES)
    return labels, clock.seconds, sparsity


METHODS = {BASELINE: run_baseline, OURS: run_ours}


def measure_peak(folder: str, method: str, queue) -> None:
    """In a process of its own: bytes above what is resident once features, libraries and threads are there."""
    try:
        METHODS[method](generate_gallery(256, 64))  # loads libraries and starts threads
        gallery = Gallery(*(np.load(Path(folder) / f"{field}.npy") for field in Gallery.__dataclass_fields__))
        measuring.reset_peak()
        before = measuring.current_bytes()
        METHODS[method](gallery)
        queue.put(measuring.peak_bytes() - before)
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")
        raise


def peak_bytes(gallery: Gallery, method: str) -> int:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for field in Gallery.__dataclass_fields__:
            np.save(Path(folder) / f"{field}.npy", getattr(gallery, field))
        queue = context.Queue()
        process = context.Process(target=measure_peak, args=(folder, method, queue))
        process.start()
        while process.is_alive() and queue.empty():
            process.join(0.1)
        answer = f"the process ended with status {process.exitcode}" if queue.empty() else queue.get()
        process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"measuring the memory of {method} failed: {answer}")
    return answer


def measure(num_samples: int, dim: int, difficulty: str, repeats: int, with_memory: bool) -> dict[str, object]:
    """One size: both methods, interleaved; see the module's docstring."""
    gallery = generate_gallery(num_samples, dim, difficulty)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    labels: dict[str, np.ndarray] = {}
    repeatable = dict.fromkeys(METHODS, True)
    sparsity: dict[str, float] = {}
    for run in METHODS.values():
        run(generate_gallery(256, dim, difficulty))  # loads libraries and starts threads, outside the timed part
    for _ in range(repeats):
        for name, run in METHODS.items():
            found, seconds, facts = run(gallery)
            repeatable[name] &= name not in labels or np.array_equal(labels[name], found)
            labels[name] = found
            runs[name].append(seconds)
            sparsity |= facts
    agreement = measuring.compare_labels(labels[OURS], labels[BASELINE])
    methods = {}
    for name in METHODS:
        totals = [sum(seconds.values()) for seconds in runs[name]]
        methods[name] = {
            "total_s": measuring.spread(totals),
            "stages_s": {stage: measuring.spread([seconds[stage] for seconds in runs[name]]) for stage in STAGES},
            "peak_bytes_beyond_features": peak_bytes(gallery, name) if with_memory else None,
            "num_clusters": int(labels[name].max()) + 1,
            "num_outliers": int((labels[name] == -1).sum()),
            "adjusted_rand_index_with_identities": measuring.compare_labels(labels[name], gallery.person_ids)[
                "adjusted_rand_index"
            ],
            "same_labels_in_every_repeat": bool(repeatable[name]),
        }
    baseline_s, ours_s = (methods[name]["total_s"]["median"] for name in (BASELINE, OURS))
    return {
        "num_samples": num_samples,
        "dim": dim,
        "difficulty": difficulty,
        "features_bytes": gallery.features.nbytes,
        "sparsity": sparsity,
        "methods": methods,
        "labels_against_baseline": agreement,
        "speedup": baseline_s / ours_s,
    }


def report(results: list[dict], console: Console) -> None:
    table = Table(title="Pseudo labels: seconds (median), peak memory beyond the features")
    for column in ("N", "data", "method", *STAGES, "total", "spread", "peak MB", "clusters", "outliers", "labels"):
        table.add_column(column, justify="left" if column in ("data", "method", "labels") else "right")
    for result in results:
        agreement = result["labels_against_baseline"]
        for name, method in result["methods"].items():
            total, peak = method["total_s"], method["peak_bytes_beyond_features"]
            verdict = "reference"
            if name == OURS:
                verdict = "equal" if agreement["equal"] else "equal, renumbered"
                if not agreement["equal_up_to_renumbering"]:
                    verdict = "WRONG: {differing_samples} differ, ARI {adjusted_rand_index:.6f}".format(**agreement)
            table.add_row(
                f"{result['num_samples']:,}",
                result["difficulty"],
                name,
                *(f"{method['stages_s'][stage]['median']:.2f}" for stage in STAGES),
                f"{total['median']:.2f}",
                f"{total['min']:.2f}-{total['max']:.2f}",
                "-" if peak is None else f"{peak / 1e6:.0f}",
                str(method["num_clusters"]),
                str(method["num_outliers"]),
                verdict,
            )
        table.add_row("", "", f"speedup {result['speedup']:.1f}x", end_section=True)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["4k", "8k", "16k"], choices=SIZES, help="default: 4k 8k 16k")
    parser.add_argument("--difficulty", nargs="+", default=["easy"], choices=DIFFICULTY, help="default: easy")
    parser.add_argument("--dim", type=int, default=DIM, help=f"feature columns, default {DIM}")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each method, default 3")
    parser.add_argument("--no-memory", action="store_true", help="skip the separate runs that measure peak memory")
    parser.add_argument("--smoke", action="store_true", help="512 samples of 64 columns, once")
    parser.add_argument("--output", type=Path, help="JSON file; default: results/pseudo_labels.json, none with --smoke")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.smoke:
        options.sizes, options.dim, options.repeats = ["smoke"], 64, 1
    elif options.output is None:
        options.output = Path(__file__).parent / "results" / "pseudo_labels.json"
    measuring.warn_about_openblas()

    console = Console(width=None if sys.stdout.isatty() else 200)
    arguments = sys.argv[1:] if arguments is None else arguments
    document = {
        "benchmark": "pseudo_labels",
        "about": (
            "N samples of d float32 columns, 6 cameras, 2 modalities, modality-camera-invariant expansion. Times are "
            "wall seconds: the median, the extremes and every repeat, methods interleaved in one process. Peak memory "
            "is the high-water mark of a separate process above its state before the first stage."
        ),
        "command": shlex.join(["python", "-m", "benchmarks.bench_pseudo_labels", *arguments]),
        "commit": measuring.commit(),
        "machine": measuring.machine(),
        "versions": measuring.versions(),
        "settings": {"k1": K1, "k2": K2, "eps": EPS, "min_samples": MIN_SAMPLES},
        "results": [],
    }
    for difficulty in options.difficulty:
        for size in options.sizes:
            console.print(f"measuring {SIZES[size]:,} samples, {difficulty} ...", style="dim")
            document["results"].append(
                measure(SIZES[size], options.dim, difficulty, options.repeats, not options.no_memory)
            )
            if options.output:  # after every size, so that an interrupted run keeps what it has
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(document, indent=2) + "\n")
    report(document["results"], console)
    if options.output:
        console.print(f"written to {options.output}", style="dim")
    return int(any(not r["labels_against_baseline"]["equal_up_to_renumbering"] for r in document["results"]))


def test_the_benchmark_runs_and_finds_equal_labels(tmp_path):
    output = tmp_path / "results.json"
    assert main(["--smoke", "--output", str(output)]) == 0
    (result,) = json.loads(output.read_text())["results"]
    assert result["labels_against_baseline"]["equal_up_to_renumbering"]
    for method in result["methods"].values():
        assert set(method["stages_s"]) == set(STAGES)
        assert method["peak_bytes_beyond_features"] > 0


if __name__ == "__main__":
    sys.exit(main())
