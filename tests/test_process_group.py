"""What a rank says of another that is lost, and what it does with SIGTERM: decided here, without a second process."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dmic import process_group
from dmic.process_group import Watch


@pytest.fixture
def watch(monkeypatch):
    """Of rank 0 of three, in "dbscan", whose store is in this process; the others are in "knn_graph"."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(Watch, "GRACE", 0.0)
    monkeypatch.setattr(Watch, "_is_gone", lambda watch, other: other in watch.gone)
    made = Watch(SimpleNamespace(rank=lambda: 0, size=lambda: 3))
    made.gone = []
    made.enter("dbscan")
    for other in (1, 2):
        made.store.set(made._key("phase", other), "knn_graph")
    return made


LOST = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def raise_in(watch, error) -> None:
    with watch.guard():
        raise error


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("noted", "gone", "said"),
    [
        ({1: ("failed", "ValueError: no")}, [2], "rank 1 failed in knn_graph: ValueError: no"),
        ({}, [2], "rank 2 in knn_graph: killed, or no answer within the timeout"),
        ({}, [], "rank 1 in knn_graph, rank 2 in knn_graph: killed, or no answer within the timeout"),
        ({1: ("survived", "dbscan")}, [], "rank 2 in knn_graph: killed, or no answer within the timeout"),
        ({1: ("stopped", "knn_graph")}, [], "rank 1 was stopped in knn_graph"),
        ({1: ("stopped", "knn_graph")}, [2], "rank 2 in knn_graph: killed, or no answer within the timeout"),
        (
            {1: ("survived", "dbscan"), 2: ("survived", "dbscan")},
            [],
            "the ranks lost each other in dbscan; is the network there, and the timeout long enough? "
            "([gloo/transport/tcp/pair.cc:547] Connection closed by peer)",
        ),
    ],
)
def test_a_rank_that_loses_another_names_it(watch, noted, gone, said):
    for other, (ending, text) in noted.items():
        watch.store.set(watch._key(ending, other), text)
    watch.gone = gone
    with pytest.raises(ConnectionError) as found:
        raise_in(watch, LOST)
    assert str(found.value) == said
    assert watch._read("survived", 0) == "dbscan"


ALONE = "stopped by SIGTERM in dbscan"


@pytest.mark.parametrize(
    ("noted", "gone", "said"),
    [
        ({}, [], ALONE),
        ({1: "stopped", 2: "stopped"}, [], ALONE),
        ({}, [2], "rank 2 in knn_graph: killed, or no answer within the timeout"),
        ({1: "survived"}, [], "rank 2 in knn_graph: killed, or no answer within the timeout"),
        ({1: "stopped", 2: "survived"}, [1], "rank 1 was stopped in knn_graph"),
    ],
)
def test_a_rank_that_is_stopped_says_after_whom(watch, noted, gone, said):
    for other, ending in noted.items():
        watch.store.set(watch._key(ending, other), "knn_graph")
    watch.gone = gone
    with pytest.raises(ConnectionError) as found, watch.guard():
        stop()
    assert str(found.value) == said
    assert watch._read("stopped", 0) == "dbscan"


def test_others_have_a_moment_to_say_what_went_wrong(watch, monkeypatch):
    monkeypatch.setattr(Watch, "GRACE", 20.0)
    tell = threading.Timer(0.1, watch.store.set, [watch._key("failed", 2), "ValueError: late"])
    tell.start()
    with pytest.raises(ConnectionError, match=r"^rank 2 failed in knn_graph: ValueError: late$"):
        raise_in(watch, LOST)
    tell.join()


def test_ctrl_c_stays_what_it_is_and_others_know(watch):
    with pytest.raises(KeyboardInterrupt):
        raise_in(watch, KeyboardInterrupt())
    assert watch._read("stopped", 0) == "dbscan"
    assert watch._read("failed", 0) is None


def test_an_error_that_was_caught_is_not_told_for_the_next(watch):
    for error in (ValueError("first"), TypeError("second")):
        with pytest.raises(type(error)):
            raise_in(watch, error)
    assert watch._read("failed", 0) == "TypeError: second"


def test_of_nested_guards_the_inner_one_tells(watch):
    def outer() -> None:
        with watch.guard():
            try:
                raise_in(watch, ValueError("inner"))
            except ValueError as error:
                raise TypeError("outer") from error

    with pytest.raises(TypeError, match="outer"):
        outer()
    assert watch._read("failed", 0) == "ValueError: inner"


def test_without_a_store_that_is_said(watch, monkeypatch):
    def gone(*_):
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(watch, "store", SimpleNamespace(set=gone, check=lambda _: False))
    with pytest.raises(ConnectionError, match=r"^the store of the job is gone, and with it the process that kept it"):
        watch.enter("knn_graph")
    said = r"^the process that keeps the store of the job is gone; this rank was in knn_graph \(Connection reset"
    monkeypatch.setattr(watch, "ENDINGS", ())
    with pytest.raises(ConnectionError, match=said):
        raise_in(watch, LOST)


def test_sigterm_is_caught_in_guards_alone_and_only_once(watch, monkeypatch):
    before, handlers = signal.getsignal(signal.SIGTERM), []
    tell = Watch._tell

    def told(*given):
        handlers.append(signal.getsignal(signal.SIGTERM))
        return tell(*given)

    monkeypatch.setattr(Watch, "_tell", told)
    with watch.guard():
        assert signal.getsignal(signal.SIGTERM) is process_group._raise_stopped
    assert signal.getsignal(signal.SIGTERM) is before

    def nested() -> None:
        with watch.guard():
            try:
                with watch.guard():
                    stop()
            finally:
                handlers.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(ConnectionError, match=f"^{ALONE}$"):
        nested()
    assert handlers == [signal.SIG_IGN] * 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_handles_sigterm_keeps_it(watch):
    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with watch.guard():
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_guard_may_be_on_any_thread(watch):
    done = []

    def work() -> None:
        with watch.guard():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("something odd"), True),
        (LOST, True),
        (RuntimeError("NCCL communicator was aborted"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (2)"), False),
    ],
)
def test_which_errors_mean_that_a_rank_is_lost(error, lost):
    assert process_group.is_lost(error) == lost


def test_a_process_that_is_alone_has_lost_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError) as found, process_group.started("cpu"):
        raise LOST
    assert found.value is LOST


def test_a_group_is_left_in_order_unless_there_was_an_error(monkeypatch):
    left = []
    monkeypatch.setattr(process_group, "start", lambda device, timeout: "group")
    monkeypatch.setattr(process_group, "stop", left.append)
    with process_group.started("cpu") as group:
        assert (group, left) == ("group", [])
    assert left == ["group"]
    with pytest.raises(RuntimeError, match=r"^a mistake$"), process_group.started("cpu"):
        raise RuntimeError("a mistake")
    with pytest.raises(ConnectionError, match=r"^another rank has ended.*\(\[gloo"), process_group.started("cpu"):
        raise LOST
    assert left == ["group"]


@pytest.mark.parametrize(("local", "order"), [("0", ["block", "barrier"]), ("1", ["barrier", "block"])])
def test_the_first_of_a_machine_goes_before_the_others(monkeypatch, local, order):
    seen = []
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(process_group, "barrier", lambda group: seen.append("barrier"))
    with process_group.first_on_its_machine(None):
        seen.append("block")
    assert seen == order


def test_a_digest_is_of_the_values_wherever_they_lie():
    values = torch.arange(12).view(3, 4)
    assert process_group.digest(values.T) == process_group.digest(values.T.contiguous()) != process_group.digest(values)
