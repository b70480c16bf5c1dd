"""Galleries from a file, in blocks and over ranks: time of each stage, memory of each rank, agreement, quality.

    python -m benchmarks.scale --num-samples 100000 --ranks 1 2 4 --max-memory 1GB
    python -m benchmarks.scale --num-samples 1000000 --max-memory 4GB

Every row of the table is one run of R processes over gloo with one thread each, unless `--threads` says otherwise.
Features are generated (`benchmarks.sizes`) and written to a file, which the ranks read. Peak memory is the high-water
mark of a rank above what it held before it read anything. Runs join what the JSON file has.
"""

from __future__ import annotations

import argparse
import json
import os
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
from dmic.block_memory import LIBRARY_BYTES, Search, block_memory, choose_block_rows, expected_memory
from dmic.commands.cluster import parse_bytes

from . import measuring
from .sizes import generate_gallery

RESULTS = Path(__file__).parent / "results" / "scale.json"
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


def estimate(num_samples: int, ranks: int, dim: int, search: Search, max_memory: int, threads: int) -> tuple[int, int]:
    """What a rank was said to need at most, before the work, and about."""
    case = num_samples, -(-num_samples // ranks), ranks, dim, search
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    block_rows = choose_block_rows("scale", *case, max_memory)
    most, about = block_memory(*case, block_rows), expected_memory(*case, block_rows)
    torch.set_num_threads(before)
    return max(most.values()), about.peak_bytes + LIBRARY_BYTES


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
    parser.add_argument("--max-memory", type=parse_bytes, default=parse_bytes("4GB"))
    parser.add_argument("--k1", type=int, default=30)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where the gallery is kept; by default in a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        run_rank(options.rank_of, options.out, options.settings)
        return
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
        first, rows = None, []
        for ranks in options.ranks:
            most, about = estimate(options.num_samples, ranks, options.dim, search, options.max_memory, options.threads)
            measured, labels = run(folder, ranks, settings)
            first = labels if first is None else first
            same = bool(np.array_equal(labels, first))
            rows.append(
                {
                    **case,
                    "ranks": ranks,
                    "estimated_bytes": most,
                    "expected_bytes": about,
                    **measured,
                    "equal": same,
                    **quality(labels, person_ids),
                }
            )
    show(rows)
    write(options.results, rows)
    if not all(row["equal"] for row in rows):
        raise SystemExit("labels differ between numbers of ranks")


def show(rows: list[dict]) -> None:
    memory = ("peak MB of a rank", "about", "at most")
    table = Table("N", "ranks", "seconds", *rows[0]["stages"], *memory, "clusters", "purity", "labels")
    for row in rows:
        stages = (f"{seconds:.2f}" for seconds in row["stages"].values())
        peak = f"{max(row['peak_bytes']) / 1e6:.0f}"
        verdict = "equal" if row["equal"] else "WRONG"
        stated = (f"{row[name] / 1e6:.0f}" for name in ("expected_bytes", "estimated_bytes"))
        numbers = (*stated, f"{row['clusters']:,}", f"{row['purity']:.4f}", verdict)
        table.add_row(f"{row['num_samples']:,}", str(row["ranks"]), f"{row['seconds']:.1f}", *stages, peak, *numbers)
    Console(width=200).print(table)


def write(path: Path, rows: list[dict]) -> None:
    """Beside the runs of other cases; of this commit and machine alone."""
    about = {"commit": measuring.commit(), "machine": measuring.machine(), "versions": measuring.versions()}
    kept = json.loads(path.read_text()) if path.exists() else {"runs": []}
    if any(kept.get(name) != value for name, value in about.items()):
        kept = {**about, "runs": []}
    keys = ("num_samples", "dim", "ranks", "threads", "max_memory", "simd")
    new = {tuple(row[key] for key in keys) for row in rows}
    kept["runs"] = [row for row in kept["runs"] if tuple(row[key] for key in keys) not in new] + rows
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
