"""Items made ahead by a background thread."""

import gc
import threading
import time
from contextlib import closing

import pytest

from dmic.data.prefetch import prefetch


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not workers()
    yield
    assert not workers()


class Source:
    """Counts from 0, remembers how far it got and on which thread; `made` is set with every item."""

    def __init__(self, stop):
        self.stop, self.count, self.threads, self.made = stop, 0, set(), threading.Semaphore(0)

    def __iter__(self):
        for i in range(self.stop):
            self.threads.add(threading.current_thread().name)
            self.count += 1
            self.made.release()
            yield i

    def wait_for(self, count):
        for _ in range(count):
            assert self.made.acquire(timeout=10), "the thread makes no further item"


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 50])
def test_items_come_in_order_and_from_another_thread(length, depth):
    source = Source(length)
    assert list(prefetch(source, depth)) == list(range(length))
    assert source.threads == ({"prefetch"} if length else set())


@pytest.mark.parametrize("depth", [1, 3])
def test_exactly_depth_items_are_made_ahead_of_the_one_in_use(depth):
    source = Source(100)
    with closing(prefetch(source, depth)) as items:
        for i in range(3):
            assert next(items) == i
            source.wait_for(1 + depth if i == 0 else 1)
            time.sleep(0.02)  # long enough for one more, if there were nothing to stop it
            assert source.count == i + 1 + depth


def test_an_item_is_made_while_the_one_before_is_in_use():
    consumed = threading.Event()

    def source():
        yield 0
        assert consumed.wait(10), "waited for an item in use that was never there"
        yield 1

    with closing(prefetch(source())) as items:
        assert next(items) == 0
        consumed.set()  # a generator on this thread would have to be asked first, and then wait for ever
        assert next(items) == 1


def test_nothing_starts_before_the_first_item_is_asked_for():
    source = Source(3)
    items = prefetch(source)
    assert not workers()
    items.close()
    assert source.count == 0


def test_what_the_iterable_raises_comes_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise OSError("image 7 is unreadable")

    items = prefetch(source(), depth=5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="image 7 is unreadable") as raised:
        next(items)
    assert "source" in [entry.name for entry in raised.traceback], "the place of the error is lost"
    with pytest.raises(StopIteration):
        next(items)


def test_what_is_no_iterable_is_an_error_of_the_consumer():
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        next(prefetch(3))


@pytest.mark.parametrize("used", [1, 5])
def test_closing_ends_the_thread(used):
    items = prefetch(iter(int, 1), depth=2)  # zeros without end
    for _ in range(used):
        next(items)
    assert len(workers()) == 1
    items.close()
    assert not workers()


def test_closing_waits_for_the_item_that_is_being_made():
    may_go_on, in_the_making = threading.Event(), threading.Event()

    def source():
        yield 0
        in_the_making.set()
        assert may_go_on.wait(10)
        yield 1

    items = prefetch(source())
    next(items)
    assert in_the_making.wait(10)
    threading.Timer(0.05, may_go_on.set).start()
    items.close()
    assert may_go_on.is_set()


def test_an_error_of_the_consumer_ends_the_thread():
    with pytest.raises(KeyboardInterrupt), closing(prefetch(Source(100))) as items:  # noqa: PT012
        next(items)
        raise KeyboardInterrupt
    assert not workers()


def test_dropping_the_generator_ends_the_thread_and_frees_the_iterable():
    finished = threading.Event()

    def source():
        try:
            yield from range(100)
        finally:
            finished.set()

    items = prefetch(source())
    next(items)
    del items
    gc.collect()
    assert finished.wait(10)
    assert not workers()


@pytest.mark.parametrize("depth", [0, -1])
def test_a_bad_depth_is_named_at_once(depth):
    with pytest.raises(ValueError, match=f"prefetch: depth must be at least 1, got {depth}"):
        prefetch([], depth)
