"""Galleries from a file, in blocks and over ranks: time of each stage, memory of each rank, agreement, quality.

    python -m benchmarks.scale --num-samples 100000 --ranks 1 2 4 --max-memory 1GB
    python -m benchmarks.scale --num-samples 1000000 --max-memory 4GB
    python -m benchmarks.scale --num-samples 50000 --ranks 1 2 --repeats 9 --results benchmarks/results/ranks.json
    python -m benchmarks.scale --write     # the tables of docs/scale.md

Every row of the table is a run of R processes over gloo with one thread each, unless `--threads` says otherwise, or the
median of several, which take turns with those of other numbers of ranks.
Features are generated (`benchmarks.sizes`) and written to a file, which the ranks read. Peak memory is the high-water
mark of a rank above what it held before it read anything. Runs join what the JSON file has, and their labels must be
those of its other runs of the gallery.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dmic
from dmic import process_group
from dmic._native import set_simd_level
from dmic.block_memory import (
    LIBRARY_BYTES,
    RANK_LIBRARY_BYTES,
    Search,
    block_memory,
    choose_block_rows,
    expected_memory,
)
from dmic.commands.cluster import parse_bytes

from . import measuring
from .sizes import generate_gallery

RESULTS = Path(__file__).parent / "results" / "scale.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
TABLES = ("scale.json", "ranks.json")  # of the page, by the results that they show
GALLERY = ("num_samples", "dim", "images_per_identity", "k1", "k2")  # what labels depend on
FILES = ("features", "camera_ids", "modality_ids", "person_ids")


def run_rank(folder: Path, out: Path, settings: dict) -> None:
    """What one rank does, and what it took; every rank of a run is started with the same arguments."""
    torch.set_num_threads(settings.pop("threads"))
    set_simd_level(settings.pop("simd"))
    with process_group.started("cpu") as group:
        ids = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("camera_ids", "modality_ids")}
        measuring.trim()
        measuring.reset_peak()
        before, start = measuring.current_bytes(), time.perf_counter()
        found = dmic.pseudo_labels(folder / "features.npy", **ids, **settings, process_group=group)
        seconds = time.perf_counter() - start
        peak = torch.tensor([measuring.peak_bytes() - before])
        peaks = process_group.all_gather_rows(peak, group).tolist()
        labels = process_group.all_gather_rows(torch.as_tensor(found.labels), group)
        if process_group.rank(group) == 0:
            about = {"seconds": seconds, "stages": found.seconds, "peak_bytes": peaks}
            np.savez(out, labels=labels.numpy(), about=json.dumps(about))


def run(folder: Path, ranks: int, settings: dict) -> tuple[dict, np.ndarray]:
    """One run of so many ranks."""
    out = folder / f"labels-{ranks}.npz"
    child = ["-m", "benchmarks.scale", "--rank-of", str(folder), "--out", str(out), "--settings", json.dumps(settings)]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings["threads"])}
    subprocess.run([sys.executable, *launcher, *child], check=True, env=environment, cwd=measuring.ROOT)
    with np.load(out) as found:
        return json.loads(str(found["about"])), found["labels"]


def median_of(runs: list[dict]) -> dict:
    """Of runs of one case: seconds are medians, peaks the highest. All must have found the same labels."""
    digests = sorted({run["labels_sha256"] for run in runs})
    if len(digests) > 1:
        raise SystemExit(f"benchmarks.scale: labels differ between runs of one number of ranks: {digests}")
    stages = {stage: statistics.median(run["stages"][stage] for run in runs) for stage in runs[0]["stages"]}
    row = {"seconds": statistics.median(run["seconds"] for run in runs), "stages": stages}
    row["peak_bytes"] = [max(peaks) for peaks in zip(*(run["peak_bytes"] for run in runs), strict=True)]
    row["labels_sha256"] = digests[0]
    return row if len(runs) == 1 else row | {"search_seconds": [run["stages"]["knn_graph"] for run in runs]}


def speedup(before: list[dict], after: list[dict]) -> float:
    """Of the search, in runs that took turns: the median of each against the one beside it."""
    pairs = zip(before, after, strict=True)
    return statistics.median(b["stages"]["knn_graph"] / a["stages"]["knn_graph"] for b, a in pairs)


def estimate(num_samples: int, ranks: int, dim: int, search: Search, max_memory: int, threads: int) -> tuple[int, int]:
    """What a rank was said to need at most, before the work, and about."""
    case = num_samples, -(-num_samples // ranks), ranks, dim, search
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    block_rows = choose_block_rows("scale", *case, max_memory)
    most, about = block_memory(*case, block_rows), expected_memory(*case, block_rows)
    torch.set_num_threads(before)
    return max(most.values()), about.peak_bytes + (LIBRARY_BYTES if ranks == 1 else RANK_LIBRARY_BYTES)


def quality(labels: np.ndarray, person_ids: np.ndarray) -> dict[str, float]:
    """Of the clusters, against identities: share of samples of the identity that most of their cluster have, ARI."""
    from sklearn.metrics import adjusted_rand_score

    inside = labels >= 0
    pairs, counts = np.unique(np.stack([labels[inside], person_ids[inside]]), axis=1, return_counts=True)
    most = np.zeros(int(labels.max()) + 1, np.int64)
    np.maximum.at(most, pairs[0], counts)
    return {
        "clusters": len(most),
        "outliers": int((~inside).sum()),
        "purity": float(most.sum() / max(1, inside.sum())),
        "adjusted_rand_index": float(adjusted_rand_score(person_ids[inside], labels[inside])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--images-per-identity", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument(
        "--simd", help="instructions to use in place of the best ones here, such as avx512 where AMX is"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each number of ranks")
    parser.add_argument("--max-memory", type=parse_bytes, default=parse_bytes("4GB"))
    parser.add_argument("--k1", type=int, default=30)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where the gallery is kept; by default in a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget what the JSON file has")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/scale.md, and run nothing")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        run_rank(options.rank_of, options.out, options.settings)
        return
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.write:
        PAGE.write_text(written(PAGE.read_text()))
        return
    document = open_document(options.results, options.fresh)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        gallery = generate_gallery(options.num_samples, options.dim, images_per_identity=options.images_per_identity)
        for name in FILES:
            np.save(folder / f"{name}.npy", getattr(gallery, name))
        person_ids = gallery.person_ids
        del gallery
        settings = {"k1": options.k1, "k2": options.k2, "max_memory": options.max_memory, "threads": options.threads}
        settings["simd"] = options.simd
        case = {"num_samples": options.num_samples, "dim": options.dim, **settings}
        case["images_per_identity"] = options.images_per_identity
        search = Search(options.k1, options.k2, eps=0.6, min_samples=4)
        measured: dict[int, list[dict]] = {ranks: [] for ranks in options.ranks}
        for _ in range(options.repeats):
            for ranks, runs in measured.items():
                most, about = estimate(
                    options.num_samples, ranks, options.dim, search, options.max_memory, options.threads
                )
                found, labels = run(folder, ranks, settings)
                runs.append(found | {"labels_sha256": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()})
                row = {**case, "ranks": ranks, "estimated_bytes": most, "expected_bytes": about, **median_of(runs)}
                add(document["runs"], row | quality(labels, person_ids))
                options.results.write_text(json.dumps(document, indent=1) + "\n")
    show([row for row in document["runs"] if row["num_samples"] == options.num_samples], document["runs"])
    for ranks, runs in measured.items():
        if ranks > 1 and 1 in measured:
            print(f"{ranks} ranks search {speedup(measured[1], runs):.2f} times as fast as one")
    for row in document["runs"]:
        if set(others(row, document["runs"])) - {row["labels_sha256"]}:
            raise SystemExit(f"labels differ between runs of {row['num_samples']:,} rows")


def open_document(path: Path, fresh: bool) -> dict:
    """What was measured already, if it was of this commit and machine."""
    header = {"commit": measuring.commit(), "machine": measuring.machine(), "versions": measuring.versions()}
    if fresh or not path.exists():
        return header | {"runs": []}
    document = json.loads(path.read_text())
    for key, value in header.items():
        if document.get(key) != value:
            raise SystemExit(
                f"benchmarks.scale: {path} was measured with another {key}: {document.get(key)}, now {value}; "
                "--fresh starts it anew, --results names another file"
            )
    return document


def add(runs: list[dict], new: dict) -> None:
    """In the place of the same run before."""
    keys = (*GALLERY, "ranks", "threads", "max_memory", "simd")
    runs[:] = [row for row in runs if any(row[key] != new[key] for key in keys)] + [new]


def others(row: dict, runs: list[dict]) -> list[str]:
    """The labels of the other runs of its gallery."""
    same = [other for other in runs if other is not row and all(other[key] == row[key] for key in GALLERY)]
    return [other["labels_sha256"] for other in same]


def show(rows: list[dict], runs: list[dict]) -> None:
    memory = ("peak MB of a rank", "about", "at most")
    table = Table("N", "ranks", "threads", "seconds", *rows[0]["stages"], *memory, "clusters", "purity", "labels")
    for row in rows:
        stages = (f"{seconds:.2f}" for seconds in row["stages"].values())
        peak = f"{max(row['peak_bytes']) / 1e6:.0f}"
        found = set(others(row, runs))
        verdict = "" if not found else "equal" if found == {row["labels_sha256"]} else "WRONG"
        stated = (f"{row[name] / 1e6:.0f}" for name in ("expected_bytes", "estimated_bytes"))
        numbers = (*stated, f"{row['clusters']:,}", f"{row['purity']:.4f}", verdict)
        first = (f"{row['num_samples']:,}", str(row["ranks"]), str(row["threads"]), f"{row['seconds']:.1f}")
        table.add_row(*first, *stages, peak, *numbers)
    Console(width=200).print(table)


def page_table(runs: list[dict]) -> str:
    """For docs/scale.md."""
    lines = [
        "| N | d | ranks | all | search | encoding | expansion | join | DBSCAN | peak | about | at most | labels |",
        "|---|" + "---|" * 12,
    ]
    for row in sorted(runs, key=lambda row: (row["dim"], row["num_samples"])):
        ranks = f"{row['ranks']}"
        ranks += f" with {row['threads']} threads" if row["threads"] > 1 else ""
        ranks += f", {row['simd']}" if row["simd"] else ""
        seconds = [f"{value:.0f} s" if value >= 10 else f"{value:.2f} s" for value in row["stages"].values()]
        sizes = (max(row["peak_bytes"]), row["expected_bytes"], row["estimated_bytes"])
        cells = (f"{row['num_samples']:,}", f"{row['dim']:,}", ranks, f"{row['seconds']:.3g} s", *seconds)
        megabytes = (f"{size / 1e6:,.0f} MB" for size in sizes)
        lines.append(f"| {' | '.join((*cells, *megabytes, row['labels_sha256'][:6]))} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """docs/scale.md with its tables as the results have them."""
    for name in TABLES:
        begin, end = f"<!-- {name}, by python -m benchmarks.scale --write -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        if end not in rest:
            raise SystemExit(f"{PAGE} must have the line {begin!r} and after it {end!r}: a table goes between them")
        table = page_table(json.loads((RESULTS.parent / name).read_text())["runs"])
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    main()
