"""In place of `dmic.read_ahead.Copies`: streams without a GPU, whose work is done as late as it can be, or as early.

What is put on a stream waits there: on a late one until somebody waits for it, on an early one only for events. A copy
takes what its source holds then. Ops and messages, which on a GPU come later on the current stream, wait for that here.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from dmic import feature_rows, ops

LOCK = RLock()
SECONDS_AHEAD = 0.005  # for the reading thread to do all that it may


class Event:
    def __init__(self, stream: Stream):
        self.stream, self.passed = stream, False

    def happen(self) -> None:
        self.passed = True

    def synchronize(self) -> None:
        self.stream.run(self)


class Stream:
    def __init__(self, early: bool):
        self.early = early
        self.work: deque[Event | Callable] = deque()

    def put(self, work: Event | Callable) -> None:
        with LOCK:
            self.work.append(work)
            if self.early:
                self.run(force=False)

    def wait_event(self, event: Event) -> None:
        self.put(event)

    def record_event(self) -> Event:
        event = Event(self)
        self.put(event.happen)
        return event

    def run(self, until: Event | None = None, force: bool = True) -> None:
        """What there is, or so much of it; `force` makes other streams do what this one waits for."""
        with LOCK:
            while self.work and not (until and until.passed):
                first = self.work[0]
                if not isinstance(first, Event):
                    self.work.popleft()()
                elif first.passed:
                    self.work.popleft()
                elif force:
                    first.stream.run(first)
                else:
                    return


class LateCopies:
    """Of one kind of streams: `kind(device)` as Copies(device)."""

    device = torch.device("cpu")

    def __init__(self, early: bool = False, current_early: bool = False):
        self.early, self.stream = early, Stream(current_early)
        self.streams_aside: list[Stream] = []

    def __call__(self, device: torch.device) -> LateCopies:
        made = LateCopies(self.early)
        made.stream, made.aside = self.stream, Stream(self.early)
        self.streams_aside.append(made.aside)
        return made

    def current(self) -> Stream:
        return self.stream

    def pinned(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.full(shape, np.nan, np.float32))  # not from torch's allocator, which tests watch

    def copy(self, source: torch.Tensor, target: torch.Tensor, stream: Stream) -> None:
        stream.put(lambda: target.copy_(source))

    def catch_up(self) -> None:
        """The current stream, once the reading thread is as far ahead as it may be."""
        time.sleep(SECONDS_AHEAD)
        self.stream.run()

    @contextmanager
    def in_use(self) -> Iterator[LateCopies]:
        """All features are on the host of a GPU, but those that were loaded."""
        rows, on_gpu = feature_rows.FeatureRows, []
        load = rows.loaded

        def after(call: Callable) -> Callable:
            return lambda *arguments: (self.catch_up(), call(*arguments))[1]

        def loaded(features: feature_rows.FeatureRows) -> feature_rows.FeatureRows:
            found = load(features)
            on_gpu.append(weakref.ref(found.source))
            return found

        with (
            mock.patch.object(
                rows, "from_host", property(lambda features: all(there() is not features.source for there in on_gpu))
            ),
            mock.patch.object(rows, "loaded", loaded),
            mock.patch.object(feature_rows, "Copies", self),
            mock.patch.object(ops, "call", after(ops.call)),
            mock.patch.object(dist, "batch_isend_irecv", after(dist.batch_isend_irecv)),
        ):
            yield self
