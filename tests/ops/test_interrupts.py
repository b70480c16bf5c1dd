"""Long-running ops: Ctrl-C, progress, other Python threads."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from compare import assert_same_bits
from generators import csr_from_dense, gallery, random_encoding_rows

import dmic
from dmic import ops

FEATURES = gallery(3000, 700).features


def long_encoding() -> dmic.Csr:
    """Rows of about 300 weights in 1200 columns: joining them takes a while."""
    return csr_from_dense(random_encoding_rows(1200, 1200, 300))


@pytest.fixture(scope="module")
def runs() -> dict[str, Callable]:
    """Every op on an input that takes it some time: runs[op](progress=...)."""
    neighbor_idx = dmic.knn_graph(FEATURES, 40)[0]
    encoding = dmic.k_reciprocal_encoding(FEATURES, neighbor_idx, 20)
    sets = ops.k_reciprocal_sets(neighbor_idx, 20)
    dots = ops.sampled_dots(FEATURES, FEATURES, *sets)
    wide = long_encoding()
    chain = dmic.jaccard_distance(dmic.invariant_expansion(encoding, neighbor_idx, 32), 1.0)
    return {
        "knn_graph": lambda **options: dmic.knn_graph(FEATURES, 40, **options),
        "k_reciprocal_encoding": lambda **options: dmic.k_reciprocal_encoding(FEATURES, neighbor_idx, 20, **options),
        "k_reciprocal_sets": lambda **options: ops.k_reciprocal_sets(neighbor_idx, 20, 100, **options),
        "sampled_dots": lambda **options: ops.sampled_dots(FEATURES, FEATURES, *sets, **options),
        "k_reciprocal_weights": lambda **options: ops.k_reciprocal_weights(*sets, dots, **options),
        "invariant_expansion": lambda **options: dmic.invariant_expansion(encoding, neighbor_idx, 32, **options),
        "jaccard_distance": lambda **options: dmic.jaccard_distance(wide, 1.0, **options),
        "dbscan": lambda **options: dmic.dbscan(chain, 0.6, 4, **options),
    }


PIECES = ["k_reciprocal_sets", "sampled_dots", "k_reciprocal_weights"]
OPS = ["knn_graph", "k_reciprocal_encoding", *PIECES, "invariant_expansion", "jaccard_distance", "dbscan"]


@pytest.mark.parametrize("op", OPS)
def test_progress_rises_to_the_total_and_comes_from_the_calling_thread(runs, op):
    calls, callers = [], set()

    def progress(stage, done, total):
        calls.append((stage, done, total))
        callers.add(threading.get_ident())

    result = runs[op](progress=progress)
    stages, done, totals = zip(*calls, strict=True)
    assert set(stages) == {op}
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, totals[0])
    assert callers == {threading.get_ident()}
    assert_same_bits(result, runs[op]())


def test_progress_comes_a_few_times_a_second(runs):
    times = [time.perf_counter()]
    runs["knn_graph"](progress=lambda *_: times.append(time.perf_counter()))
    seconds = time.perf_counter() - times[0]
    assert len(times) <= 4 + 25 * seconds, "no more than about twenty times a second"
    assert np.diff(times).max() < 1


@pytest.mark.parametrize("op", OPS)
def test_an_exception_of_the_callback_stops_the_op_and_propagates(runs, op):
    class Stop(Exception):
        pass

    reason = Stop("enough")

    def progress(stage, done, total):
        raise reason

    with pytest.raises(Stop) as caught:
        runs[op](progress=progress)
    assert caught.value is reason
    assert_same_bits(runs[op](), runs[op]())


def test_an_exception_half_way_stops_the_op_early():
    """Seconds of work on two cores, and still a few tenths on sixty."""
    features = np.random.default_rng(0).standard_normal((30_000, 1024), dtype=np.float32)
    seen = []

    def progress(stage, done, total):
        seen.append(done / total)
        if done:
            raise StopIteration

    with pytest.raises(StopIteration):
        dmic.knn_graph(features, 10, progress=progress)
    assert seen[-1] < 1


def test_a_callback_may_run_an_op_itself():
    """At the beginning, at the end and on the way, which takes some tenths of a second on two cores."""
    inner = []
    want = dmic.knn_graph(FEATURES[:50], 3)
    features = np.random.default_rng(0).standard_normal((20_000, 512), dtype=np.float32)
    dmic.knn_graph(features, 10, progress=lambda *_: inner.append(dmic.knn_graph(FEATURES[:50], 3)))
    assert len(inner) >= 3
    for result in inner:
        assert_same_bits(result, want)


@pytest.mark.parametrize("op", ["knn_graph", "jaccard_distance"])
def test_another_python_thread_keeps_running(runs, op):
    """An op that held the global lock would let the other thread run only between two ops, not inside one."""
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        spans = []
        while len(spans) < 3:
            start = time.perf_counter()
            runs[op]()
            spans.append((start, time.perf_counter()))
    finally:
        stop.set()
        thread.join()
    assert max(sum(start < t < end for t in ticks) for start, end in spans) > 5


@pytest.mark.parametrize("op", OPS)
def test_threads_may_run_ops_at_the_same_time(runs, op):
    want = runs[op]()
    counts = [[], []]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(runs[op], progress=lambda *call, seen=seen: seen.append(call[1])) for seen in counts]
        for future in futures:
            assert_same_bits(future.result(), want)
    assert all(seen == sorted(seen) for seen in counts), "the progress of one run must not mix with another's"


PROGRAM = """
import numpy as np
import dmic

{setup}
small = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
before = dmic.knn_graph(small, 5)
print("ready", flush=True)
try:
    while True:
        {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
after = dmic.knn_graph(small, 5)
assert all((a == b).all() for a, b in zip(before, after))
print("usable", flush=True)
"""

LONG_RUNS = {  # setup and call; seconds to minutes, were it not interrupted
    "knn_graph": (
        "features = np.random.default_rng(0).standard_normal((40_000, 2048), dtype=np.float32)",
        "dmic.knn_graph(features, 40)",
    ),
    "jaccard_distance": (
        """
n, nnz = 30_000, 600
columns = np.sort(np.random.default_rng(0).integers(0, n // nnz, (n, nnz)) + np.arange(nnz) * (n // nnz), axis=1)
values = np.full((n, nnz), (1 << 30) // nnz, np.int32)
values[:, 0] += (1 << 30) - values[0].sum()
encoding = dmic.Csr(nnz * np.arange(n + 1), columns.astype(np.int32).ravel(), values.ravel(), n)
""",
        "dmic.jaccard_distance(encoding, 1.0)",
    ),
}


@pytest.mark.parametrize("op", LONG_RUNS)
def test_ctrl_c_interrupts_within_a_second_and_leaves_the_process_usable(op):
    setup, call = LONG_RUNS[op]
    program = textwrap.dedent(PROGRAM).format(setup=setup, call=call)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)
            assert process.poll() is None
            start = time.perf_counter()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            seconds = time.perf_counter() - start
            assert process.stdout.readline() == "usable\n"
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert seconds < 1.0


def test_the_first_exception_of_a_callback_propagates_and_it_is_not_called_again():
    calls = []

    def progress(stage, done, total):
        calls.append(done)
        if len(calls) > 1:
            time.sleep(0.1)  # longer than the interval between two reports
            raise LookupError(f"call {len(calls)}")

    features = np.random.default_rng(0).standard_normal((6000, 512), dtype=np.float32)
    with pytest.raises(LookupError, match="call 2"):
        dmic.knn_graph(features, 5, progress=progress)
    assert len(calls) == 2


@pytest.mark.parametrize("reports", [False, True])
def test_an_interpreter_exits_cleanly_while_a_thread_runs_an_op(reports):
    """Many rows of few columns: nothing but the op itself takes time, and it takes longer than the process lives."""
    program = f"""
    import threading, time
    import numpy as np
    import dmic
    features = np.random.default_rng(0).standard_normal((200_000, 64), dtype=np.float32)
    begun = threading.Event()
    progress = (lambda *_: (begun.set(), time.sleep(0.03))) if {reports} else None  # wakes up while the process ends
    threading.Thread(target=dmic.knn_graph, args=(features, 20), kwargs=dict(progress=progress), daemon=True).start()
    begun.wait(30 if {reports} else 0.5)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
