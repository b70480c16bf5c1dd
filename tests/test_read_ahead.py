"""Blocks on their way to a GPU, without one: the bits of the whole whenever copies are made, and no thread is left."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from compare import assert_same_bits
from forked_ranks import ForkedRanks
from generators import gallery
from late_copies import LateCopies
from torch._subclasses.fake_tensor import FakeTensorMode

from dmic import blockwise, ops
from dmic.feature_rows import FeatureRows
from dmic.read_ahead import ReadAhead

RANGES = [(0, 7), (7, 14), (0, 7), (0, 7), (14, 19), (14, 19), (7, 14), (3, 10), (0, 1), (12, 19)]
D = 5


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not workers()
    yield
    assert not workers()


@pytest.fixture(params=[False, True], ids=["late", "early"])
def copies(request):
    with LateCopies(early=request.param).in_use() as made:
        yield made
    assert not any(stream.work for stream in made.streams_aside), "memory is given back that is still written to"


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((19, D))


@pytest.fixture
def rows(values, tmp_path) -> FeatureRows:
    """Of a file."""
    np.save(tmp_path / "features.npy", values.astype(np.float32))
    return FeatureRows.of("test", tmp_path / "features.npy")


def wait_until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the thread does not get there"
        time.sleep(0.001)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("use", ["at once", "at the end"])
def test_rows_are_those_that_were_announced(copies, values, tmp_path, dtype, from_file, use):
    stored = values.astype(dtype)
    np.save(tmp_path / "features.npy", stored)
    features = FeatureRows.of("test", tmp_path / "features.npy" if from_file else stored)
    taken = []
    with features.ahead(iter(RANGES), 7) as read:
        for number, (begin, end) in enumerate(RANGES):
            out = torch.empty(end - begin, D) if number % 2 else None
            taken.append(read(begin, end, out))
            assert out is None or taken[-1] is out
            if use == "at once":
                copies.catch_up()
                assert torch.equal(taken[-1], torch.from_numpy(stored[begin:end].astype(np.float32)))
            time.sleep(0.002)
    copies.catch_up()
    for (begin, end), found in zip(RANGES, taken, strict=True):
        assert torch.equal(found, torch.from_numpy(stored[begin:end].astype(np.float32)))


def reads(monkeypatch) -> list[tuple[int, int]]:
    """Ranges that are read from now on."""
    read, seen = FeatureRows.read, []

    def noted(self, begin, end, out=None):
        seen.append((begin, end))
        return read(self, begin, end, out)

    monkeypatch.setattr(FeatureRows, "read", noted)
    return seen


def test_rows_that_are_asked_for_again_are_read_once(copies, rows, monkeypatch):
    seen = reads(monkeypatch)
    with rows.ahead(RANGES, 7) as read:
        for begin, end in RANGES:
            read(begin, end)
    assert seen == [RANGES[i] for i in (0, 1, 2, 4, 6, 7, 8, 9)]


def test_ranges_are_taken_as_their_turns_come(copies, rows):
    """Of so many, or so long ones, that all at once would not do."""
    taken = []

    def announced():
        for turn in itertools.count():
            taken.append(turn)
            assert turn < 1000, "taken without end"
            yield from [(turn % 19, turn % 19 + 1)] * 3

    with rows.ahead(announced(), 1) as read:
        for turn in range(50):
            for _ in range(3):
                assert len(taken) <= turn + 6
                read(turn % 19, turn % 19 + 1)
            time.sleep(0.001)
    assert len(taken) > 50


@pytest.mark.parametrize("at", [0, 1, 5])
def test_what_is_wrong_with_ranges_is_an_error_of_their_consumer(copies, rows, at):
    def announced():
        yield from RANGES[:at]
        raise KeyError("no more")

    def consume() -> None:
        with rows.ahead(announced(), 7) as read:
            for begin, end in RANGES:
                read(begin, end)

    with pytest.raises(KeyError, match="no more"):
        consume()


def test_rows_that_no_buffer_holds_are_an_assertion(copies, rows):
    with rows.ahead(RANGES, 6) as read, pytest.raises(AssertionError, match=r"rows \(0, 7\) are more than 6"):
        read(*RANGES[0])


def test_elsewhere_rows_are_read_when_they_are_asked_for(rows):
    def announced():
        raise AssertionError("nobody needs the order")
        yield

    with rows.ahead(announced(), 7) as read:
        assert read == rows.read
        assert not workers()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_that_are_loaded_are_not_read_again(copies, values, tmp_path, dtype):
    stored = values.astype(dtype)
    np.save(tmp_path / "features.npy", stored)
    loaded = FeatureRows.of("test", tmp_path / "features.npy").part(2, len(stored)).loaded()
    (tmp_path / "features.npy").unlink()
    with loaded.ahead(iter(()), 7) as read:
        assert torch.equal(read(1, 5), torch.from_numpy(stored[3:7].astype(np.float32)))
        assert read(1, 5).data_ptr() == read(1, 6).data_ptr(), "a view"


def test_only_rows_of_the_host_are_read_ahead_of_a_gpu(rows):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for source in (torch.ones(3, 2), rows.source):
        on_gpu = FeatureRows((3, 2), torch.float32, gpu, source, "test")
        assert on_gpu.from_host
        assert not on_gpu.on_host().from_host
        assert on_gpu.on_host().device == cpu
    with FakeTensorMode():
        there = torch.ones(3, 2, device=gpu)
    assert not FeatureRows((3, 2), torch.float32, gpu, there, "test").from_host
    assert not FeatureRows((3, 2), torch.float32, cpu, there, "test").from_host


def test_no_row_and_no_range_are_nothing(copies, tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((0, D), np.float32))
    with FeatureRows.of("test", tmp_path / "empty.npy").ahead([], 0):
        assert not workers()


def test_memory_that_is_still_in_use_is_not_written_to(copies, rows):
    """The place on the GPU was something else's, of which the current stream has work to do."""
    done = []
    copies.stream.put(lambda: done.append(True))
    with rows.ahead(RANGES, 7) as read:
        reader = read.__self__
        wait_until(lambda: reader.sent)
        assert not done
        assert copies.streams_aside[0].work, "copied before that was done"
        first = read(*RANGES[0])
        copies.catch_up()
        assert done
        assert torch.equal(first, rows.read(*RANGES[0]))


# Errors and ends


@pytest.mark.parametrize("what", ["nan", "truncated", "gone"])
@pytest.mark.parametrize("at", range(len(RANGES)))
def test_what_is_wrong_is_an_error_where_it_is_asked_for(copies, rows, values, at, what):
    """With the words that it has where nothing is read ahead."""
    path = rows.source[0]
    bad = RANGES[at][1] - 1
    if what == "nan":
        values[bad, 3] = np.nan
        np.save(path, values.astype(np.float32))
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[: -4 * D * (19 - bad) + 4])
    else:
        path.unlink()

    def message(read, begin, end) -> str | None:
        try:
            read(begin, end)
        except (ValueError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    want = [message(rows.on_host().read, *range) for range in RANGES]
    first = next(i for i, text in enumerate(want) if text)
    assert first <= at
    with rows.ahead(RANGES, 7) as read:
        found = [message(read, *range) for range in RANGES[: first + 1]]
    assert found == want[: first + 1]


@pytest.mark.parametrize("taken", range(len(RANGES) + 1))
@pytest.mark.parametrize("delay", [0, 0.005])
def test_who_stops_early_leaves_nothing_behind(copies, rows, taken, delay):
    with pytest.raises(KeyboardInterrupt), rows.ahead(RANGES, 7) as read:  # noqa: PT012
        for begin, end in RANGES[:taken]:
            read(begin, end)
            time.sleep(delay)
        raise KeyboardInterrupt
    assert not workers()


def test_other_rows_than_were_announced_are_an_assertion(copies, rows):
    with rows.ahead(RANGES, 7) as read, pytest.raises(AssertionError, match=r"rows \(0, 7\) were announced, \(7, 14\)"):
        read(*RANGES[1])
    with rows.ahead(RANGES[:1], 7) as read, pytest.raises(AssertionError, match="more rows are asked for"):  # noqa: PT012
        read(*RANGES[0])
        read(*RANGES[0])


def test_ctrl_c_is_heard_while_rows_are_waited_for():
    may_go_on = threading.Event()

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        may_go_on.set()

    def load(begin, end, out) -> None:
        threading.Timer(0.05, press).start()
        assert may_go_on.wait(10)

    reader = ReadAhead(load, [(0, 3)], 3, D, LateCopies()(torch.device("cuda")))
    with pytest.raises(KeyboardInterrupt), closing(reader):
        reader.read(0, 3)


def test_the_next_rows_arrive_and_those_after_them_are_read_while_some_are_in_use():
    loaded, kind = [], LateCopies(early=True, current_early=True)
    reader = ReadAhead(lambda begin, end, out: loaded.append(begin), [(i, i + 1) for i in range(9)], 1, D, kind(None))
    with closing(reader):
        wait_until(lambda: len(loaded) == 2)
        for i in range(7):
            reader.read(i, i + 1)
            wait_until(lambda: len(loaded) == i + 3 and not reader.arrivals.empty())  # noqa: B023
            time.sleep(0.002)
            assert loaded == list(range(i + 3)), "more than there is room for"


# Of whole stages


@pytest.fixture
def sorted_gallery() -> torch.Tensor:
    """In which neighbours are near each other in the file too, as in data sets that are sorted by identity."""
    return torch.from_numpy(np.concatenate([gallery(33, 24, seed, noise=0.3).features for seed in range(10)]))


@pytest.mark.parametrize("block_rows", [17, 100, 329, 330])
def test_blocks_that_are_copied_ahead_have_the_bits_of_the_whole(
    copies, sorted_gallery, tmp_path, monkeypatch, block_rows
):
    n, k1, k1_half = len(sorted_gallery), 12, 6
    np.save(tmp_path / "features.npy", sorted_gallery.numpy())
    features = FeatureRows.of("test", tmp_path / "features.npy")
    ring = blockwise.Ring.join(n, block_rows, torch.device("cpu"), None)
    lists = blockwise.knn_graph(features, k1, ring)
    want = ops.knn_graph(sorted_gallery, k1)
    assert_same_bits((lists.idx, lists.dist), want)
    seen = reads(monkeypatch)
    encoding = blockwise.k_reciprocal_encoding(features, lists.idx, k1_half, ring)
    assert_same_bits(encoding, ops.k_reciprocal_encoding(sorted_gallery, want[0], k1_half))
    if block_rows == 17:
        assert len(seen) < len(ring.blocks(ring.own)) ** 2 / 4, "blocks are read in vain"


def test_own_blocks_of_the_encoding_meet_once(copies, sorted_gallery, monkeypatch):
    """For the products of either side with the other, where all have members in all."""
    shuffled = sorted_gallery[torch.from_numpy(np.random.default_rng(0).permutation(len(sorted_gallery)))]
    idx = ops.knn_graph(shuffled, 12)[0]
    ring = blockwise.Ring.join(len(shuffled), 50, torch.device("cpu"), None)
    blocks, seen = len(ring.blocks(ring.own)), reads(monkeypatch)
    encoding = blockwise.k_reciprocal_encoding(FeatureRows.of("test", shuffled), idx, 6, ring)
    assert_same_bits(encoding, ops.k_reciprocal_encoding(shuffled, idx, 6))
    assert len(seen) == blocks * (blocks + 1) / 2


def test_an_op_that_is_interrupted_ends_the_thread(copies, sorted_gallery):
    features = FeatureRows.of("test", sorted_gallery)
    ring = blockwise.Ring.join(len(sorted_gallery), 50, torch.device("cpu"), None)

    def report(stage, done, total):
        if done > total // 2:
            assert workers()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blockwise.knn_graph(features, 12, ring, report)


@pytest.fixture(scope="module")
def ranks():
    forked = ForkedRanks()
    yield forked
    forked.close()


@pytest.mark.parametrize("cuts", [(0, 420), (0, 150, 420), (0, 129, 420), (0, 0, 77, 420), (0, 105, 210, 315, 420)])
@pytest.mark.parametrize("block_rows", [64, 1000])
@pytest.mark.parametrize("early", [0, 1])
def test_blocks_that_ranks_send_have_them_too(ranks, tmp_path, cuts, block_rows, early):
    made = gallery(420, 32)
    names = ("features", "camera_ids", "modality_ids")
    np.savez(tmp_path / "gallery.npz", **{name: getattr(made, name) for name in names})
    call = "same_stages_with_late_copies", early, tmp_path / "gallery.npz", block_rows, *cuts
    codes, texts = ranks(tmp_path, len(cuts) - 1, *call)
    assert codes == [0] * len(codes), texts
