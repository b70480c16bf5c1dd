"""Options and progress that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import process_group
from .._arrays import check_device
from ..config import Config
from ..process_group import Group

MOST_MINUTES = 10**6  # two years


def add_settings(parser: argparse.ArgumentParser) -> None:
    """`--set section.key=value`, as often as needed."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting of those in the config.toml of any run; may be repeated",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="cpu, cuda or cuda:1 (default: a GPU if there is one)"
    )


def add_timeout(parser: argparse.ArgumentParser, minutes: float) -> None:
    """`--timeout`, and its default."""
    parser.add_argument(
        "--timeout",
        type=_minutes,
        default=minutes,
        metavar="MINUTES",
        help=f"under torchrun: give a silent rank up (default: {minutes})",
    )


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"must be minutes in (0, {MOST_MINUTES}], got {text!r}")
    return minutes


def at_data(config: Config, root: Path) -> Config:
    """The configuration with its data set where `--data` says; ValueError if its images are part of the package."""
    if config.data.kind == "landsat":
        raise ValueError(f"--data {root}: the images of landsat are part of dmic, leave it out")
    return replace(config, data=replace(config.data, root=str(root)))


@contextmanager
def joined(options: argparse.Namespace) -> Iterator[tuple[str, Group]]:
    """The device that `--device` means on this rank, and the group of all ranks for as long as the block lasts.

    Raises:
        ValueError: on every rank, if one has no such device, or one of another kind than rank 0.
        ConnectionError: another rank was lost.
    """
    name, problem = "cpu", None
    try:
        name = device(options.device)
        if name.startswith("cuda") and not process_group.is_alone():
            torch.cuda.set_device(name)  # a GPU that is full or broken fails here
    except ValueError as error:
        if process_group.is_alone():
            raise
        problem = str(error)
    except RuntimeError as error:
        problem = f"{name} cannot be used ({process_group.backend_error(error)})"
    with process_group.started("cpu" if problem else name, timedelta(minutes=options.timeout)) as group:
        with process_group.Watch(group).guard():
            process_group.agree("--device", {"kind of device": torch.device(name).type}, group, problem)
        yield name, group


def device(name: str) -> str:
    """The device that `--device` means, for every rank of a machine another GPU; ValueError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not process_group.is_alone():
        if name != "cuda":
            raise ValueError(f"--device {name}: every rank takes the GPU of its own number, use --device cuda")
        found, rank = torch.cuda.device_count(), process_group.local_rank()
        if rank >= found:
            fewer = f"start torchrun with --nproc-per-node {found}, or " if found else ""
            raise ValueError(f"no GPU is left for local rank {rank}, the machine has {found}: {fewer}give --device cpu")
        name = f"cuda:{rank}"
    check_device("--device", name)
    return name


@contextmanager
def phases(console: Console) -> Iterator[Callable[[str, int, int], None] | None]:
    """One bar that shows the phase at work and vanishes; None where there is no terminal."""
    if not console.is_terminal:
        with nullcontext():
            yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: tuple[Any, ...] = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        now = ""

        def update(phase: str, done: int, total: int) -> None:
            nonlocal now
            if phase != now:
                now = phase
                bars.reset(task, description=phase, total=total)
            bars.update(task, completed=done, total=total)

        yield update
