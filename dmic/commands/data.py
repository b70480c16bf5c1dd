"""`dmic data`: find every problem of a data set, or write a synthetic one."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..data import check_dataset, detect_dataset
from ..data.kinds import READERS
from ..data.pedestrians import DEFAULT, Difficulty, write_pedestrians
from ..data.tree import COUNT, ERROR, NOTE
from . import NOT_HEALTHY, common

NAMES = {ERROR: "error{}", COUNT: "difference{} from the published data set", NOTE: "note{}"}  # {}: s or not

OPTIONS = {  # by the arguments that errors name
    "num_identities": "--identities",
    "num_test_identities": "--test-identities",
    "images_per_camera": "--images",
    "num_workers": "--workers",
    "root": "DIR",
    **{name: f"--{name.replace('_', '-')}" for name in ("camera_share", "height", "width", "seed")},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic data check` and `dmic data pedestrians`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    check = actions.add_parser("check", help="decode every image, and list everything that is wrong")
    check.add_argument("root", type=Path, metavar="PATH", help="the folder of SYSU-MM01, RegDB or LLCM, or a manifest")
    check.add_argument("--kind", choices=sorted(READERS), help="default: told from what is there")
    check.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: one per core)")
    draw = actions.add_parser("pedestrians", help="synthetic pedestrians in the layout of SYSU-MM01")
    draw.add_argument("root", type=Path, metavar="DIR", help="a folder that does not exist or is empty")
    draw.add_argument("--identities", type=int, default=100, metavar="N", help="people, test people included (100)")
    draw.add_argument("--test-identities", type=int, metavar="N", help="of them for testing (a fifth)")
    draw.add_argument("--images", type=int, default=8, metavar="N", help="images of a person in a camera, about (8)")
    draw.add_argument(
        "--camera-share", type=float, default=0.85, metavar="S", help="chance that a camera saw one (0.85)"
    )
    draw.add_argument(
        "--difficulty", type=float, default=1.0, metavar="D", help="spread within a person: pose, light, ... (1)"
    )
    draw.add_argument("--height", type=int, default=128, metavar="PIXELS", help="128")
    draw.add_argument("--width", type=int, default=64, metavar="PIXELS", help="64")
    draw.add_argument("--seed", type=int, default=0, metavar="N", help="0")
    draw.add_argument("--workers", type=int, default=0, metavar="N", help="processes that draw; 0: this one (0)")


def run(options: argparse.Namespace) -> int:
    """Check, or draw; a check that finds an error returns 1."""
    try:
        return _run(options)
    except ValueError as error:
        names = rf"(?<=: )({'|'.join(OPTIONS)})(?= must )|(?<= with )num_identities(?==)"  # and no part of a path
        raise ValueError(re.sub(names, lambda name: OPTIONS[name[0]], str(error))) from error


def _run(options: argparse.Namespace) -> int:
    console = Console(highlight=False)
    with common.phases(console) as progress:
        if options.action == "pedestrians":
            num_images = _write(options, progress)
            problems = None
        else:
            kind = options.kind or detect_dataset(options.root)
            problems = check_dataset(kind, options.root, num_workers=options.workers, progress=progress)
    if problems is None:
        console.print(f"wrote {num_images} images of synthetic pedestrians to {options.root}", soft_wrap=True)
        console.print(f"[dim]train on them: dmic train pedestrians --data {options.root}[/dim]", soft_wrap=True)
        return 0
    for problem in problems:
        console.print(str(problem), soft_wrap=True, markup=False)
    counts = Counter(problem.severity for problem in problems)
    summary = ", ".join(f"{n} {name.format('s' * (n != 1))}" for n, name in ((counts[k], NAMES[k]) for k in NAMES))
    console.print(f"{options.root} ({kind}): {summary}", soft_wrap=True, markup=False)
    return NOT_HEALTHY if counts[ERROR] else 0


def _write(options: argparse.Namespace, progress: Callable[[str, int, int], None] | None) -> int:
    spread, most = options.difficulty, 1 / DEFAULT.occlusion  # of images, whose share is at most 1
    if not 0 <= spread <= most:
        raise ValueError(f"--difficulty must be in [0, {most:g}], got {spread:g}")
    return write_pedestrians(
        options.root,
        num_identities=options.identities,
        num_test_identities=options.test_identities,
        images_per_camera=options.images,
        camera_share=options.camera_share,
        difficulty=Difficulty(pose=spread, framing=spread, light=spread, occlusion=DEFAULT.occlusion * spread),
        height=options.height,
        width=options.width,
        seed=options.seed,
        num_workers=options.workers,
        progress=progress,
    )
