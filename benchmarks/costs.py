"""What every CUDA kernel has to do, in numbers: operations, bytes, and the time that a GPU needs for them.

    python -m benchmarks.costs            # the tables of docs/kernels.md
    python -m benchmarks.costs --write    # puts them there

One table for two uses: docs/kernels.md predicts times from it before anything is measured, and `make gpu-check` divides
its floors by what it measures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- python -m benchmarks.costs --write -->", "<!-- end of the predictions -->"

# Per second. An H100's peaks, and what our kernels are expected to reach of them.
PEAK = {
    "tensor": 800e12,  # float16 operations, dense; the product that a library reaches
    "float64": 34e12,
    "conversion": 3.7e12,  # float32 to float64: 16 a cycle and multiprocessor
    "integer": 15e12,  # operations of 32 bits, and float32 comparisons
    "memory": 3.0e12,  # bytes, as a copy reaches them
    "cache": 5.5e12,  # bytes from the second-level cache
    "shared": 3.7e12,  # atomic additions in shared memory: 16 a cycle and multiprocessor
    "atomic": 0.2e12,  # atomic additions and scattered writes in the second-level cache
}
EXPECTED = PEAK | {
    "tensor": 450e12,
    "memory": 2.5e12,
    "cache": 4.5e12,
    "integer": 8e12,
    "shared": 0.5e12,  # probes and conflicts
    "atomic": 0.1e12,
}
LAUNCH_SECONDS = 5e-6
RATES = {
    "tensor": "float16 operations of the tensor cores",
    "memory": "memory",
    "cache": "second-level cache",
    "float64": "float64 operations",
    "conversion": "conversions from float32 to float64",
    "integer": "integer operations",
    "shared": "atomics in shared memory",
    "atomic": "atomics in the second-level cache",
}
LIMITERS = {
    "tensor": "tensor cores",
    "float64": "float64 units",
    "conversion": "conversions to float64",
    "integer": "integer units",
    "memory": "memory",
    "cache": "second-level cache",
    "shared": "atomics in shared memory",
    "atomic": "atomics in the second-level cache",
    "launch": "launches",
}
BYTES = ("memory", "cache")


@dataclass(frozen=True)
class Size:
    """A clustering, with what the data decides as means per row: measured, or assumed for a prediction."""

    num_samples: int
    dim: int
    k1: int = 40
    k2: int = 32
    encoding_length: float = 40
    expanded_length: float = 150
    num_pairs: float = 40
    candidates: float | None = None  # re-scored; None: a quarter more than k1
    num_redone: int = 0

    @property
    def rescored(self) -> float:
        return min(1.25 * self.k1 if self.candidates is None else self.candidates, self.num_samples)

    @property
    def scanned(self) -> float:
        """List entries that a row scans: its columns' lists hold about 1.8 times the square of its length, since long
        lists belong to more rows, and the bound leaves a quarter of them."""
        return 1.8 * self.expanded_length**2 / 4


Work = dict[str, float]


@dataclass(frozen=True)
class Kernel:
    """`work(size)`: what one call of the op asks of each of PEAK's rates; `launches(size)`: how often it starts."""

    op: str
    name: str
    work: Callable[[Size], Work]
    launches: Callable[[Size], int] = lambda size: 1

    def floor_seconds(self, size: Size) -> float:
        """The time at the peak of what limits it, if nothing else costs anything."""
        return max((amount / PEAK[rate] for rate, amount in self.work(size).items()), default=0.0)

    def expected_seconds(self, size: Size) -> float:
        return self._expected(size)[0]

    def limiter(self, size: Size) -> str:
        return LIMITERS[self._expected(size)[1]]

    def _expected(self, size: Size) -> tuple[float, str]:
        launches = self.launches(size)
        times = {rate: amount / EXPECTED[rate] for rate, amount in self.work(size).items()}
        slowest = max(times, key=times.__getitem__)
        starts = launches * LAUNCH_SECONDS
        return starts + times[slowest], slowest if times[slowest] > starts or not launches else "launch"


def search_waves(size: Size) -> int:
    """Waves of knn_graph, each as wide as all before it until a launch has 2^17 tiles, as its wrapper has them."""
    block = 256
    blocks = -(-size.num_samples // block)
    longest = max(1, 2**17 // (2 * blocks))
    waves, seen, shift = 0, 0, 0
    while shift <= blocks // 2:
        doubling = 1 if seen < max(2 * block, size.k1) else seen // (2 * block)
        shifts = min(1 if shift == 0 else doubling, longest, blocks // 2 + 1 - shift)
        seen += (1 if shift == 0 else 2) * shifts * block
        shift += shifts
        waves += 1
    return waves


def compare_tiles(size: Size) -> Work:
    n, d = size.num_samples, size.dim
    tile_rows, tile_cols = 128, 256
    tiles = n * n / 2 / (tile_rows * tile_cols)
    return {"tensor": n * n * d, "cache": tiles * 2 * (tile_rows + tile_cols) * d, "integer": 7 * n * n / 2}


def dots_with_gathered_rows(count: float, size: Size) -> Work:
    """Canonical dot products of every row with `count` others; four at a time share the row's own columns."""
    products = count * size.num_samples * size.dim
    return {"memory": 4 * 1.25 * products, "float64": 2 * products, "conversion": 1.25 * products}


def join_chunks(size: Size) -> int:
    """Launches of the join: of 8,192 rows after a first one of 1,024."""
    return 1 + -(-max(0, size.num_samples - 1024) // 8192)


def sort_work(length: float) -> float:
    """Operations to sort a row of this length in a bitonic network: eight for each comparison."""
    return 8 * length * math.log2(max(2.0, length)) ** 2 / 4


def per_row(rate: str, amount: Callable[[Size], float]) -> Callable[[Size], Work]:
    return lambda size: {rate: amount(size) * size.num_samples}


KERNELS = [
    Kernel("round_features", "round_features_kernel", per_row("memory", lambda s: 6 * s.dim)),
    Kernel("knn_graph", "knn_graph_norms_kernel", per_row("memory", lambda s: 4 * s.dim)),
    Kernel("knn_graph", "round_features_kernel", per_row("memory", lambda s: 6 * s.dim)),
    Kernel("knn_graph", "knn_graph_start_kernel", per_row("memory", lambda s: 40)),
    Kernel("knn_graph", "knn_graph_compare_kernel", compare_tiles, search_waves),
    Kernel(
        "knn_graph",
        "knn_graph_compact_kernel",
        lambda s: {
            "integer": s.num_samples * (256**2 + search_waves(s) * (2.25 * s.k1) ** 2),
            "cache": s.num_samples * search_waves(s) * 2.25 * s.k1 * 40,
        },
        search_waves,
    ),
    Kernel("knn_graph", "knn_graph_finish_kernel", lambda s: dots_with_gathered_rows(s.rescored, s)),
    Kernel(
        "knn_graph",
        "knn_graph_redo_distances_kernel",
        lambda s: {
            "float64": 2.0 * s.num_redone * s.num_samples * s.dim,
            "conversion": 1.25 * s.num_redone * s.num_samples * s.dim,
            "memory": 4.0 * s.num_redone / 4 * s.num_samples * s.dim,
        },
        lambda s: int(s.num_redone > 0),
    ),
    Kernel(
        "knn_graph",
        "knn_graph_redo_select_kernel",
        lambda s: {"memory": 24.0 * s.num_redone * s.num_samples},
        lambda s: int(s.num_redone > 0),
    ),
    Kernel("k_reciprocal_encoding", "check_finite_kernel", per_row("memory", lambda s: 4 * s.dim)),
    Kernel("k_reciprocal_encoding", "check_neighbors_kernel", per_row("integer", lambda s: s.k1**2)),
    Kernel("k_reciprocal_encoding", "mark_reciprocal_kernel", per_row("cache", lambda s: 4 * s.k1**2)),
    Kernel(
        "k_reciprocal_encoding",
        "expand_kernel",
        per_row("atomic", lambda s: 2 * (s.k1 + s.encoding_length)),
        lambda s: 2,
    ),
    Kernel("k_reciprocal_encoding", "sort_rows_kernel", per_row("integer", lambda s: sort_work(s.encoding_length))),
    Kernel("k_reciprocal_encoding", "sampled_dots_kernel", lambda s: dots_with_gathered_rows(s.encoding_length, s)),
    Kernel("k_reciprocal_encoding", "weigh_members_kernel", per_row("memory", lambda s: 28 * s.encoding_length)),
    Kernel("k_reciprocal_encoding", "drop_zeros_kernel", per_row("memory", lambda s: 16 * s.encoding_length)),
    Kernel("invariant_expansion", "check_row_ptr_kernel", per_row("memory", lambda s: 8)),
    Kernel("invariant_expansion", "check_rows_kernel", per_row("memory", lambda s: 8 + 8 * s.encoding_length)),
    Kernel("invariant_expansion", "check_neighbors_kernel", per_row("integer", lambda s: s.k2**2)),
    Kernel("invariant_expansion", "weigh_neighbors_kernel", per_row("integer", lambda s: 8 * s.k2**2)),
    Kernel(
        "invariant_expansion",
        "merge_neighbors_kernel",
        lambda s: {
            "shared": 2 * s.num_samples * s.k2 * s.encoding_length,
            "cache": 2 * 8 * s.num_samples * s.k2 * s.encoding_length,
            "integer": s.num_samples * sort_work(s.expanded_length),
        },
        lambda s: 2,
    ),
    Kernel("jaccard_distance", "check_row_ptr_kernel", per_row("memory", lambda s: 8)),
    Kernel("jaccard_distance", "check_rows_kernel", per_row("memory", lambda s: 8 + 8 * s.expanded_length)),
    Kernel("jaccard_distance", "count_kernel", per_row("atomic", lambda s: s.expanded_length)),
    Kernel("jaccard_distance", "lists_kernel", per_row("atomic", lambda s: 2 * s.expanded_length)),
    Kernel(
        "jaccard_distance",
        "sort_kernel",  # the lists, the columns of a row by weight, and the pairs
        per_row("integer", lambda s: 2 * sort_work(s.expanded_length) + sort_work(s.num_pairs)),
        lambda s: 2 + join_chunks(s),
    ),
    Kernel(
        "jaccard_distance",
        "weigh_kernel",
        per_row("memory", lambda s: 16 * s.expanded_length),
        lambda s: join_chunks(s),
    ),
    Kernel(
        "jaccard_distance",
        "plan_kernel",
        per_row("cache", lambda s: 10 * 32 * s.expanded_length),
        lambda s: join_chunks(s),
    ),
    Kernel(
        "jaccard_distance",
        "join_kernel",
        lambda s: {"shared": s.num_samples * s.scanned, "cache": 8 * s.num_samples * s.scanned},
        lambda s: join_chunks(s),
    ),
    Kernel("jaccard_distance", "join_spilled_kernel", lambda s: {"atomic": 0.0}, lambda s: 0),
    Kernel("jaccard_distance", "diagonal_lengths_kernel", per_row("memory", lambda s: 12)),
    Kernel("jaccard_distance", "diagonal_kernel", per_row("memory", lambda s: 32)),
    Kernel("jaccard_distance", "mirror_kernel", per_row("atomic", lambda s: 2 * s.num_pairs)),
    Kernel("jaccard_distance", "unpack_kernel", per_row("memory", lambda s: 16 * s.num_pairs)),
    Kernel("dbscan", "check_row_ptr_kernel", per_row("memory", lambda s: 8)),
    Kernel("dbscan", "check_rows_kernel", per_row("memory", lambda s: 8 + 4 * s.num_pairs)),
    Kernel("dbscan", "dbscan_core_kernel", per_row("memory", lambda s: 8 + 8 * s.num_pairs)),
    Kernel("dbscan", "dbscan_join_kernel", per_row("atomic", lambda s: s.num_pairs)),
    Kernel("dbscan", "dbscan_flatten_kernel", per_row("memory", lambda s: 13)),
    Kernel("dbscan", "dbscan_label_kernel", per_row("memory", lambda s: 20 + s.num_pairs)),
]


def floor_seconds(op: str, size: Size) -> float:
    """Of an op whose kernels, one after the other, run at their peaks."""
    return sum(kernel.floor_seconds(size) for kernel in KERNELS if kernel.op == op)


def expected_seconds(op: str, size: Size) -> float:
    return sum(kernel.expected_seconds(size) for kernel in KERNELS if kernel.op == op)


PREDICTED = [Size(n, 2048) for n in (34_167, 126_441, 1_000_000)]


def quantity(value: float, unit: str) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def amounts(work: Work) -> tuple[str, str]:
    """Operations and bytes of a kernel: the largest of each."""
    operations = {rate: amount for rate, amount in work.items() if rate not in BYTES}
    moved = {rate: amount for rate, amount in work.items() if rate in BYTES}
    words = {"tensor": "float16", "conversion": "to float64", "shared": "shared atomic", "cache": "from cache"}
    texts = []
    for amounts_, unit in ((operations, "op"), (moved, "B")):
        rate = max(amounts_, key=lambda name: amounts_[name] / EXPECTED[name], default=None)
        text = "" if rate is None else quantity(amounts_[rate], unit)
        texts.append(f"{text} {words.get(rate, rate)}" if text and rate != "memory" else text)
    return texts[0], texts[1]


def prediction() -> str:
    """The tables of docs/kernels.md."""
    lines = ["| a second | peak | expected |", "|---|---|---|"]
    for rate, name in RATES.items():
        unit = "B" if rate in BYTES else "op"
        lines.append(f"| {name} | {quantity(PEAK[rate], unit)} | {quantity(EXPECTED[rate], unit)} |")
    headers = [f"N = {size.num_samples:,}" for size in PREDICTED]
    middle = PREDICTED[1]
    lines += ["", f"| op | kernel | operations, {headers[1]} | bytes, {headers[1]} | limiter | {' | '.join(headers)} |"]
    lines.append("|---|---|---|---|---|" + "---|" * len(PREDICTED))
    for op in dict.fromkeys(kernel.op for kernel in KERNELS):
        kernels = [kernel for kernel in KERNELS if kernel.op == op and any(kernel.work(middle).values())]
        total = sum(kernel.expected_seconds(middle) for kernel in kernels)
        large = [kernel for kernel in kernels if kernel.expected_seconds(middle) >= 0.02 * total]
        for kernel in large:
            operations, moved = amounts(kernel.work(middle))
            times = " | ".join(duration(kernel.expected_seconds(size)) for size in PREDICTED)
            name = kernel.name.removesuffix("_kernel")
            lines.append(f"| `{op}` | `{name}` | {operations} | {moved} | {kernel.limiter(middle)} | {times} |")
        if small := [kernel for kernel in kernels if kernel not in large]:
            times = (sum(kernel.expected_seconds(size) for kernel in small) for size in PREDICTED)
            lines.append(f"| `{op}` | the rest | | | | {' | '.join(map(duration, times))} |")
    ops = [op for op in dict.fromkeys(kernel.op for kernel in KERNELS) if op != "round_features"]
    lines += ["", f"| op | what | {' | '.join(headers)} |", "|---|---|" + "---|" * len(PREDICTED)]
    for op in ops:
        for what, seconds_of in (("floor", floor_seconds), ("predicted", expected_seconds)):
            times = " | ".join(duration(seconds_of(op, size)) for size in PREDICTED)
            lines.append(f"| `{op}` | {what} | {times} |")
    for what, seconds_of in (("floor", floor_seconds), ("predicted", expected_seconds)):
        times = " | ".join(duration(sum(seconds_of(op, size) for op in ops)) for size in PREDICTED)
        lines.append(f"| all five | {what} | {times} |")
    return "\n".join(lines) + "\n"


def page_with_prediction() -> str:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{prediction()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page_with_prediction())
    else:
        print(prediction())


if __name__ == "__main__":
    main()
