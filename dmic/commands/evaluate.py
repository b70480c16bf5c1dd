"""`dmic evaluate`: score a trained network by the protocols of a data set."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from .. import process_group
from ..checkpoint import atomic_write
from ..config import Config
from ..data import Dataset
from ..evaluate import pooled
from ..npz import check_output
from ..report import protocol_table
from ..report_page import SYNTHETIC, is_synthetic
from ..run import (
    WEIGHTS,
    agree_on_images,
    agree_on_settings,
    agree_on_weights,
    build_dataset,
    embed_test,
    load_run,
    score,
)
from . import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic evaluate`."""
    parser.description = (
        "Embed the test images with the network of RUN and score them by every protocol of the data set. "
        "Of several runs, such as those of RegDB's ten trials or of several seeds, scores are means over all trials."
    )
    parser.add_argument(
        "run_folders", type=Path, nargs="+", metavar="RUN", help="the folder of a finished `dmic train`"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="where the data set is now (data.root)")
    parser.add_argument("--rerank", action="store_true", help="also with k-reciprocal re-ranking, reported separately")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT.json", help="default: evaluation.json in RUN, if it is one"
    )
    common.add_settings(parser)
    common.add_device(parser)
    common.add_timeout(parser, 120)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the table, and write the record of every protocol."""
    if len(options.run_folders) > 1 and options.out is None:
        raise ValueError("the scores of several runs need a file of their own: -o OUT.json")
    out = options.out or options.run_folders[0] / "evaluation.json"
    console = Console(highlight=False)
    found = []
    with common.joined(options) as (device, group):
        is_main = process_group.rank(group) == 0
        watch = process_group.Watch(group)
        with watch.guard(), common.phases(console) if is_main else nullcontext() as progress:
            runs = [load_run(folder, tuple(options.set)) for folder in options.run_folders]
            check_output(out, options.run_folders[0] / WEIGHTS, (".json",))
            for config, network in runs:
                agree_on_settings(config, group)
                agree_on_weights(network, group)
                dataset = open_test(config, options.data)
                agree_on_images("test images", dataset.test.unlabeled, group)
                watch.enter("embed")
                features = embed_test(network.to(device), dataset, progress, group)
                watch.enter("evaluate")
                found.append(score(features, dataset, rerank=options.rerank, group=group))
    if not is_main:
        return 0
    results = pooled(found)
    console.print(protocol_table({"": results}))
    if any(is_synthetic(config) for config, _ in runs):
        console.print(f"\n{SYNTHETIC}")
    with atomic_write(out) as file:
        file.write((json.dumps([result.as_record() for result in results], indent=1) + "\n").encode())
    console.print(f"wrote {out}", soft_wrap=True)
    return 0


def open_test(config: Config, root: Path | None) -> Dataset:
    """The data set of a run, at `root` if that is given; ValueError if it cannot be scored."""
    if root is not None:
        config = common.at_data(config, root)
    dataset = build_dataset(config)
    if dataset.test is None:
        raise ValueError(f"{dataset.name} has no test images with identities, so nothing can be scored")
    return dataset
