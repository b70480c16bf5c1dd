"""Items made ahead of their use by a background thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(iterable: Iterable[Item], depth: int = 1) -> Generator[Item, None, None]:
    """The items of `iterable`, in order, each made while earlier ones are in use: decode a batch while another trains.

    A thread iterates, started by the first `next`. It makes at most `depth` items beyond the one in use. It ends with
    the iterable, or when the generator is closed or dropped; closing waits for the item that is being made. Close it
    (`contextlib.closing`) where the consumer may stop early. What torch keeps per thread (grad mode, autocast) is at
    its default while items are made.

    Args:
        iterable: iterated by that thread only.
        depth: at least 1.

    Raises:
        ValueError: `depth` is below 1.
        Exception: whatever the iterable raises, after the items before it.
    """
    if depth < 1:
        raise ValueError(f"prefetch: depth must be at least 1, got {depth}")
    return _prefetch(iterable, depth)


def _prefetch(iterable: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    slots, closed = Semaphore(depth), Event()
    ready: SimpleQueue[tuple[Item | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            iterator = iter(iterable)
            while slots.acquire() and not closed.is_set():
                ready.put((next(iterator), None))
        except BaseException as error:  # of any kind, StopIteration included: it belongs to the consumer
            ready.put((None, error))

    thread = Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            slots.release()
            yield item
    finally:
        closed.set()
        slots.release()
        thread.join()
