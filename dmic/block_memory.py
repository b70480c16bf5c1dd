"""How many rows a block may have: what a clustering in blocks needs, before any work."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import directions

MAX_BLOCK_ROWS = 1 << 16  # of a block where memory allows more
MIN_BLOCK_ROWS = 1 << 10
LIBRARY_BYTES = 14_000_000  # of libraries on their first use
RANK_LIBRARY_BYTES = 30_000_000  # of them and of messages under way in a rank of several: up to twice that
ENTRY_BYTES = 8  # of a stored value of a Csr
MERGED_ROWS = 1 << 12  # of lists that are merged at a time
EDGE_BYTES = 12  # of a pair in one direction while pairs are collected
LAID_OUT_BYTES = 20  # of one where all are laid out: as found, and in order
SENT_BYTES = 4  # of one in the last message, which the backend may hold on to
GPU_SCRATCH_BYTES = 300_000_000  # of the blocks of any kernel, at most
GPU_LIST_ROOM = 256  # of the candidates of a row, at least
GPU_JOINED_ROWS = 1 << 13  # whose pairs a kernel looks for at a time,
GPU_JOINED_VALUES = 1 << 25  # and what is stored of them, at most
GPU_LAID_OUT_BYTES = 23  # of a pair in one direction where all are laid out: as found, in order, and three masks
GPU_SORTED_BYTES = 72  # of one of a block beside that: its key, sorted keys and places, and torch's copies of these


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


@dataclass(frozen=True)
class Lengths:
    """Values that are stored for a row, as means: what the data decides."""

    encoding: float
    expanded: float
    pairs: float  # within eps, the sample with itself included

    @classmethod
    def assumed(cls, num_samples: int, search: Search) -> Lengths:
        """Before anything is known; see `estimate_memory`."""
        k1, k2, eps = search.k1, search.k2, search.eps
        overlap = 2 * (1 - eps) / (2 - eps)
        lengths = 2 * k1, 2 * k1 if k2 == 1 else max(2 * k1, k1 * k2), math.ceil(k1 / max(overlap, 1 / 3))
        return cls(*(min(num_samples, length) for length in lengths))

    @classmethod
    def usual(cls, num_samples: int, search: Search) -> Lengths:
        """Where identities are clear and have 3 to 10 images."""
        k1 = search.k1
        lengths = 0.8 * k1, 0.8 * k1 if search.k2 == 1 else 2.5 * k1, k1 / 4
        return cls(*(min(num_samples, length) for length in lengths))


def block_memory(
    num_samples: int,
    num_own: int,
    num_ranks: int,
    num_features: int,
    search: Search,
    block_rows: int,
    lengths: Lengths | None = None,
    device: Any = "cpu",
) -> dict[str, int]:
    """Bytes beyond the features that a rank needs in each stage if blocks come from a file.

    On a GPU they are of its own memory, and of tensors alone: the CUDA context, libraries and what torch's allocator
    keeps free come on top. In the host's memory two blocks of the features are pinned then, four if there are other
    ranks, at most 4 block_rows d bytes each, which torch rounds up to a power of two.

    Args:
        num_samples: of the gallery.
        num_own: of the rank that has most of them.
        num_ranks, num_features, search, block_rows: what else decides.
        lengths: what the data decides; None assumes so much that the result is a bound, as `estimate_memory` does.
        device: where the blocks are.
    """
    n, own, d, k1, k2 = num_samples, num_own, num_features, search.k1, search.k2
    lengths = lengths or Lengths.assumed(n, search)
    alone, threads = num_ranks == 1, torch.get_num_threads()
    cut = _Cut.of(n, own, num_ranks, k2, block_rows)
    block, met, fetched, blocks = cut.block, cut.met, cut.fetched, cut.blocks
    if on_gpu(device):
        return _gpu_memory(n, own, num_ranks, d, search, cut, lengths)
    lists, found = 4 * k1 * n, 8 * k1 * own
    encoding, expanded, pairs = ENTRY_BYTES * lengths.encoding, ENTRY_BYTES * lengths.expanded, lengths.pairs * own
    workers, sent = threads * (7_000_000 + 2_000 * d), 0 if alone else SENT_BYTES
    # blocks that meet, and others on their way
    passing = min(2, blocks) if alone else 2 if num_ranks == 2 and blocks == 1 else 4
    stages = {
        "knn_graph": [
            found + (0 if alone else found) + search_memory(n, block, met, d, k1, copies=_copies(num_ranks, blocks, 2)),
            found + (0 if alone else 2 * found + 4 * d * met) + merge_memory(block, k1),
        ],
        "k_reciprocal_encoding": [
            lists + encoding * own + (16 + 8 * threads) * n,
            lists + encoding * (1.5 * own + 2.7 * block) + 4 * d * block * passing,
            lists + encoding * 3 * own,
        ],
        "invariant_expansion": [
            lists + encoding * (own + 4 * fetched) + expanded * (own - block) + 16 * n,
            lists + encoding * (own + fetched) + expanded * (own + block / 2) + (20 + 8 * threads) * n,
            lists + encoding * own + expanded * own * (1.5 if blocks > 1 else 1) + 16 * n,
        ],
        "jaccard_distance": [
            expanded * (own + cut.joined)
            + EDGE_BYTES * pairs
            + 8 * lengths.pairs * cut.partners
            + (20 + 8 * threads) * (own if alone else own + cut.partners)
            + (17 + 12 * threads) * n,
            expanded * own + (LAID_OUT_BYTES + sent) * pairs + 60 * lengths.pairs * block,
        ],
        "dbscan": [8 * pairs + (24 * n if alone else 70 * lengths.pairs * block + 48 * n)],
    }
    if k2 == 1:
        del stages["invariant_expansion"]
    return {stage: int(max(moments)) + workers for stage, moments in stages.items()}


def _gpu_memory(
    n: int, own: int, num_ranks: int, d: int, search: Search, cut: _Cut, lengths: Lengths
) -> dict[str, int]:
    """`block_memory` of the kernels of `csrc/cuda`, and of torch between them.

    Tests measure all but what torch takes only on a GPU, to sort.
    """
    k1, k2, alone = search.k1, search.k2, num_ranks == 1
    block, met, fetched, blocks = cut.block, cut.met, cut.fetched, cut.blocks
    lists, found = 4 * k1 * n, 8 * k1 * own
    encoding, expanded, pairs = ENTRY_BYTES * lengths.encoding, ENTRY_BYTES * lengths.expanded, lengths.pairs * own
    chunk = min(GPU_JOINED_ROWS, own)  # scans of its values and of those before, and room for pairs
    planned = 40 * min(GPU_JOINED_VALUES, lengths.expanded * chunk) + 20 * lengths.pairs * chunk
    joined = EDGE_BYTES * pairs + expanded * own + 20 * n
    ahead = 4 * d * block * (2 if not alone else blocks > 1)  # on their way from the host
    stages = {
        "knn_graph": [
            (found if alone else 2 * found)
            + ahead
            + search_memory(n, block, met, d, k1, _copies(num_ranks, blocks, 2.5), "cuda"),
            0 if alone else 3 * found + _gpu_merge_memory(own, k1) + (12 * d + 8 * k1) * block + ahead,
        ],
        "k_reciprocal_encoding": [
            lists + encoding * (1.5 * own + 2.7 * block) + 4 * d * block * (min(2, blocks) if alone else 4) + ahead,
            lists + encoding * 3 * own + 16 * own,
        ],
        "invariant_expansion": [
            lists + encoding * (own + 3.5 * fetched) + expanded * (own - block) + 48 * fetched + 20 * k2 * block,
            lists
            + encoding * (own + fetched)
            + expanded * own * (1.5 if blocks > 1 else 1)
            + (16 * k2 + 40) * block
            + 36 * fetched
            + 32 * own,
        ],
        "jaccard_distance": [
            joined
            + expanded * cut.joined
            + planned
            + 8 * lengths.pairs * cut.partners
            + 40 * (own if alone else own + cut.partners),
            expanded * own
            + (GPU_LAID_OUT_BYTES + (0 if alone else SENT_BYTES)) * pairs
            + GPU_SORTED_BYTES * lengths.pairs * block
            + 24 * own,
        ],
        "dbscan": [8 * pairs + (20 * n if alone else 76 * lengths.pairs * block + 50 * n)],
    }
    if k2 == 1:
        del stages["invariant_expansion"]
    always = GPU_SCRATCH_BYTES + 24 * n  # ids, and where rows begin
    return {stage: int(max(moments)) + always for stage, moments in stages.items()}


def expected_memory(
    num_samples: int,
    num_own: int,
    num_ranks: int,
    num_features: int,
    search: Search,
    block_rows: int,
    device: Any = "cpu",
) -> MemoryEstimate:
    """What is likely, where `block_memory` is a bound: with LIBRARY_BYTES, the peak of a process that is new."""
    case = num_samples, num_own, num_ranks, num_features, search, block_rows
    return MemoryEstimate(block_memory(*case, Lengths.usual(num_samples, search), device))


def search_memory(
    num_samples: int, block: int, met: int, num_features: int, k1: int, copies: float, device: Any = "cpu"
) -> float:
    """Bytes of `blockwise.knn_graph` beside the lists: a block with itself, and two with `met` rows that meet.

    Args:
        copies: of the features of two blocks that meet: theirs, and what is under way meanwhile, with the room in front
            of it on a GPU; a CPU has no pages of that yet.
        device: where the blocks are.
    """
    if on_gpu(device):
        return _gpu_search_memory(block, met, num_features, k1, copies)
    candidates, found = ENTRY_BYTES * (2 * k1 + 32) + 40, ENTRY_BYTES * k1
    directed = directions.scratch_bytes(num_samples, num_features)
    sketch = 4 * (directions.most(num_features) + 1) if directed else 0
    alone = 4 * num_features + found + candidates + (sketch + 4 * k1 if sketch else 0)
    both = 4 * copies * num_features + found + candidates + sketch
    first = directed + 4 * num_features * block
    return max(first, block * alone, met * both + merge_memory(block, k1))


def _copies(num_ranks: int, blocks: int, most: float) -> float:
    """Of two blocks that meet, in `blockwise.knn_graph`: up to `most` where own blocks are loaded and sent one by one.
    An only one stays, and beside it is what arrives: a block if there are three ranks, two of more, the halves of one.
    """
    if num_ranks == 1:
        return 1
    return most if blocks > 1 else {2: 2, 3: 1}.get(num_ranks, 1.5)


def merge_memory(rows: int, k1: int) -> int:
    """Bytes that `blockwise.Lists.merge` takes for so many rows."""
    return 32 * k1 * min(MERGED_ROWS, rows)


def _gpu_search_memory(block: int, met: int, d: int, k1: int, copies: float) -> float:
    """`search_memory` of the kernels: float16 features, candidates, and bounds of every row."""
    wide = -(-d // 8) * 8
    row = ENTRY_BYTES * (max(GPU_LIST_ROOM, 3 * k1 + 64) + k1) + 2 * wide + 48 + (4 * wide if wide > d else 0)

    def compared(rows: int) -> int:  # and merged when candidates are no more, a block at a time
        return max(row * rows, 8 * k1 * rows + _gpu_merge_memory(block, k1))

    alone = 4 * d * block + compared(block)
    both = 4 * copies * d * met + 20 * met + compared(met)
    return max(alone, both + 8 * k1 * block if met else 0)  # what the one found by itself is there


def _gpu_merge_memory(rows: int, k1: int) -> int:
    """`merge_memory` of torch on a GPU: keys of either list, one of them in reverse, and the nearest sorted."""
    return 64 * k1 * min(MERGED_ROWS, rows)


def most_pairs(
    max_memory: int,
    encoding_bytes: int,
    num_samples: int,
    num_own: int,
    num_ranks: int,
    block_rows: int,
    device: Any = "cpu",
) -> int:
    """How many pairs within eps `max_memory` has room for beside the rows of a rank, each counted once."""
    cut = _Cut.of(num_samples, num_own, num_ranks, 1, block_rows)
    of_own = encoding_bytes / max(1, num_own)
    share = cut.block / max(1, num_own)  # of the rows whose pairs are sorted at a time
    sent = 0 if num_ranks == 1 else SENT_BYTES
    if not on_gpu(device):
        collected = (max_memory - encoding_bytes - of_own * cut.joined) / (EDGE_BYTES + 24)
        laid_out = (max_memory - encoding_bytes) / (LAID_OUT_BYTES + sent + 60 * share)
        return max(0, int(min(collected, laid_out) / 2))
    left = max_memory - GPU_SCRATCH_BYTES - 76 * num_samples - encoding_bytes
    scanned = of_own * (cut.joined + 5 * min(GPU_JOINED_ROWS, num_own))
    collected = (left - scanned) / (EDGE_BYTES + 24 * min(1, 2 * cut.partners / max(1, num_own)))
    laid_out = left / (GPU_LAID_OUT_BYTES + sent + GPU_SORTED_BYTES * share)
    return max(0, int(min(collected, laid_out) / 2))


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it for later (glibc): what comes next takes other
    sizes, and would be on top of it."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def on_gpu(device: Any) -> bool:
    """Whether a device, or its name, is a GPU."""
    return torch.device(device).type == "cuda"


class _Cut(NamedTuple):
    """Rows that are dealt with at a time, the most of them."""

    block: int
    met: int  # in two blocks that meet
    fetched: float  # that those of a block average over
    blocks: int  # of a rank
    partners: int  # in a block that is joined with all own rows
    joined: int  # whose values, as received and in inverted lists, are there at a time

    @classmethod
    def of(cls, num_samples: int, num_own: int, num_ranks: int, k2: int, block_rows: int) -> _Cut:
        n, block, blocks = num_samples, _largest_block(num_own, block_rows), -(-num_own // block_rows)
        met = 2 * block if num_ranks > 1 or blocks > 1 else 0
        if num_ranks == 2 and blocks == 1:
            met = 2 * _largest_block(-(-num_own // 2), block_rows)
        fetched = block + (n - block) * (1 - (1 - block / max(1, n)) ** (k2 - 1))
        most = joined_rows(block_rows, num_ranks)
        partners = _largest_block(num_own, most)
        received = 0 if num_ranks == 1 else _largest_block(-(-num_own // 2) if num_ranks == 2 else num_own, most)
        return cls(block, met, fetched, blocks, partners, max(partners, 2 * received))


def joined_rows(block_rows: int, num_ranks: int) -> int:
    """The most rows of a block that is joined with all own rows: its inverted lists take what its values do, and so do
    those values, unless they are own ones."""
    return block_rows * (3 if num_ranks == 1 else 2)


def _largest_block(rows: int, block_rows: int) -> int:
    """As `blockwise.Ring.blocks` cuts them."""
    return -(-rows // max(1, -(-rows // block_rows)))


def block_sizes(num_own: int) -> list[int]:
    """The rows that a block may have, the most first."""
    sizes = [max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, num_own))]
    while sizes[-1] > MIN_BLOCK_ROWS:
        sizes.append(max(MIN_BLOCK_ROWS, sizes[-1] // 2))
    return sizes


def choose_block_rows(
    name: str,
    num_samples: int,
    num_own: int,
    num_ranks: int,
    num_features: int,
    search: Search,
    max_memory: int | None,
    device: Any = "cpu",
) -> int:
    """The most rows of a block with which `max_memory`, of the GPU on one, is enough; ValueError if there are none.

    Smaller blocks need less but for the rows that are laid out once there is more than one.
    """
    sizes = block_sizes(num_own)
    if max_memory is None:
        return sizes[0]
    case = num_samples, num_own, num_ranks, num_features, search
    needed = {rows: block_memory(*case, rows, device=device) for rows in sizes}
    for rows in sizes:
        if max(needed[rows].values()) <= max_memory:
            return rows
    rows = min(sizes, key=lambda rows: max(needed[rows].values()))
    stage = max(needed[rows], key=needed[rows].__getitem__)
    raise ValueError(
        f"{name}: about {format_bytes(needed[rows][stage])}{' of GPU memory' if on_gpu(device) else ''} is needed in "
        f"{stage}, even in blocks of {rows} rows, max_memory allows {format_bytes(max_memory)}; raise it, lower "
        f"k1={search.k1}, k2={search.k2} or eps={search.eps}, or use more ranks"
    )
