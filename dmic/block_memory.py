"""How many rows a block may have: what a clustering in blocks needs, before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from . import directions

MAX_BLOCK_ROWS = 1 << 16  # of a block where memory allows more
MIN_BLOCK_ROWS = 1 << 10
ENTRY_BYTES = 8  # of a stored value of a Csr
EDGE_BYTES = 12  # of a pair in one direction while pairs are collected


@dataclass(frozen=True)
class Search:
    """The parameters of a clustering, checked."""

    k1: int
    k2: int
    eps: float
    min_samples: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that each stage holds at its peak, results of earlier stages included, features not."""

    stages: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        return max(self.stages.values(), default=0)

    def __str__(self) -> str:
        return f"{format_bytes(self.peak_bytes)} (in {max(self.stages, key=self.stages.__getitem__)})"


def format_bytes(count: int) -> str:
    """Bytes for people: 1 MB is 10**6 bytes."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def block_memory(num_samples: int, num_own: int, num_features: int, search: Search, block_rows: int) -> dict[str, int]:
    """Bytes beyond the features that a rank needs in each stage, on a CPU; assumptions as in `estimate_memory`."""
    k1, k2, eps = search.k1, search.k2, search.eps
    n, own, block = num_samples, num_own, min(block_rows, num_own)
    alone = num_own == num_samples
    lists, copies = 4 * n * k1, 3 if alone else 7  # blocks of features: two and both in one; with those under way
    searched = directions.scratch_bytes(2 * block, num_features)
    candidates = 2 * block * (ENTRY_BYTES * (3 * k1 + 64) + 48)
    if searched:
        candidates += 8 * block * (directions.WIDTHS[-1] + 1 + k1)
    workers = torch.get_num_threads() * (7_000_000 + 2_000 * num_features)
    encoding = ENTRY_BYTES * own * min(n, 2 * k1)
    expanded = encoding if k2 == 1 else ENTRY_BYTES * own * min(n, max(2 * k1, k1 * k2))
    overlap = 2 * (1 - eps) / (2 - eps)
    pairs = own * min(n, math.ceil(k1 / max(overlap, 1 / 3)))
    share = min(1.0, block / max(1, own))
    in_blocks = 4 * copies * block * num_features + max(candidates, searched) + 64 * block * k1
    sent_back = 0 if alone else 72 * own * k1  # what another rank found for all rows, and merging it
    return {
        "knn_graph": (8 if alone else 16) * own * k1 + max(in_blocks, sent_back) + workers,
        "k_reciprocal_encoding": lists + 4 * copies * block * num_features + 3 * encoding + 16 * n + workers,
        "invariant_expansion": lists
        + encoding
        + int((1 + share) * expanded)
        + int(share * encoding)
        + 12 * n
        + workers,
        "jaccard_distance": expanded + int(6 * share * expanded) + (EDGE_BYTES + 24) * pairs + workers,
        "dbscan": 40 * pairs + 48 * n,
    }


def choose_block_rows(
    name: str, num_samples: int, num_own: int, num_features: int, search: Search, max_memory: int | None
) -> int:
    """The most rows of a block with which `max_memory` is enough; ValueError if there are none."""
    block_rows = max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, num_own))
    while max_memory is not None:
        stages = block_memory(num_samples, num_own, num_features, search, block_rows)
        if max(stages.values()) <= max_memory:
            break
        if block_rows == MIN_BLOCK_ROWS:
            stage = max(stages, key=stages.__getitem__)
            raise ValueError(
                f"{name}: about {format_bytes(stages[stage])} is needed in {stage}, even in blocks of {block_rows} "
                f"rows, max_memory allows {format_bytes(max_memory)}; raise it, lower k1={search.k1}, k2={search.k2} "
                f"or eps={search.eps}, or use more ranks"
            )
        block_rows = max(MIN_BLOCK_ROWS, block_rows // 2)
    return block_rows
