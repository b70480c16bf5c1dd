"""How the ranks of a clustering wait for each other: their schedule replayed, with slow ranks and slow links.

A rank is a program of what it computes and sends, in its order. It goes through the turns of the engine's own `Ring`,
and what is under way while a block is compared is decided by `Ring.pass_blocks` itself. A message leaves when sender
and receiver are ready for it, and takes the time of its link.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch

from dmic import blockwise
from dmic.blockwise import Received, Ring, Rows, Turn

from . import traffic
from .ring_costs import Rates, Work, between, inside, joined_between, joined_inside
from .traffic import STAGES, Case, Seat, sent_bytes

ENDS = dict(zip(STAGES, (*STAGES[1:], "end"), strict=True))  # what follows a stage
NOTICES = 1  # messages that gloo sends before one with data, so that both sides are ready


class Link(NamedTuple):
    bytes_per_second: float = math.inf
    latency: float = 0.0

    def seconds(self, nbytes: float) -> float:
        return (1 + NOTICES) * self.latency + nbytes / self.bytes_per_second


Links = Callable[[int, int], Link]  # from one rank to another


class Busy(NamedTuple):
    seconds: float


class Post(NamedTuple):
    """Messages that move from now on: to whom, with how many bytes, and from whom."""

    batch: int
    to: list[tuple[int, float]]
    sources: list[int]


class Wait(NamedTuple):
    batch: int


class Together(NamedTuple):
    """A collective: messages one after the other, and the bytes that this rank sends in all."""

    messages: int
    nbytes: float

    def seconds(self, link: Link) -> float:
        return self.messages * link.seconds(0) + self.nbytes / link.bytes_per_second


class Stage(NamedTuple):
    name: str


Event = Busy | Post | Wait | Together | Stage


@dataclass(frozen=True)
class Recorder(Seat):
    """A group that notes what a rank would send, instead of sending it."""

    events: deque[Event] = field(default_factory=deque)
    batches: list[int] = field(default_factory=lambda: [0])

    def post(self, to: list[tuple[int, float]], sources: list[int]) -> Wait:
        self.batches[0] += 1
        self.events.append(Post(self.batches[0], to, sources))
        return Wait(self.batches[0])

    def exchange(self, nbytes: float, to: int, expected: float, source: int) -> None:
        """Of `Ring.swap`, which waits at once."""
        to_whom, sources = [(to, nbytes)] if nbytes else [], [source] if expected else []
        if to_whom or sources:
            self.events.append(self.post(to_whom, sources))


class _Pending(NamedTuple):
    group: Recorder
    event: Wait

    def wait(self) -> None:
        self.group.events.append(self.event)


def _begin(operations: list[SimpleNamespace]) -> list[_Pending]:
    """What goes to one rank goes as one message."""
    group, to = operations[0].group, Counter()
    for one in operations:
        if one.op == "isend":
            to[one.group_peer] += one.tensor.nbytes
    sources = {one.group_peer for one in operations if one.op == "irecv"}
    return [_Pending(group, group.post([*to.items()], [*sources]))]


def _operation(op: str, tensor: torch.Tensor, group: Recorder, group_peer: int) -> SimpleNamespace:
    return SimpleNamespace(op=op, tensor=tensor, group=group, group_peer=group_peer)


# In the place of torch.distributed while `Ring.pass_blocks` runs.
RECORDING = SimpleNamespace(isend="isend", irecv="irecv", P2POp=_operation, batch_isend_irecv=_begin)


def program(case: Case, rank: int, rates: Rates) -> Iterator[Event]:
    """What a rank does, in its order. Collectives count as in `traffic.sent_bytes`."""
    group = Recorder(rank, case.ranks)
    ring = Ring(group, case.offsets, case.block_rows, torch.device("meta"))
    own, n, others, most_blocks = ring.own, ring.num_samples, case.ranks - 1, ring.most_blocks

    def passing(turns: Iterator[Turn], *widths: int) -> Iterator[tuple[Turn, Iterator[Received]]]:
        def room(rows: Rows) -> list[torch.Tensor]:
            return [torch.empty(len(rows), width, device="meta") for width in widths]

        return ring.pass_blocks(list(turns), room, lambda _, rows: room(rows))

    def drain() -> Iterator[Event]:
        while group.events:
            yield group.events.popleft()

    def busy(stage: str, pairs: float, met: float, rows: float = 0, samples: float = 0) -> Busy:
        return Busy(Work(pairs, met, rows, samples).seconds(rates[stage]))

    def gather(row_bytes: float) -> Iterator[Event]:
        counts = 8 * others
        yield Together(others, counts)
        yield Together(others, traffic.gathered_bytes(case, rank, row_bytes) - counts)

    def all_to_all(nbytes: float) -> Iterator[Event]:
        yield Together(1, 8 * others)
        yield Together(1, nbytes)

    yield Stage("knn_graph")
    yield busy("knn_graph", *inside(ring, own), len(own))
    for turn, received in passing(ring.half_turns(), case.dim, 1):
        for block, _ in received:
            yield from drain()
            yield busy("knn_graph", *between(ring, turn.met_by, block))
        group.exchange(16, turn.source, 16, turn.to)
        group.exchange(8 * case.k1 * len(turn.received), turn.source, len(turn.sent), turn.to)
        yield from drain()
    if others:
        yield from gather(4 * case.k1)

    yield Stage("k_reciprocal_encoding")
    stage = "k_reciprocal_encoding"
    yield busy(stage, 0, inside(ring, own)[1], len(own))
    for _, received in passing(ring.full_turns(), case.dim):
        for block, _ in received:
            yield from drain()
            yield busy(stage, 0, between(ring, own, block)[1])
        yield from drain()

    yield Stage("invariant_expansion")
    sent = sent_bytes(case, rank)
    if case.k2 > 1:
        ids = case.num_ids * traffic.gathered_bytes(case, rank, 8) if others else 0
        for _ in range(case.num_ids if others else 0):
            yield from gather(8)
        count = max(1, most_blocks)
        fetched = (sent["invariant_expansion"] - ids) / (4 * count) - 8 * others
        for _ in range(count):
            for _ in range(4 if others else 0):
                yield from all_to_all(fetched)
            yield busy("invariant_expansion", 0, 0, len(own) / count, n / count)

    yield Stage("jaccard_distance")
    yield busy("jaccard_distance", *joined_inside(ring, own), len(own))
    rows, partners = 0, ring.of_partners()
    for turn in ring.half_turns():
        given, received = partners.blocks(turn.sent), partners.blocks(turn.received)
        for index in range(partners.rounds(turn)):
            lengths = [len(part[index]) if index < len(part) else 0 for part in (given, received)]
            sizes = [(4 + 8 * case.expanded_length) * length for length in lengths]
            group.exchange(24, turn.to, 24, turn.source)
            group.exchange(sizes[0], turn.to, sizes[1], turn.source)
            rows += 24 + sizes[0]
            yield from drain()
            if index < len(received):
                yield busy("jaccard_distance", *joined_between(turn.met_by, received[index]))
    for _ in range(3 if others else 0):
        yield from all_to_all((sent["jaccard_distance"] - rows) / 3 - 8 * others)

    yield Stage("dbscan")
    if others:
        yield from gather(1)
    for _ in range(case.rounds):
        yield busy("dbscan", 0, 0, len(own) / case.rounds, n / case.rounds)
        if others:
            yield Together(2 * others, traffic.reduced_bytes(8 * n, case.ranks))
    if others:
        yield Together(others, 8 * others)
        yield Together(others, 8 * others)


@dataclass(frozen=True)
class Replayed:
    seconds: dict[str, float]  # of every stage, of the rank that took longest
    total: float
    busy: list[float]  # seconds that each rank computed; it waited for the rest


def replay(case: Case, rates: Rates, links: Links = lambda a, b: Link(), speeds: list[float] | None = None) -> Replayed:
    """All ranks, each at its speed. A message leaves when sender and receiver are ready, and takes its link's time."""
    with mock.patch.object(blockwise, "dist", RECORDING):
        return _replay([program(case, rank, rates) for rank in range(case.ranks)], links, speeds)


def replay_in_step(case: Case, rates: Rates, link: Link) -> Replayed:
    """`replay` of equal ranks and links: all do the same at the same time, so that one of them stands for all."""
    with mock.patch.object(blockwise, "dist", RECORDING):
        seconds, busy = _in_step(program(case, 0, rates), link)
    return Replayed(seconds, sum(seconds.values()), [busy] * case.ranks)


def _in_step(events: Iterator[Event], link: Link) -> tuple[dict[str, float], float]:
    """Seconds of every stage, and those in which the rank computes."""
    clock, busy, arrival, marks = 0.0, 0.0, {}, {}
    for event in events:
        if isinstance(event, Busy):
            clock, busy = clock + event.seconds, busy + event.seconds
        elif isinstance(event, Stage):
            marks[event.name] = clock
        elif isinstance(event, Post):
            arrival[event.batch] = clock + link.seconds(max((nbytes for _, nbytes in event.to), default=0))
        elif isinstance(event, Wait):
            clock = max(clock, arrival.pop(event.batch))
        else:
            clock += event.seconds(link)
    marks["end"] = clock
    return {stage: marks[end] - marks[stage] for stage, end in ENDS.items()}, busy


Message = tuple[int, int, int]  # from a rank to another, and which of those between them


def _replay(programs: list[Iterator[Event]], links: Links, speeds: list[float] | None) -> Replayed:
    """A rank goes on until it has to wait, and again when what it waits for has happened."""
    ranks = len(programs)
    speeds = speeds or [1.0] * ranks
    clock, busy, pending = [0.0] * ranks, [0.0] * ranks, [None] * ranks
    marks: list[dict[str, float]] = [{} for _ in programs]
    batches: list[dict[int, list[Message]]] = [{} for _ in programs]
    posted: Counter[tuple[str, int, int]] = Counter()  # messages so far between two ranks, by either side
    ready: dict[Message, list[float]] = {}  # when one side was, then both
    size: dict[Message, float] = {}
    arrival: dict[Message, float] = {}
    waiting: dict[Message, int] = {}  # the side that was ready first, if it waits already
    gathered: list[tuple[int, Together]] = []
    queue = deque(range(ranks))
    around = [links(rank, (rank + 1) % ranks) for rank in range(ranks)]
    slowest = Link(min(link.bytes_per_second for link in around), max(link.latency for link in around))

    def post(side: str, source: int, target: int, now: float) -> Message:
        message = (source, target, posted[side, source, target])
        posted[side, source, target] += 1
        ready.setdefault(message, []).append(now)
        return message

    while queue:
        rank = queue.popleft()
        while True:
            event = pending[rank] or next(programs[rank], None)
            pending[rank] = None
            if event is None:
                marks[rank]["end"] = clock[rank]
                break
            if isinstance(event, Busy):
                clock[rank] += event.seconds / speeds[rank]
                busy[rank] += event.seconds / speeds[rank]
            elif isinstance(event, Stage):
                marks[rank][event.name] = clock[rank]
            elif isinstance(event, Post):
                messages = [post("receives", source, rank, clock[rank]) for source in event.sources]
                for target, nbytes in event.to:
                    messages.append(post("sends", rank, target, clock[rank]))
                    size[messages[-1]] = nbytes
                batches[rank][event.batch] = messages
                for message in messages:
                    if len(ready[message]) == 2:
                        source, target, _ = message
                        arrival[message] = max(ready.pop(message)) + links(source, target).seconds(size.pop(message))
                        if message in waiting:
                            queue.append(waiting.pop(message))
            elif isinstance(event, Wait):
                missing = [message for message in batches[rank][event.batch] if message not in arrival]
                if missing:
                    waiting[missing[0]] = rank
                    pending[rank] = event
                    break
                clock[rank] = max([clock[rank], *(arrival[m] for m in batches[rank].pop(event.batch))])
            else:
                gathered.append((rank, event))
                if len(gathered) < ranks:
                    break
                start = max(clock)
                end = start + max(one.seconds(slowest) for _, one in gathered)
                clock = [end] * ranks
                queue.extend(other for other, _ in gathered if other != rank)
                gathered.clear()
    assert all("end" in mark for mark in marks), "ranks wait for each other"
    seconds = {stage: max(mark[end] - mark[stage] for mark in marks) for stage, end in ENDS.items()}
    return Replayed(seconds, max(clock), busy)
