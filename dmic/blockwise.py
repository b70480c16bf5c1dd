"""The clustering block by block: galleries larger than memory, and the ranks of a job with a part of the rows each.

A rank owns contiguous rows and sees those of the others a block at a time. Two blocks are compared once, for both: each
rank meets half of the other ranks, at a distance of 1 to R / 2 around the ring, and sends back what the others need of
it. One process is a ring of one, whose blocks come from memory or from a file. The stages are the ops of `dmic.ops`,
and the labels are those of `pseudo_labels` on the whole, bit for bit.

Every rank holds the neighbour lists of all samples; nothing else grows with N alone but a few bytes a sample
(`docs/scale.md`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from . import ops, process_group
from .block_memory import MERGED_ROWS, give_back, joined_rows
from .constants import NOISE
from .csr import Csr
from .feature_rows import FeatureRows
from .process_group import Group

Report = Callable[[str, int, int], None]  # (stage, done, total)


class Rows(NamedTuple):
    """Consecutive rows, by their numbers in the whole gallery."""

    begin: int
    end: int

    def __len__(self) -> int:  # not the length of the tuple
        return self.end - self.begin

    def within(self, rows: Rows) -> Rows:
        """Counted from the first of those."""
        return Rows(self.begin - rows.begin, self.end - rows.begin)

    def halves(self) -> tuple[Rows, Rows]:
        middle = (self.begin + self.end) // 2
        return Rows(self.begin, middle), Rows(middle, self.end)


class Turn(NamedTuple):
    """One step around the ring: which of the own rows go where, which come from where and meet which of the own."""

    to: int
    sent: Rows
    source: int
    received: Rows
    met_by: Rows


@dataclass(frozen=True)
class Ring:
    """Who owns what, and how rows are cut: rank r owns the rows [offsets[r], offsets[r + 1])."""

    group: Group
    offsets: tuple[int, ...]
    block_rows: int
    device: torch.device

    @classmethod
    def join(cls, num_rows: int, block_rows: int, device: torch.device, group: Group) -> Ring:
        """With num_rows rows of this rank; all ranks must call it."""
        counts = process_group.all_gather_rows(torch.tensor([num_rows]), group).tolist()
        return cls(group, tuple(np.cumsum([0, *counts]).tolist()), block_rows, device)

    @property
    def rank(self) -> int:
        return process_group.rank(self.group)

    @property
    def size(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_samples(self) -> int:
        return self.offsets[-1]

    @property
    def own(self) -> Rows:
        return self.owned_by(self.rank)

    def owned_by(self, rank: int) -> Rows:
        return Rows(self.offsets[rank], self.offsets[rank + 1])

    def blocks(self, rows: Rows) -> list[Rows]:
        """Rows in as few blocks of at most block_rows as can be, all of nearly the same size."""
        count = -(-len(rows) // self.block_rows)
        cuts = [rows.begin + len(rows) * b // count for b in range(count)] + [rows.end] if count else []
        return [Rows(*cut) for cut in pairwise(cuts)]

    def of_partners(self) -> Ring:
        """The same ring in the blocks of the join."""
        return replace(self, block_rows=joined_rows(self.block_rows, self.size))

    @property
    def most_blocks(self) -> int:
        """Of any rank."""
        return max(len(self.blocks(self.owned_by(rank))) for rank in range(self.size))

    def half_turns(self) -> Iterator[Turn]:
        """Every two ranks once. In the last step of an even ring both have each other: halves of their rows go both
        ways, the lower rank compares first with first and second with second, and the other one crosswise."""
        for shift in range(1, self.size // 2 + 1):
            to, source = (self.rank + shift) % self.size, (self.rank - shift) % self.size
            if 2 * shift < self.size:
                yield Turn(to, self.own, source, self.owned_by(source), self.own)
                continue
            mine, theirs = self.own.halves(), self.owned_by(source).halves()
            for half in (0, 1):
                met_by = mine[half] if self.rank < source else mine[1 - half]
                yield Turn(to, mine[half], source, theirs[half], met_by)

    def full_turns(self) -> Iterator[Turn]:
        """The rows of every other rank come by."""
        for shift in range(1, self.size):
            to, source = (self.rank + shift) % self.size, (self.rank - shift) % self.size
            yield Turn(to, self.own, source, self.owned_by(source), self.own)

    def rounds(self, turn: Turn) -> int:
        """In how many steps blocks are swapped in a turn, which is the same for all who wait for each other."""
        if turn.to != turn.source:
            return self.most_blocks
        return max(len(self.blocks(rows)) for rows in (turn.sent, turn.received))

    def pass_blocks(
        self,
        turns: list[Turn],
        load: Callable[[Rows], list[torch.Tensor]],
        room_for: Callable[[Turn, Rows], list[torch.Tensor]],
    ) -> Iterator[tuple[Turn, Iterator[Received]]]:
        """Send the blocks of `sent` and yield those received, one ahead of their use, turn by turn.

        Args:
            load: what is sent of some rows, tensors [rows, any].
            room_for: where that of a block of others goes, as many and as wide; asked in the order in which they come.
        """
        group = self.group

        def begin(turn: Turn, index: int) -> tuple[list[dist.Work], list[torch.Tensor], list[torch.Tensor]]:
            blocks_sent, blocks_received = self.blocks(turn.sent), self.blocks(turn.received)
            sent, received = [], []
            if index < len(blocks_sent):
                sent = [tensor.contiguous() for tensor in load(blocks_sent[index])]
            if index < len(blocks_received):
                received = room_for(turn, blocks_received[index])
            operations = [dist.P2POp(dist.isend, t, group=group, group_peer=turn.to) for t in sent]
            operations += [dist.P2POp(dist.irecv, t, group=group, group_peer=turn.source) for t in received]
            return dist.batch_isend_irecv(operations) if operations else [], sent, received

        started = None

        def of_turn(turn: Turn, following: Turn | None) -> Iterator[Received]:
            nonlocal started
            blocks = self.blocks(turn.received)
            count = max(len(self.blocks(turn.sent)), len(blocks))
            for index in range(count):
                (works, sent, received), started = started or begin(turn, index), None
                while works:  # which hold on to what they sent
                    works.pop().wait()
                sent.clear()
                if index + 1 < count:
                    started = begin(turn, index + 1)
                elif following is not None:  # and no turn beyond: all ranks post in one order, as NCCL needs it
                    started = begin(following, 0)
                if index < len(blocks):
                    yield Received(blocks[index], received)
            if count == 0 and following is not None:
                started = begin(following, 0)

        for turn, following in pairwise([*turns, None]):
            yield turn, of_turn(turn, following)

    def swap(self, tensors: list[torch.Tensor], to: int, source: int) -> list[torch.Tensor]:
        """Send tensors of any length to one rank and receive as many, of the same dtypes and columns, from another."""
        sizes = torch.tensor([len(tensor) for tensor in tensors], device=self.device)
        (counts,) = self._swap([sizes], [torch.empty_like(sizes)], to, source)
        empty = [t.new_empty(n, *t.shape[1:]) for t, n in zip(tensors, counts.tolist(), strict=True)]
        return self._swap([tensor.contiguous() for tensor in tensors], empty, to, source)

    def _swap(self, sent: list[torch.Tensor], received: list[torch.Tensor], to: int, source: int) -> list[torch.Tensor]:
        group = self.group
        operations = [dist.P2POp(dist.isend, t, group=group, group_peer=to) for t in sent if t.numel()]
        operations += [dist.P2POp(dist.irecv, t, group=group, group_peer=source) for t in received if t.numel()]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
        return received

    def all_to_all(self, tensor: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Send the first counts[0] rows to rank 0, the next to rank 1, ...; what was received, and how many of each."""
        if self.group is None:
            return tensor, counts
        sizes = torch.tensor(counts, device=self.device)
        incoming = torch.empty_like(sizes)
        dist.all_to_all_single(incoming, sizes, group=self.group)
        incoming = incoming.tolist()
        out = tensor.new_empty(sum(incoming), *tensor.shape[1:])
        dist.all_to_all_single(out, tensor.contiguous(), incoming, counts, group=self.group)
        return out, incoming

    def reduce(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        """In place."""
        if self.group is not None:
            dist.all_reduce(tensor, operation, group=self.group)
        return tensor


class Received(NamedTuple):
    rows: Rows
    tensors: list[torch.Tensor]


@dataclass
class Lists:
    """The nearest so far of some rows: by (distance, index), -1 and infinity where there are not k1 yet."""

    idx: torch.Tensor  # int32 [n, k1], in the whole gallery
    dist: torch.Tensor  # float32 [n, k1]

    @classmethod
    def empty(cls, num_rows: int, k1: int, device: torch.device) -> Lists:
        idx = torch.full((num_rows, k1), -1, dtype=torch.int32, device=device)
        return cls(idx, torch.full((num_rows, k1), torch.inf, device=device))

    def farthest(self) -> torch.Tensor:
        return self.dist[:, -1]

    def part(self, begin: int, end: int) -> Lists:
        return Lists(self.idx[begin:end], self.dist[begin:end])

    def put(self, idx: torch.Tensor, dist: torch.Tensor, number: int) -> None:
        """The first lists, of samples whose sample 0 has that number in the whole gallery: what `merge` makes of empty
        ones."""
        for begin in range(0, len(idx), MERGED_ROWS):
            rows = slice(begin, begin + MERGED_ROWS)
            self.idx[rows, : idx.shape[1]] = torch.where(idx[rows] < 0, idx[rows], idx[rows] + number)
        self.dist[:, : dist.shape[1]].copy_(dist)

    def merge(self, idx: torch.Tensor, dist: torch.Tensor, number: int | torch.Tensor = 0) -> None:
        """Take in other lists [n, any number] of samples that are not there yet, ascending as these are.

        Args:
            idx, dist: int32 and float32, -1 and infinity where a list is shorter.
            number: of their sample 0 in the whole gallery, the others following; or of each, int32, ascending.
        """
        width = min(idx.shape[1], self.idx.shape[1])
        for begin in range(0, len(idx) if width else 0, MERGED_ROWS):  # it takes four times the memory of the lists
            rows = slice(begin, begin + MERGED_ROWS)
            mine, others = (self.idx[rows], self.dist[rows]), (idx[rows, :width], dist[rows, :width])
            numbered = number[others[0].long()] if isinstance(number, torch.Tensor) else others[0] + number
            numbered = torch.where(others[0] < 0, others[0], numbered)
            nearest = _keys(*mine)
            # the farthest of these against the nearest of the others: the nearer of each pair is among the nearest
            last = nearest[:, nearest.shape[1] - width :]
            torch.minimum(last, _keys(numbered, others[1]).flip(1), out=last)
            low, high = _sort_rows(nearest).view(torch.int32).unflatten(1, (-1, 2)).unbind(2)
            mine[0].copy_(low)
            mine[1].copy_(high.view(torch.float32))


def _keys(idx: torch.Tensor, dist: torch.Tensor) -> torch.Tensor:
    """int64 in the order of (distance, index), -1 after all else: the bits of the distance over those of the index."""
    return torch.stack([idx, dist.view(torch.int32)], 2).view(torch.int64).squeeze(2)


def _sort_rows(keys: torch.Tensor) -> torch.Tensor:
    if keys.device.type == "cpu" and torch.get_num_threads() <= 4:  # one thread of numpy is as fast as four of torch
        keys.numpy().sort(axis=1)
        return keys
    return keys.sort(1).values


class Progress:
    """Adds up the parts of a stage for whoever watches it."""

    def __init__(self, stage: str, total: int, report: Report | None):
        self.stage, self.total, self.report, self.done = stage, max(1, total), report, 0

    def part(self, work: int) -> Report | None:
        """The callback of an op that does `work` of the stage; of the last one before the next call."""
        begin, self.done = self.done, self.done + work
        if self.report is None:
            return None
        return lambda _, done, total: self.report(self.stage, begin + work * done // max(1, total), self.total)


def _largest_block(ring: Ring, parts: Iterable[Rows]) -> int:
    return max((len(block) for rows in parts for block in ring.blocks(rows)), default=0)


@contextmanager
def _ahead(
    features: FeatureRows, order: Iterable[Rows], most_rows: int, own: Rows
) -> Iterator[Callable[..., torch.Tensor]]:
    """`features.ahead` for own rows by their numbers in the whole gallery."""
    with features.ahead((rows.within(own) for rows in order), most_rows) as read:
        yield lambda rows, out=None: read(*rows.within(own), out)
        read = None  # what was yielded holds no rows any more


class _Side(NamedTuple):
    """One of two blocks that are compared."""

    rows: Rows
    lists: Lists
    farthest: torch.Tensor  # nothing beyond it is looked for
    is_first: bool = False  # that its rows are compared, for these lists

    def take(self, idx: torch.Tensor, dist: torch.Tensor, number: int) -> None:
        (self.lists.put if self.is_first else self.lists.merge)(idx, dist, number)


class _OwnBlock:
    """The features of a rank's only block, with room in front and behind: those of other ranks arrive on the two sides
    in turn, each beside the rows that it meets, so that both are as `ops.knn_between` takes them."""

    def __init__(self, ring: Ring, turns: list[Turn], num_features: int):
        sides = [turns[-1].met_by.begin == ring.own.begin]  # whether in front, the last turn first
        while len(sides) < len(turns):
            sides.append(not sides[-1])
        self.in_front = dict(zip(turns, reversed(sides), strict=True))
        rooms = [max((len(t.received) for t in turns if self.in_front[t] == side), default=0) for side in (True, False)]
        self.own, self.begin, self.end = ring.own, rooms[0], rooms[0] + len(ring.own)
        self.rows = torch.empty(self.end + rooms[1], num_features, device=ring.device)

    def part(self, rows: Rows) -> torch.Tensor:
        """Of the own rows."""
        return self.rows[self.begin : self.end][slice(*rows.within(self.own))]

    def room_for(self, turn: Turn) -> torch.Tensor:
        """The place of the rows received."""
        if self.in_front[turn]:
            return self.rows[self.begin - len(turn.received) : self.begin]
        return self.rows[self.end : self.end + len(turn.received)]

    def with_received(self, turn: Turn) -> torch.Tensor:
        """Them and the own rows that they meet."""
        if self.in_front[turn]:
            return self.rows[self.begin - len(turn.received) : self.begin + len(turn.met_by)]
        return self.rows[self.end - len(turn.met_by) : self.end + len(turn.received)]


def knn_graph(features: FeatureRows, k1: int, ring: Ring, report: Report | None = None) -> Lists:
    """The nearest k1 of all samples for each of the own rows, whose features these are."""
    own, blocks, turns = ring.own, ring.blocks(ring.own), list(ring.half_turns())
    num_features, lists = features.shape[1], Lists.empty(len(own), k1, ring.device)
    pairs = len(own) ** 2 // 2 + sum(len(turn.received) * len(turn.met_by) for turn in turns)
    progress = Progress("knn_graph", pairs, report)
    kept = _OwnBlock(ring, turns, num_features) if turns and ring.most_blocks == 1 else None
    room = _largest_block(ring, (turn.met_by for turn in turns))  # in front of others that arrive
    arriving: deque[torch.Tensor] = deque()  # they, with what is kept beside them or with room

    def order() -> Iterator[Rows]:
        """In which blocks are loaded: y, and every x that it meets."""
        for t, y in enumerate(blocks):
            yield from (y, *blocks[:t])
        for turn in turns if kept is None else ():
            yield from (x for _ in ring.blocks(turn.received) for x in ring.blocks(turn.met_by))

    def mine(rows: Rows) -> Lists:
        return lists.part(*rows.within(own))

    def side(rows: Rows) -> _Side:
        return _Side(rows, mine(rows), mine(rows).farthest())

    def compare(first: _Side, second: _Side, both: torch.Tensor) -> None:
        split, watch = len(first.rows), progress.part(len(first.rows) * len(second.rows))
        farthest = torch.cat([first.farthest, second.farthest])
        idx, dist = ops.knn_between(both, split, min(k1, len(both)), farthest, directions=directions, progress=watch)
        first.take(idx[:split], dist[:split], second.rows.begin - split)
        second.take(idx[split:], dist[split:], first.rows.begin)

    def load_and_compare(x: Rows, y: _Side, both: torch.Tensor) -> None:
        """`both` ends with the features of y, and has room for those of x."""
        both = both[len(both) - len(y.rows) - len(x) :]
        load(x, both[: len(x)])
        compare(side(x), y, both)

    def sent(rows: Rows) -> list[torch.Tensor]:
        return [load_sent(rows) if kept is None else kept.part(rows), mine(rows).farthest()[:, None]]

    def room_for(turn: Turn, y: Rows) -> list[torch.Tensor]:
        if kept is None:
            arriving.append(torch.empty(room + len(y), num_features, device=ring.device))
            of_y = arriving[-1][room:]
        else:
            arriving.append(kept.with_received(turn))
            of_y = kept.room_for(turn)
        return [of_y, torch.empty(len(y), 1, device=ring.device)]

    def meet(turn: Turn, received: Iterator[Received]) -> Lists:
        """The nearest of the own rows, for those received."""
        found = Lists.empty(len(turn.received), k1, ring.device)
        for y, (of_y, farthest) in received:
            both, found_y = arriving.popleft(), found.part(*y.within(turn.received))
            for number, x in enumerate(ring.blocks(turn.met_by)):
                side_y = _Side(y, found_y, torch.minimum(farthest[:, 0], found_y.farthest()), number == 0)
                if kept is None:
                    load_and_compare(x, side_y, both)
                elif kept.in_front[turn]:
                    compare(side_y, side(x), both)
                else:
                    compare(side(x), side_y, both)
            del both, of_y, farthest  # before the next ones come
            give_back()
        return found

    directions = None
    order_sent = (y for turn in turns if kept is None for y in ring.blocks(turn.sent))
    most_loaded, most_sent = max(room, _largest_block(ring, [own])), _largest_block(ring, (turn.sent for turn in turns))
    with _ahead(features, order(), most_loaded, own) as load, _ahead(features, order_sent, most_sent, own) as load_sent:
        for t, y in enumerate(blocks):
            both = torch.empty(max(map(len, blocks)) + len(y), num_features, device=ring.device) if t else None
            of_y = load(y, both[-len(y) :] if t else None if kept is None else kept.part(y))
            if t == 0:
                directions = ops.search_directions(of_y, k1, ring.num_samples)
            watch = progress.part(len(y) ** 2 // 2)
            idx, dist = ops.knn_graph(of_y, min(k1, len(y)), directions=directions, progress=watch)
            mine(y).put(idx, dist, y.begin)
            for x in blocks[:t]:
                load_and_compare(x, side(y), both)
            del both, of_y, idx, dist
            give_back()
        for turn, received in ring.pass_blocks(turns, sent, room_for):
            found = meet(turn, received)
            mine(turn.sent).merge(*ring.swap([found.idx, found.dist], turn.source, turn.to))
    return lists


def knn_graph_of_two(
    features: torch.Tensor,
    sides: tuple[torch.Tensor, torch.Tensor],
    k1: int,
    k1_both: int,
    report: Report | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nearest k1 in either of two sides alone, and the nearest k1_both in both together; each pair compared once.

    Args:
        features: float32 [N, d].
        sides: int64 [n], the samples of each, ascending; every sample is in one of them.
        k1: length of the lists of a side, shorter if it has fewer samples.
        k1_both: of all samples, in [1, N].
        report: progress.

    Returns:
        neighbor_idx of each side, numbered within it, and of all samples: what three calls of `ops.knn_graph` return.
    """
    order, split = torch.cat(sides), len(sides[0])
    n, numbers = len(order), order.int()
    if not torch.equal(order, torch.arange(n, device=order.device)):
        features = features[order]
    both, alone = Lists.empty(n, k1_both, features.device), []
    progress = Progress("knn_graph", n**2 // 2, report)
    for rows in (Rows(0, split), Rows(split, n)):
        longest = min(max(k1, k1_both), len(rows))
        idx, dist = torch.empty(0, 0, dtype=torch.int32, device=features.device), features.new_empty(0, 0)
        if longest:
            watch = progress.part(len(rows) ** 2 // 2)
            idx, dist = ops.knn_graph(features[rows.begin : rows.end], longest, progress=watch)
        alone.append(idx[:, :k1].contiguous())
        of_both = idx[:, :k1_both], dist[:, :k1_both]
        both.part(*rows).merge(*of_both, numbers[rows.begin : rows.end])  # ties: ascending within a side and in both
        del idx, dist, of_both
        give_back()
    if 0 < split < n:
        directions = ops.search_directions(features, k1_both, n)
        watch = progress.part(split * (n - split))
        idx, dist = ops.knn_between(features, split, k1_both, both.farthest(), directions=directions, progress=watch)
        give_back()
        both.merge(idx, dist, numbers)
        del idx, dist
    neighbor_idx = torch.empty_like(both.idx)
    neighbor_idx[order] = both.idx
    return *alone, neighbor_idx


def k_reciprocal_encoding(
    features: FeatureRows, neighbor_idx: torch.Tensor, k1_half: int, ring: Ring, report: Report | None = None
) -> Csr:
    """The own rows of the encoding, Csr [n, N]. The features are theirs, neighbor_idx the lists of all samples, int32
    [N, k1]."""
    own, n, blocks, turns = ring.own, ring.num_samples, ring.blocks(ring.own), list(ring.full_turns())
    gallery = [y for rank in range(ring.size) for y in ring.blocks(ring.owned_by(rank))]
    place = {y: number for number, y in enumerate(gallery)}
    ends = torch.tensor([y.end for y in gallery], dtype=torch.int32, device=ring.device)
    progress = Progress("k_reciprocal_encoding", 2 * n, report)
    row_ptr, col_idx = ops.k_reciprocal_sets(neighbor_idx, k1_half, *own, progress=progress.part(n))
    dots = torch.empty(len(col_idx), dtype=torch.float64, device=ring.device)

    def members(x: Rows) -> slice:
        """Of their sets, in col_idx and dots."""
        begin, end = x.within(own)
        return slice(int(row_ptr[begin]), int(row_ptr[end]))

    def reached(x: Rows) -> int:
        """In which blocks of the gallery their sets have members: a bit each."""
        places = torch.bucketize(col_idx[members(x)], ends, out_int32=True, right=True)
        bits = (places.bincount(minlength=len(gallery)) > 0).cpu().numpy()
        return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")

    reach = {x: reached(x) for x in blocks}

    def reaches(x: Rows, y: Rows) -> bool:
        return bool(reach[x] >> place[y] & 1)

    def meeting(y: Rows, own_blocks: list[Rows]) -> list[Rows]:
        """Those of which sets have members in y, or sets of y in them if y is an own block too."""
        return [x for x in own_blocks if reaches(x, y) or (y in reach and reaches(y, x))]

    def order() -> Iterator[Rows]:
        """In which blocks are loaded: y, and every x that it meets."""
        for t, y in enumerate(blocks):
            yield from (y, *meeting(y, blocks[:t]))
        for turn in turns:
            yield from (x for y in ring.blocks(turn.received) for x in meeting(y, blocks))

    def multiply(x: Rows, y: Rows, of_x: torch.Tensor, of_y: torch.Tensor, watch: Report | None) -> None:
        """Rows of x with members of their sets in y."""
        if not reaches(x, y):
            return
        begin, end = x.within(own)
        part, ptr = members(x), row_ptr[begin : end + 1]
        inside = col_idx[part] >= y.begin
        at = inside.logical_and_(col_idx[part] < y.end).nonzero().squeeze(1)
        del inside
        ptr, columns = torch.searchsorted(at, ptr - ptr[0]), col_idx[part][at]
        columns.sub_(y.begin)
        # features are finite, or reading them would have failed
        dots[part][at] = ops.sampled_dots(of_x, of_y, ptr, columns, check_finite=False, progress=watch)

    def room_for(_: Turn, y: Rows) -> list[torch.Tensor]:
        return [torch.empty(len(y), num_features, device=ring.device)]

    if len(blocks) == 1:
        features = features.loaded()
    num_features = features.shape[1]
    order_sent = (y for turn in turns for y in ring.blocks(turn.sent))
    most = _largest_block(ring, [own])
    with _ahead(features, order(), most, own) as load, _ahead(features, order_sent, most, own) as load_sent:
        for t, y in enumerate(blocks):
            of_y, watch = load(y), progress.part(len(y))
            multiply(y, y, of_y, of_y, watch)
            for x in meeting(y, blocks[:t]):
                of_x = load(x)
                multiply(x, y, of_x, of_y, watch)
                multiply(y, x, of_y, of_x, watch)
                del of_x
            del of_y
        for _, received in ring.pass_blocks(turns, lambda rows: [load_sent(rows)], room_for):
            for y, (of_y,) in received:
                watch = progress.part(len(y))
                for x in meeting(y, blocks):
                    multiply(x, y, load(x), of_y, watch)
                del of_y
    del features
    give_back()
    return ops.k_reciprocal_weights(row_ptr, col_idx, dots, n)


def invariant_expansion(
    encoding: Csr,
    neighbor_idx: torch.Tensor,
    k2: int,
    camera_ids: torch.Tensor | None,
    modality_ids: torch.Tensor | None,
    ring: Ring,
    report: Report | None = None,
) -> Csr:
    """The own rows of the expansion. Lists and ids are those of all samples; rows of other ranks are fetched."""
    own, blocks, parts = ring.own, ring.blocks(ring.own), []
    progress = Progress("invariant_expansion", len(own), report)
    for t in range(ring.most_blocks):  # ranks with fewer blocks still answer the others
        rows = blocks[t] if t < len(blocks) else Rows(own.end, own.end)
        lists = neighbor_idx[rows.begin : rows.end, :k2]
        needed = lists.unique()
        fetched = _fetch(encoding, needed.long(), ring)
        ids = [None if given is None else given[needed.long()] for given in (camera_ids, modality_ids)]
        places = torch.searchsorted(needed, lists.contiguous()).int()
        parts.append(ops.invariant_expansion(fetched, places, k2, *ids, progress=progress.part(len(rows))))
    give_back()
    return _lay_out(parts)


def jaccard_distance(
    encoding: Csr, max_distance: float, ring: Ring, max_pairs: int | None = None, report: Report | None = None
) -> Csr:
    """The own rows of the distances, Csr [n, N], both directions of every pair."""
    own, n, turns = ring.own, ring.num_samples, list(ring.half_turns())
    pairs = len(own) ** 2 // 2 + sum(len(turn.received) * len(turn.met_by) for turn in turns)
    progress = Progress("jaccard_distance", pairs, report)
    edges = _Edges(ring, max_pairs)
    partners = ring.of_partners()

    def load(rows: Rows) -> Csr:
        return _slice(encoding, rows.begin - own.begin, rows.end - own.begin)

    def join(x: Rows, y: Rows, of_y: Csr) -> None:
        """All rows x with a block."""
        watch = progress.part(len(x) * len(y))
        found = ops.jaccard_distance(load(x), max_distance, partners=of_y, max_pairs=edges.room(), progress=watch)
        edges.add(_slice(found, 0, len(x)), x.begin, y.begin - len(x))
        edges.add(_slice(found, len(x), len(x) + len(y)), y.begin, x.begin)

    for y in partners.blocks(own):
        watch = progress.part(len(y) ** 2 // 2)
        found = ops.jaccard_distance(load(y), max_distance, max_pairs=edges.room(), progress=watch)
        edges.add(found, y.begin, y.begin)
        if y.begin > own.begin:
            join(Rows(own.begin, y.begin), y, load(y))
        give_back()
    for turn in turns:
        sent, received = partners.blocks(turn.sent), partners.blocks(turn.received)
        for index in range(partners.rounds(turn)):
            given = load(sent[index]) if index < len(sent) else _slice(encoding, 0, 0)
            parts = [given.row_ptr.diff().int(), given.col_idx, given.values]
            lengths, col_idx, values = ring.swap(parts, turn.to, turn.source)
            if index >= len(received):
                continue
            join(turn.met_by, received[index], Csr(_row_ptr(lengths), col_idx, values, n))
            give_back()
    return edges.of_own_rows()


def dbscan(
    distance: Csr, eps: float, min_samples: int, ring: Ring, report: Report | None = None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Labels int64 [n] and core mask [n] of the own rows, and the number of clusters.

    One rank has all pairs, and the op joins them one by one. Of several ranks each joins its own all at a time: a
    cluster is a tree whose root is its smallest core sample, all edges of the graph hook larger roots below smaller
    ones, ranks agree by the minimum, paths are halved, until nothing moves.
    """
    if ring.size == 1:
        labels, core_mask = ops.dbscan(distance, eps, min_samples, progress=report)
        return labels, core_mask, int(labels.max()) + 1
    own, n, device = ring.own, ring.num_samples, ring.device
    radius = torch.tensor(eps, dtype=torch.float32)

    def pairs_within() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of the own rows, counted from the first of them, and of all samples; a block of rows at a time."""
        for rows in ring.blocks(own):
            first, last = rows.begin - own.begin, rows.end - own.begin
            part = _slice(distance, first, last)
            within = part.values <= radius
            row = torch.repeat_interleave(torch.arange(first, last, device=device), part.row_ptr.diff())
            yield row[within], part.col_idx[within].long()

    degree = torch.zeros(len(own), dtype=torch.int64, device=device)
    for row, _ in pairs_within():
        degree += torch.bincount(row, minlength=len(own))
    core_mask = degree >= min_samples
    core = process_group.all_gather_rows(core_mask, ring.group)
    parent = torch.arange(n, device=device)
    while True:
        hooked = parent.clone()
        for row, col in pairs_within():
            joined = core_mask[row] & core[col]
            a, b = parent[row[joined] + own.begin], parent[col[joined]]
            hooked.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        ring.reduce(hooked, dist.ReduceOp.MIN)
        hooked = hooked[hooked]
        hooked = hooked[hooked]
        if torch.equal(hooked, parent):
            break
        parent = hooked
    number = torch.where(core & (parent == torch.arange(n, device=device)), 1, 0).cumsum(0) - 1
    cluster = torch.where(core, number[parent], n)  # of every core sample
    labels = torch.full((len(own),), n, device=device)
    for row, col in pairs_within():  # of a core sample with itself too
        labels.scatter_reduce_(0, row, cluster[col], "amin")
    labels[labels == n] = NOISE
    return labels, core_mask, int(number[-1]) + 1


class _Edges:
    """Pairs that were found, by the rank that owns their row, until all are there."""

    def __init__(self, ring: Ring, max_pairs: int | None):
        self.ring, self.max_pairs, self.count = ring, max_pairs, 0
        self.found: list[tuple[list[torch.Tensor], ...]] = [([], [], []) for _ in range(ring.size)]

    def room(self) -> int | None:
        return None if self.max_pairs is None else max(0, self.max_pairs - self.count // 2)

    def add(self, rows: Csr, first_row: int, first_col: int) -> None:
        """Rows from first_row on, all of one rank; column 0 of theirs is sample first_col."""
        self.count += rows.nnz
        if not rows.nnz:
            return
        owner = int(np.searchsorted(self.ring.offsets, first_row, side="right")) - 1
        index = torch.arange(first_row, first_row + rows.num_rows, dtype=torch.int32, device=self.ring.device)
        row = torch.repeat_interleave(index, rows.row_ptr.diff())
        for parts, part in zip(self.found[owner], (row, rows.col_idx + first_col, rows.values), strict=True):
            parts.append(part)

    def of_own_rows(self) -> Csr:
        ring, own = self.ring, self.ring.own
        parts = []
        for kind, dtype in enumerate((torch.int32, torch.int32, torch.float32)):
            empty = torch.empty(0, dtype=dtype, device=ring.device)
            counts = [sum(map(len, edges[kind])) for edges in self.found]
            sent = torch.cat([empty, *(part for edges in self.found for part in edges[kind])])
            for edges in self.found:
                edges[kind].clear()
            parts.append(ring.all_to_all(sent, counts)[0])
            del sent
        row, col, values = parts
        row_ptr = _row_ptr(torch.bincount(row - own.begin, minlength=len(own)))
        sorted_rows = Csr(row_ptr, torch.empty_like(col), torch.empty_like(values), ring.num_samples)
        for rows in ring.blocks(own):  # sorting takes many times the memory of the pairs
            inside = (row >= rows.begin) & (row < rows.end)
            col_inside, values_inside = col[inside], values[inside]
            order = (row[inside].long() * ring.num_samples + col_inside).argsort()
            part = _slice(sorted_rows, rows.begin - own.begin, rows.end - own.begin)
            part.col_idx.copy_(col_inside[order])
            part.values.copy_(values_inside[order])
        return sorted_rows


def _fetch(encoding: Csr, needed: torch.Tensor, ring: Ring) -> Csr:
    """Rows of the encoding of all ranks, in the order of their ascending numbers `needed`."""
    cuts = torch.searchsorted(needed, torch.tensor(ring.offsets, device=ring.device))
    wanted, asked = ring.all_to_all(needed, cuts.diff().tolist())
    rows = _choose(encoding, wanted - ring.own.begin)
    ends = rows.row_ptr[torch.tensor([0, *asked], device=ring.device).cumsum(0)]
    lengths, _ = ring.all_to_all(rows.row_ptr.diff(), asked)
    col_idx, _ = ring.all_to_all(rows.col_idx, ends.diff().tolist())
    values, _ = ring.all_to_all(rows.values, ends.diff().tolist())
    return Csr(_row_ptr(lengths), col_idx, values, encoding.num_cols)


def _row_ptr(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([lengths.new_zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def _slice(rows: Csr, begin: int, end: int) -> Csr:
    ptr = rows.row_ptr[begin : end + 1]
    part = slice(int(ptr[0]), int(ptr[-1]))
    return Csr(ptr - ptr[0], rows.col_idx[part], rows.values[part], rows.num_cols)


def _choose(rows: Csr, idx: torch.Tensor) -> Csr:
    lengths = rows.row_ptr.diff()[idx]
    row_ptr = _row_ptr(lengths)
    position = torch.repeat_interleave(rows.row_ptr[idx] - row_ptr[:-1], lengths)
    position += torch.arange(len(position), device=position.device)
    return Csr(row_ptr, rows.col_idx[position], rows.values[position], rows.num_cols)


def _lay_out(parts: list[Csr]) -> Csr:
    """The parts as one, from a list that is emptied: their columns are given back before the values are laid out."""
    if len(parts) == 1:
        return parts.pop()
    lengths, num_cols = torch.cat([part.row_ptr.diff() for part in parts]), parts[0].num_cols
    columns, values = [part.col_idx for part in parts], [part.values for part in parts]
    parts.clear()
    col_idx = torch.cat(columns)
    columns.clear()
    give_back()
    return Csr(_row_ptr(lengths), col_idx, torch.cat(values), num_cols)
