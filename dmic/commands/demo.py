"""`dmic demo`: train on the embedded gallery without labels, then retrieve unseen places across modalities."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from .. import process_group
from ..config import load_config
from ..run import RunFolder
from . import common
from .train import train_in

QUICK = (
    "data.num_crops=2",
    *(f"stage{stage}.{kind}.{name}" for stage in (1, 2) for kind in ("per_modality",) for name in ("k1=8", "k2=3")),
    *(f"stage{stage}.{kind}.min_samples=3" for stage in (1, 2) for kind in ("per_modality", "joint")),
    "stage2.joint.k1=14",
    "stage2.joint.k2=8",
    "stage1.num_epochs=1",
    "stage2.num_epochs=1",
    "train.num_iterations=4",
    "train.warmup=4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic demo`."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: runs/demo, runs/demo-2, ...)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of weights, batches and views; the split of the places stays"
    )
    parser.add_argument(
        "--quick", action="store_true", help="shows that everything runs, learns little; seconds on idle cores"
    )
    common.add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Train by the recipe `landsat`, print scores, and draw what unseen queries retrieve before and after."""
    if not process_group.is_alone():
        raise ValueError("the demo is of one process: start it without torchrun; `dmic train landsat` is of several")
    settings = [*(QUICK if options.quick else ()), *options.set]
    if options.seed is not None:
        settings.append(f"train.seed={options.seed}")
    config = load_config("landsat", settings)
    folder = RunFolder(options.out or _new_folder(Path("runs")))
    console = Console(highlight=False)
    console.print("[bold]dmic demo[/bold]: who is who across modalities, learned without labels")
    console.print(
        "Six sensor bands of one Landsat-7 scene (Olinda, Brazil; USGS, public domain):\n"
        "blue, green, red are visible; NIR, SWIR1, SWIR2 are infrared. A place is an\n"
        "identity, a band is a camera, a sample is a small noisy crop. Which crop shows\n"
        "which place is used for the scores only, and test places are never trained on.\n"
    )
    train_in(folder, config, console, resume=False, device="cpu")
    return 0


def _new_folder(parent: Path) -> Path:
    """runs/demo, or the first free runs/demo-NUMBER."""
    number, folder = 1, parent / "demo"
    while folder.exists():
        number += 1
        folder = parent / f"demo-{number}"
    return folder
