"""What an emulated kernel must do, as cases with the result of the CPU op: the same bits, or the same error. The cases
of kernel file <stem>.cu, and the mistakes in it that they must notice, are in kernels/<stem>.py.

As a program, `kernel_checks.py TASKS REPORT` reads {name: {"library": path, "stem": kernel file whose cases to run,
"workers": counts}} as JSON, checks each library in a child process of its own, which a sanitizer or a wild pointer may
stop, and writes {name: what was found, or null} as JSON. test_kernels.py starts it with a sanitizer preloaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType

import emulator_build as build
import torch
from emulator_cases import Case, Mutant

SCHEDULES = (0, 1, 2, 3)
CASES = build.HERE / "kernels"
STEMS = [path.stem for path in build.KERNELS if (CASES / f"{path.stem}.py").exists()]
UNDER_THREAD_SANITIZER = "libtsan" in os.environ.get("LD_PRELOAD", "")
SCHEDULES_UNDER_THREAD_SANITIZER = (1, 2)  # it judges by what orders threads, not by their order
MAX_ELEMENTS_UNDER_THREAD_SANITIZER = 10_000  # it is slow, and does not care for values


@cache
def module(stem: str) -> ModuleType:
    """kernels/<stem>.py"""
    spec = importlib.util.spec_from_file_location(f"emulated_{stem}", CASES / f"{stem}.py")
    result = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = result  # dataclasses look there
    spec.loader.exec_module(result)
    return result


@cache
def cases(stem: str) -> list[Case]:
    good, bad = list(module(stem).good_cases()), list(module(stem).bad_cases())
    for case in good:
        assert not isinstance(case.expected, str), f"{case.name}: {case.expected}"
    for case in bad:
        assert isinstance(case.expected, str), f"{case.name} raised nothing"
    return bad + good  # the quick ones first


def mutants(stem: str) -> list[Mutant]:
    return [*module(stem).MUTANTS, *module(stem).EQUIVALENT]


def mutated_file(stem: str, mutant: Mutant) -> Path:
    return build.CSRC / "cuda" / "kernels" / (mutant.file or f"{stem}.cu")


class Emulator:
    """An op library that is built for the emulator; one per process, since it registers torch.ops.dmic_emu."""

    def __init__(self, library: str | Path):
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.dmic_emulator_configure.argtypes = [ctypes.c_long, ctypes.c_int]
        self.ops = torch.ops.dmic_emu

    def configure(self, schedule: int = 0, workers: int = 1) -> None:
        self._library.dmic_emulator_configure(schedule, workers)

    @contextmanager
    def polled(self, poll: Callable[[str, int, int], bool]) -> Iterator[None]:
        """Ops call poll(stage, done, total) as they go, and stop with an error where it returns True."""
        function = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64)
        callback = function(lambda stage, done, total: poll(stage.decode(), done, total))
        self._library.dmic_emulator_set_poll(callback)
        try:
            yield
        finally:
            self._library.dmic_emulator_set_poll(None)


@cache
def plain_emulator() -> Emulator:
    """The one of this process, without sanitizers; built first."""
    build.build([build.library()])
    return Emulator(build.library())


def check_library(library: str, stem: str, workers: Iterable[int]) -> None:
    """Raises at the first case that goes wrong. All cases under one schedule first: most mistakes show under any."""
    emulator = Emulator(library)
    schedules, checked = SCHEDULES, cases(stem)
    if UNDER_THREAD_SANITIZER:
        schedules = SCHEDULES_UNDER_THREAD_SANITIZER
        checked = [case for case in checked if case.num_elements() <= MAX_ELEMENTS_UNDER_THREAD_SANITIZER]
    for schedule, count in product(schedules, workers):
        emulator.configure(schedule, count)
        for case in checked:
            case.check(emulator.ops)


def check_in_child(library: str, stem: str, workers: list[int], cpu_seconds: int) -> str | None:
    """What is wrong with a library, or None. The child leaves with a message and a status, or is killed: what never
    ends spins, so the time of the processor is limited, which other work on the machine does not change."""
    cases(stem)  # here, so that every child has them
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            signal.alarm(20 * cpu_seconds)  # should it wait for ever instead
            status = 1
            try:
                check_library(library, stem, workers)
                status = 0
            except Exception as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        text = log.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        return f"{signal.Signals(os.WTERMSIG(status)).name} {text}"
    if os.WEXITSTATUS(status) or "Sanitizer" in text:
        return f"exit status {os.WEXITSTATUS(status)}: {text}"
    return None


def main() -> None:
    tasks, report = map(Path, sys.argv[1:])
    torch.set_num_threads(1)  # a forked child has no pool
    found = {name: check_in_child(**task) for name, task in json.loads(tasks.read_text()).items()}
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
