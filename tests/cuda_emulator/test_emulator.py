"""The emulator itself: its primitives do what CUDA's do, and every planted bug is reported, by whom and how."""

from __future__ import annotations

import emulator_build as build
import pytest

SCHEDULES = (0, 1, 2, 3)

# Found by the emulator: the launch fails, under every schedule, with this in the message.
REPORTED = {
    "divergent_barrier": "barrier divergence: thread ",
    "exit_before_barrier": "exited",
    "read_from_exited_lane": "warp read from lane 20, which takes no part",
    "outside_own_mask": "is not in its own mask 0000ffff",
    "mixed_collectives": "lanes of one mask are in different warp collectives",
    "deadlock": "deadlock in block 0, 0 of 64 threads have exited; thread 0 at the warp collective of line ",
    "misaligned_copy": "copy_async16: misaligned address",
}

# Found by comparing: under one of the schedules the result is not the right one.
WRONG_RESULT = {
    "unwritten_shared",
    "missing_barrier",
    "missing_second_barrier",
    "missing_copy_wait",
    "wait_for_too_few_copies",
    "missing_barrier_after_copies",
}

# Found by a sanitizer, with this in its report.
SANITIZED = {
    "global_bounds": ("address", "heap-buffer-overflow"),
    "static_shared_bounds": ("address", "index 64 out of bounds for type 'float [64]'"),
    "dynamic_shared_bounds": ("address", "heap-buffer-overflow"),
    "misaligned_vector": ("address", "misaligned address"),
    "signed_overflow": ("address", "signed integer overflow"),
    "missing_barrier": ("thread", "data race"),
    "missing_second_barrier": ("thread", "data race"),
    "missing_syncwarp": ("thread", "data race"),
    "missing_barrier_after_copies": ("thread", "data race"),
    "lost_update": ("thread", "data race"),
    "race_between_blocks": ("thread", "data race"),
    "missing_fence": ("thread", "data race"),
}


@pytest.fixture(scope="module", autouse=True)
def programs():
    build.build_programs()


def run(name: str, *arguments, sanitizer: str = "plain"):
    if reason := build.missing(sanitizer):
        pytest.skip(reason)
    return build.run(build.program(name, sanitizer), *arguments, sanitizer=sanitizer)


def results(bug: str, kind: str, schedule: int, workers: int = 1, sanitizer: str = "plain") -> dict[str, str]:
    done = run("bugs", bug, kind, schedule, workers, sanitizer=sanitizer)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def right(programs) -> dict[str, str]:
    return results("all", "right", 0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
def test_primitives_do_what_cuda_does(sanitizer, schedule, workers):
    done = run("selftest", schedule, workers, sanitizer=sanitizer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "selftest passed\n"


def test_the_portable_context_switch_does_the_same():
    done = run("selftest_ucontext", 2, 2)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_planted_bug_is_somewhere_in_these_tables():
    assert set(run("bugs").stdout.split()) == {*REPORTED, *WRONG_RESULT, *SANITIZED}


@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_right_kernels_raise_no_alarm_and_give_one_result(right, sanitizer, schedule):
    assert results("all", "right", schedule, workers=2, sanitizer=sanitizer) == right


@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
@pytest.mark.parametrize("bug", REPORTED)
def test_the_emulator_reports(bug, sanitizer, right):
    """And no sanitizer takes offence at the threads that a failed launch leaves behind."""
    for schedule in SCHEDULES if sanitizer == "plain" else (3,):
        got = results(bug, "bug", schedule, workers=2, sanitizer=sanitizer)
        assert REPORTED[bug] in got[f"{bug} failed"]
        assert got[bug] == right[bug], "the launch after a failed one is not right"


@pytest.mark.parametrize("bug", sorted(WRONG_RESULT))
def test_a_schedule_shows(bug, right):
    assert any(results(bug, "bug", schedule)[bug] != right[bug] for schedule in SCHEDULES)


@pytest.mark.parametrize("bug", SANITIZED)
def test_a_sanitizer_reports(bug):
    sanitizer, report = SANITIZED[bug]
    done = run("bugs", bug, "bug", 0, 2, sanitizer=sanitizer)
    assert done.returncode == build.EXIT_CODE, done.stdout + done.stderr
    assert report in done.stderr
    assert "bugs.cu:" in done.stderr, "the report does not name the source line"


def test_shared_memory_that_nobody_wrote_shows(right):
    got = results("unwritten_shared", "bug", 0)["unwritten_shared"].split()
    want = right["unwritten_shared"].split()
    assert got == ["nan" if i % 2 == 0 else value for i, value in enumerate(want)]


def test_random_schedules_differ_and_can_be_repeated():
    first, again, other = (results("missing_barrier", "bug", schedule) for schedule in (2, 2, 3))
    assert first == again
    assert first != other
