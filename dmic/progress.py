"""How far a stage has come: a bar for each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on a terminal; elsewhere a line at its start and after each quarter of it, with the time."""
    if not sys.stdout.isatty():
        seen: dict[str, int] = {}
        start = time.monotonic()

        def report(stage: str, done: int, total: int) -> None:
            quarter = 4 * done // total if total else 4
            if quarter > seen.get(stage, -1):
                seen[stage] = quarter
                print(f"{stage}: {25 * quarter} %, {time.monotonic() - start:.0f} s", flush=True)

        yield report
        return

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update
