"""`dmic train`: a recipe or a configuration, from images without identities to a network."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from .. import process_group
from ..config import Config, load_config, read_toml, recipes
from ..evaluate import ProtocolResult
from ..landsat_picture import retrieval_picture
from ..models import embed
from ..process_group import Group
from ..report import EpochLines, protocol_table
from ..report_page import REPORT, SYNTHETIC, is_synthetic, write_report
from ..run import CHECKPOINT, CONFIG, METRICS, WEIGHTS, RunFolder, build_network, run_training
from . import common

PICTURE = "retrieval.png"  # of a run on the embedded gallery


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic train`."""
    parser.description = "Train on images without identities, and score the network where a test set has them."
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help=f"{', '.join(sorted(recipes()))}, or a TOML file of your own"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="the data set's folder, or a manifest (data.root)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out; RECIPE may be left out")
    common.add_settings(parser)
    common.add_device(parser)
    common.add_timeout(parser, 120)


def run(options: argparse.Namespace) -> int:
    """Train, and print every epoch; what it leaves behind is in the run's folder."""
    with common.joined(options) as (device, group):
        with process_group.Watch(group).guard():
            folder, config = resolve(options)
        if process_group.rank(group) == 0:
            console = Console(highlight=False)
            train_in(folder, config, console, resume=options.resume, device=device, group=group)
        else:
            run_training(config, folder, resume=options.resume, device=device, group=group)
    return 0


def resolve(options: argparse.Namespace) -> tuple[RunFolder, Config]:
    """The run's folder, and the configuration that the options ask for."""
    if options.recipe is None and not (options.resume and options.out):
        raise ValueError(f"name a RECIPE ({', '.join(sorted(recipes()))}) or a TOML file, or --resume with --out DIR")
    out = options.out or Path("runs") / Path(options.recipe).stem
    if options.recipe is not None:
        config = load_config(options.recipe, options.set)
    elif (out / CONFIG).exists():
        config = load_config(str(out / CONFIG), options.set)
    else:
        raise ValueError(f"{out}: there is no run to resume, {CONFIG} is missing")
    if options.data is not None:
        config = common.at_data(config, options.data)
    elif options.resume and not config.data.root and (out / CONFIG).exists():
        config = replace(config, data=replace(config.data, root=read_toml(out / CONFIG).data.root))
    return RunFolder(out), config


def train_in(folder: RunFolder, config: Config, console: Console, *, resume: bool, device: str, group: Group = None):
    """`run_training` with a line for every epoch, tables of scores, a report, and the names of what was written."""
    lines = EpochLines(console)
    with common.phases(console) as progress:
        network, dataset = run_training(
            config, folder, resume=resume, device=device, report=lines.show, progress=progress, group=group
        )
    records = folder.records()
    scored = [record for record in records if record.get("retrieval")]
    moments = (
        {
            name: [ProtocolResult.from_record(result) for result in record["retrieval"]]
            for name, record in (("before", scored[0]), ("after", scored[-1]))
        }
        if scored
        else {}
    )
    console.print()
    if moments:
        console.print(protocol_table(moments))
        console.print("\nScores are of the last epoch, not of the best one.")
        if is_synthetic(config):
            console.print(SYNTHETIC)
    write_report(folder, config, network, dataset)
    written = [
        (REPORT, "scores, curves and pictures, for a browser"),
        (METRICS, "one record per epoch"),
        (CONFIG, "every setting; `dmic train` with it repeats the run"),
        (WEIGHTS, "the trained network, for `dmic evaluate` and `dmic embed`"),
        (CHECKPOINT, "its last state, optimiser and memories included"),
    ]
    if config.data.kind == "landsat" and config.network.weights in ("imagenet", "random") and moments:
        networks = build_network(config, dataset.train.images.shape[1]), network
        features = tuple(embed(each, dataset.test.unlabeled, device="cpu") for each in networks)
        rank1 = tuple(results[0].cmc[1].mean for results in moments.values())
        retrieval_picture(dataset.test, features, rank1).save(folder / PICTURE)
        written.append((PICTURE, "infrared queries and the visible places they retrieve, before and after"))
    console.print()
    for name, what in written:
        console.print(f"wrote {folder / name}  [dim]{what}[/dim]", soft_wrap=True)
