"""Bytes that a rank sends in every stage of a clustering over ranks: predicted from its schedule, and counted.

What a collective sends is counted as gloo sends it: a gathered part goes around the ring, parts of uneven lengths are
broadcast down a binomial tree, a sum or minimum goes around twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from dmic import blockwise, process_group
from dmic.blockwise import Ring

STAGES = ("knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan")


@dataclass(frozen=True)
class Seat:
    """A place in a group that sends nothing: all that a Ring asks for its schedule."""

    number: int
    ranks: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.ranks


@dataclass(frozen=True)
class Case:
    """A clustering over ranks, with what the data decides as means per row: measured, or assumed for a prediction."""

    offsets: tuple[int, ...]  # rank r owns the rows [offsets[r], offsets[r + 1])
    block_rows: int
    dim: int
    k1: int = 30
    k2: int = 6
    num_ids: int = 2  # kinds of ids that are given: cameras, modalities
    encoding_length: float = 30
    expanded_length: float = 60
    num_pairs: float = 11  # within eps, the sample with itself included
    rounds: int = 4  # of DBSCAN

    @classmethod
    def even(cls, num_samples: int, ranks: int, block_rows: int, dim: int, **means: Any) -> Case:
        """Rows are shared out as `process_group.share` does it."""
        return cls(tuple(num_samples * r // ranks for r in range(ranks + 1)), block_rows, dim, **means)

    @property
    def ranks(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_samples(self) -> int:
        return self.offsets[-1]

    def ring(self, rank: int) -> Ring:
        return Ring(Seat(rank, self.ranks), self.offsets, self.block_rows, torch.device("cpu"))

    def rows(self) -> list[int]:
        return [end - begin for begin, end in pairwise(self.offsets)]


def sent_bytes(case: Case, rank: int) -> dict[str, float]:
    """By one rank in every stage. `knn_graph` includes the lists that all gather after it.

    Exact where rows have one length: in `knn_graph` and `k_reciprocal_encoding`. The rest is right in the mean.
    """
    if case.ranks == 1:
        return dict.fromkeys(STAGES, 0.0)
    ring, ranks, n = case.ring(rank), case.ranks, case.num_samples
    half, others = list(ring.half_turns()), 8 * (ranks - 1)  # one number to every other rank
    most_blocks = ring.most_blocks
    lists = sum(8 * case.k1 * len(turn.received) + 16 for turn in half)
    features = sum(4 * (case.dim + 1) * len(turn.sent) for turn in half)
    fetches = most_blocks * 8 * others / 2  # four times how much comes
    fetches += 8 * sum(fetched_rows(case, len(rows)) * (n - len(ring.own)) for rows in ring.blocks(ring.own))
    for other in set(range(ranks)) - {rank}:
        asked = sum(fetched_rows(case, len(rows)) for rows in ring.blocks(ring.owned_by(other))) * len(ring.own)
        fetches += (8 + 8 * case.encoding_length) * asked
    rows = sum((4 + 8 * case.expanded_length) * len(turn.sent) + 24 * ring.of_partners().rounds(turn) for turn in half)
    met = sum(len(turn.received) * len(turn.met_by) for turn in half)
    return {
        "knn_graph": features + lists + gathered_bytes(case, rank, 4 * case.k1),
        "k_reciprocal_encoding": sum(4 * case.dim * len(turn.sent) for turn in ring.full_turns()),
        "invariant_expansion": (fetches + case.num_ids * gathered_bytes(case, rank, 8)) * (case.k2 > 1),
        "jaccard_distance": rows + 3 * others + 12 * met * (case.num_pairs - 1) / max(1, n - 1),
        "dbscan": gathered_bytes(case, rank, 1) + case.rounds * reduced_bytes(8 * n, ranks) + 2 * others,
    }


def fetched_rows(case: Case, block: int) -> float:
    """Share of the rows outside a block of so many that it averages over, each being in the list of k2 - 1 others."""
    return 1 - (1 - block / case.num_samples) ** (case.k2 - 1)


def gathered_bytes(case: Case, rank: int, row_bytes: int) -> float:
    """Of `process_group.all_gather_rows`, with the counts of rows."""
    parts = [row_bytes * rows for rows in case.rows()]
    counts = 8 * (case.ranks - 1)
    if len(set(parts)) == 1:
        return counts + (case.ranks - 1) * parts[0]
    return counts + sum(part * broadcasts(source, rank, case.ranks) for source, part in enumerate(parts))


def broadcasts(source: int, rank: int, ranks: int) -> int:
    """How often a rank sends what comes from the source: in step i, those that have it send it 2^i further."""
    place = (rank - source) % ranks
    steps = (1 << i for i in range(ranks.bit_length()))
    return sum(step > place and place + step < ranks for step in steps)


def reduced_bytes(nbytes: float, ranks: int) -> float:
    return 2 * (ranks - 1) / ranks * nbytes


class Counted:
    """torch.distributed, which counts what this rank sends in every phase of `process_group.Watch`."""

    def __init__(self):
        self.phase = "the start"
        self.sent: Counter[str] = Counter()
        self.rounds = 0  # minima of all ranks: those of DBSCAN

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def enter(self, phase: str) -> None:
        self.phase = phase

    def add(self, nbytes: float) -> None:
        self.sent[self.phase] += nbytes

    def batch_isend_irecv(self, operations: list[dist.P2POp]) -> list[dist.Work]:
        self.add(sum(operation.tensor.nbytes for operation in operations if operation.op is dist.isend))
        return dist.batch_isend_irecv(operations)

    def all_gather(self, parts: list[torch.Tensor], tensor: torch.Tensor, group: Any) -> None:
        self.add((group.size() - 1) * tensor.nbytes)
        dist.all_gather(parts, tensor, group=group)

    def broadcast(self, tensor: torch.Tensor, group_src: int, group: Any) -> None:
        self.add(tensor.nbytes * broadcasts(group_src, group.rank(), group.size()))
        dist.broadcast(tensor, group_src=group_src, group=group)

    def all_reduce(self, tensor: torch.Tensor, operation: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        self.add(reduced_bytes(tensor.nbytes, group.size()))
        self.rounds += operation == dist.ReduceOp.MIN
        dist.all_reduce(tensor, operation, group=group)

    def all_to_all_single(
        self, out: torch.Tensor, tensor: torch.Tensor, outs: Any = None, counts: Any = None, group: Any = None
    ) -> None:
        counts = counts or [len(tensor) // group.size()] * group.size()
        row = tensor.nbytes // max(1, len(tensor))
        self.add(row * (len(tensor) - counts[group.rank()]))
        dist.all_to_all_single(out, tensor, outs, counts, group=group)


@contextmanager
def counted(counter: Counted | None = None) -> Iterator[Counted]:
    """What this process sends for a clustering inside the block."""
    counter = counter or Counted()
    enter = process_group.Watch.enter

    def enter_counted(watch: process_group.Watch, phase: str) -> None:
        counter.enter(phase)
        enter(watch, phase)

    with (
        mock.patch.object(blockwise, "dist", counter),
        mock.patch.object(process_group, "dist", counter),
        mock.patch.object(process_group.Watch, "enter", enter_counted),
    ):
        yield counter
