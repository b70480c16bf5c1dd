"""`dmic evaluate`: score a trained network by the protocols of a data set."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from .. import process_group
from ..checkpoint import atomic_write
from ..report import protocol_table
from ..report_page import SYNTHETIC, is_synthetic
from ..run import build_dataset, embed_test, load_run, score
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic evaluate`."""
    parser.description = (
        "Embed the test images with the network of RUN and score them by every protocol of the data set."
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished `dmic train`")
    parser.add_argument("--data", type=Path, metavar="PATH", help="where the data set is now (data.root)")
    parser.add_argument("--rerank", action="store_true", help="also with k-reciprocal re-ranking, reported separately")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.json", help="default: evaluation.json in RUN")
    common.add_settings(parser)
    common.add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the table, and write the record of every protocol."""
    config, network = load_run(options.run_folder, tuple(options.set))
    if options.data is not None:
        config = replace(config, data=replace(config.data, root=str(options.data)))
    dataset = build_dataset(config)
    if dataset.test is None:
        raise ValueError(f"{dataset.name} has no test images with identities, so nothing can be scored")
    console, device = Console(highlight=False), common.device(options.device)
    with process_group.started(device) as group:
        is_main = process_group.rank(group) == 0
        with common.phases(console) if is_main else nullcontext() as progress:
            features = embed_test(network.to(device), dataset, progress, group)
            results = score(features, dataset, rerank=options.rerank, group=group)
    if not is_main:
        return 0
    console.print(protocol_table({"": results}))
    if is_synthetic(config):
        console.print(f"\n{SYNTHETIC}")
    out = options.out or options.run_folder / "evaluation.json"
    with atomic_write(out) as file:
        file.write((json.dumps([result.as_record() for result in results], indent=1) + "\n").encode())
    console.print(f"wrote {out}", soft_wrap=True)
    return 0
