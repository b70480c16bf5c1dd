"""The search with instruction sets of this processor in turn, by default its best three: seconds, and equal bits.

    python -m benchmarks.levels

Generated easy features in memory, with the directions that each instruction set would take.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dmic import build_info, ops
from dmic._native import set_simd_level

from . import measuring
from .sizes import generate_gallery

RESULTS = Path(__file__).parent / "results" / "levels.json"
CASES = ((34_167, 256, 30, 2), (34_167, 2_048, 40, 2), (50_000, 256, 30, 1))  # N, d, k1, threads
REPEATS = 5


def measure(num_samples: int, dim: int, k1: int, threads: int, levels: list[str], repeats: int) -> list[dict]:
    """A row for each instruction set, in the order of `levels`."""
    features = torch.as_tensor(generate_gallery(num_samples, dim).features)
    seconds: dict[str, list[float]] = {level: [] for level in levels}
    directions, want, before = {}, None, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(repeats):
            for level in levels:
                set_simd_level(level)
                directions[level] = len(ops.search_directions(features, k1, num_samples))
                start = time.perf_counter()
                found = ops.knn_graph(features, k1)
                seconds[level].append(time.perf_counter() - start)
                want = found if want is None else want
                if not all(map(torch.equal, found, want)):
                    raise AssertionError(f"{level}: other bits than {levels[0]}")
    finally:
        set_simd_level(None)
        torch.set_num_threads(before)
    case = {"num_samples": num_samples, "dim": dim, "k1": k1, "threads": threads}
    return [
        {**case, "simd": level, "directions": directions[level], "seconds": measuring.spread(seconds[level])}
        for level in levels
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    available = build_info()["simd_available"]
    parser.add_argument("--levels", nargs="+", choices=available, default=available[-3:])
    parser.add_argument("--quick", action="store_true", help="small galleries, once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    command = f"python -m benchmarks.levels --levels {' '.join(options.levels)}{' --quick' * options.quick}"
    about = {"command": command, "commit": measuring.commit(), "machine": measuring.machine()}
    about["versions"] = measuring.versions()
    table = Table("N", "d", "k1", "threads", "instructions", "directions", "seconds")
    rows = []
    for num_samples, dim, k1, threads in CASES:
        size = num_samples // 40 if options.quick else num_samples
        rows += measure(size, dim, k1, threads, options.levels, 1 if options.quick else REPEATS)
    for row in rows:
        names = ("num_samples", "dim", "k1", "threads", "simd", "directions")
        table.add_row(*(str(row[name]) for name in names), f"{row['seconds']['median']:.3g}")
    Console(width=120).print(table)
    options.results.write_text(json.dumps({**about, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
