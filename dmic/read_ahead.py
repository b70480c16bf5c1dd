"""Rows on their way from the host to a GPU while those before them are in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, groupby, pairwise
from queue import SimpleQueue
from threading import Semaphore, Thread

import torch


class Copies:
    """Copies from pinned memory to a GPU, and on it: each on the current stream or on one beside it."""

    def __init__(self, device: torch.device):
        self.aside = torch.cuda.Stream(device)
        self.device = self.aside.device

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def pinned(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, pin_memory=True)

    def copy(self, source: torch.Tensor, target: torch.Tensor, stream: torch.cuda.Stream) -> None:
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)


class ReadAhead:
    """Rows that will be asked for in an order that is known; close it.

    A thread reads them into two pinned buffers in turn, and copies each, on a stream of its own, to one place on the
    GPU, from where `read` copies them on the current stream. So the next ones arrive and those after them are read
    while an op runs. Ranges that repeat the one before are read once. None is taken from `ranges` long before its turn.
    """

    def __init__(
        self,
        load: Callable[[int, int, torch.Tensor], object],
        ranges: Iterable[tuple[int, int]],
        most_rows: int,
        num_features: int,
        copies: Copies,
    ):
        """
        Args:
            load: reads rows [begin, end) into float32 [end - begin, num_features] in the host's memory.
            ranges: of rows, (begin, end) each, at least one. A generator runs in the thread: it must not use the GPU.
            most_rows: of a range.
            num_features: of a row.
            copies: to the GPU.
        """
        self.load, self.ranges, self.most_rows, self.copies = load, ranges, most_rows, copies
        self.pinned = [copies.pinned(most_rows, num_features) for _ in range(2)]
        self.place = torch.empty(most_rows, num_features, device=copies.device)
        self.taken = copies.current().record_event()  # what used this memory before has ended then
        self.free, self.closed = Semaphore(1), False  # to send something to the place
        self.sent: deque[torch.cuda.Event] = deque()  # ends of the last copies out of the buffers
        self.arrivals: SimpleQueue[tuple | BaseException] = SimpleQueue()
        self.left = 0  # times that what has arrived will be asked for
        self.thread = Thread(target=self._work, name="read_ahead", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            runs = ((rows, sum(1 for _ in same)) for rows, same in groupby(self.ranges))
            for turn, (((begin, end), times), following) in enumerate(pairwise(chain(runs, [None]))):
                assert end - begin <= self.most_rows, f"rows {begin, end} are more than {self.most_rows}"
                if len(self.sent) == 2:
                    self.sent.popleft().synchronize()
                buffer = self.pinned[turn % 2][: end - begin]
                self.load(begin, end, buffer)
                self.free.acquire()
                if self.closed:
                    return
                self.copies.aside.wait_event(self.taken)
                self.copies.copy(buffer, self.place[: end - begin], self.copies.aside)
                self.sent.append(self.copies.aside.record_event())
                self.arrivals.put(((begin, end), times, self.sent[-1], following is None))
            raise AssertionError("more rows are asked for than were announced")
        except BaseException as error:  # of any kind: it belongs to the consumer
            self.arrivals.put(error)

    def read(self, begin: int, end: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """The rows whose turn it is, on the GPU; in `out`, if there is one.

        Raises:
            Exception: what `load` raised for them.
        """
        if not self.left:
            arrived = self.arrivals.get()
            if isinstance(arrived, BaseException):
                raise arrived
            self.rows, self.left, self.copied, self.last = arrived
        assert (begin, end) == self.rows, f"rows {self.rows} were announced, {begin, end} are asked for"
        self.left -= 1
        stream, rows = self.copies.current(), self.place[: end - begin]
        stream.wait_event(self.copied)
        if self.last and not self.left:
            self.place = None
            if out is None:
                return rows
        out = torch.empty_like(rows) if out is None else out
        self.copies.copy(rows, out, stream)
        if not self.left:
            self.taken = stream.record_event()
            self.free.release()
        return out

    def close(self) -> None:
        """Ends the thread, once it has read what it is reading, and waits for copies."""
        self.closed = True
        self.free.release()
        self.thread.join()
        while self.sent:
            self.sent.popleft().synchronize()
