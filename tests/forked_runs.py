"""`dmic` in children of one process that has imported it, each with a fate: a place where it is killed by SIGKILL.

As a script it reads one JSON object a line, {"arguments": [...], "log": FILE, "fate": NAME, ...}, forks a child that
runs the command, and answers with the child's exit code, -9 if it was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path


class ForkedRuns:
    """The process that forks, on one thread; close it."""

    def __init__(self, folder: Path):
        self._log = folder / "output.txt"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def __call__(self, *arguments: object, fate: str = "lives", **details: object) -> tuple[int, str]:
        """Exit code and output of `dmic` with these arguments."""
        order = {"arguments": [str(a) for a in arguments], "log": str(self._log), "fate": fate, **details}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline()), self._log.read_text()

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait() == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fates:
    """What is done to a child before it runs; every name is a fate."""

    def lives(self) -> None:
        pass

    def killed_after(self, checkpoints: int, seconds: float) -> None:
        """At any moment after the child has written so many checkpoints, and before it has written two more."""
        self._at_checkpoint(checkpoints + 2, before=die)
        timer = threading.Timer(seconds, die)
        timer.daemon = True
        if checkpoints:
            self._at_checkpoint(checkpoints, after=timer.start)
        else:
            timer.start()

    def killed_before_rename(self, checkpoints: int) -> None:
        self._at_checkpoint(checkpoints, before=die)

    def killed_after_rename(self, checkpoints: int) -> None:
        self._at_checkpoint(checkpoints, after=die)

    def killed_in_write(self, checkpoints: int) -> None:
        """When half of the bytes of that checkpoint are in its file."""
        from dmic import checkpoint

        whole, count = checkpoint.atomic_write, 0

        @contextmanager
        def half(path):
            nonlocal count
            count += 1
            with whole(path) as file:
                yield self._Half(file) if count == checkpoints else file

        checkpoint.atomic_write = half

    class _Half:
        def __init__(self, file):
            self._file = file

        def write(self, data: bytes) -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()

    def killed_in_log(self) -> None:
        """When half a line of metrics is in the file."""
        from dmic import run

        def log(folder, record):
            line = json.dumps(run.without_nan(record))
            with (folder / run.METRICS).open("a") as file:
                file.write(line[: len(line) // 2])
            die()

        run.RunFolder.log = log

    def killed_after_log(self) -> None:
        from dmic import run

        whole = run.RunFolder.log
        run.RunFolder.log = lambda folder, record: (whole(folder, record), die())

    def killed_in_phase(self, phase: str) -> None:
        """When that phase shows its first progress."""
        from dmic.commands import common

        @contextmanager
        def phases(console):
            yield lambda name, done, total: die() if name == phase else None

        common.phases = phases

    def _at_checkpoint(self, number: int, before=lambda: None, after=lambda: None) -> None:
        whole, count = os.replace, 0

        def replace(source, target):
            nonlocal count
            count += Path(target).name == "checkpoint.safetensors"
            moment = count == number
            if moment:
                before()
            whole(source, target)
            if moment:
                after()

        os.replace = replace


def note_pseudo_labels() -> None:
    """Every record says which labels its epoch had."""
    from dmic import run

    whole = run.known_quality

    def known_quality(labels, person_ids):
        names = ("visible", "infrared", "shared")
        digests = {name: hashlib.sha256(getattr(labels, name).numpy()).hexdigest() for name in names}
        return {"labels": digests} | whole(labels, person_ids)

    run.known_quality = known_quality


def main() -> None:
    from dmic import cli
    from dmic.commands import train  # noqa: F401 (imported once, for all children)

    note_pseudo_labels()
    for line in sys.stdin:
        order = json.loads(line)
        arguments, log, fate = (order.pop(name) for name in ("arguments", "log", "fate"))
        child = os.fork()
        if child == 0:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = 1
            try:
                getattr(Fates(), fate)(**order)
                code = cli.main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
