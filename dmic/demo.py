"""`dmic demo`: train on the embedded gallery without labels, then retrieve unseen places across modalities."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from .config import ClusterConfig, Config, read_toml, to_toml
from .constants import INFRARED, VISIBLE
from .data import LabeledGallery, landsat_galleries
from .data.augment import plain_view, toned_view
from .evaluate import RetrievalMetrics, cross_modality_metrics, purity, splits
from .models import TwoStreamNetwork, embed, small_two_stream
from .report import metrics_table, percent, retrieval_picture
from .schedules import Schedule, neighborhood_size
from .train import EpochLabels, Record, train

EXPANSIONS = ("mie", "plain")
CONFIG, METRICS, WEIGHTS, PICTURE = "config.toml", "metrics.jsonl", "weights.safetensors", "retrieval.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic demo`."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.toml of an earlier run to start from")
    parser.add_argument("--epochs", type=int, metavar="T", help="epochs of training")
    parser.add_argument("--seed", type=int, help="of weights, batches and views; the split of the places stays")
    parser.add_argument("--expansion", choices=EXPANSIONS, help="mie knows cameras and modalities, plain ignores them")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that everything runs, learns little")


def run(args: argparse.Namespace) -> int:
    """Run the demo with parsed options; 0, or ValueError or OSError with one line that says what is wrong."""
    config = resolve(args)
    console = Console(highlight=False)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / CONFIG).write_text(to_toml(config), encoding="utf-8")

    data, settings = config.data, config.train
    training, test = landsat_galleries(num_crops=data.num_crops, train_share=data.train_share, seed=data.seed)
    network = small_two_stream(**asdict(config.network), seed=settings.seed)
    _print_header(console, training, test)

    scores: list[dict[str, RetrievalMetrics]] = []
    test_features: list[torch.Tensor] = []

    def evaluate(network: TwoStreamNetwork) -> Record:
        features = embed(network, test.unlabeled)
        scores.append(cross_modality_metrics(features, test))
        test_features[1:] = [features]
        return {direction: asdict(metrics) for direction, metrics in scores[-1].items()}

    start = time.perf_counter()
    with (args.out / METRICS).open("w", encoding="utf-8") as metrics_file:

        def log(record: Record) -> None:
            metrics_file.write(json.dumps(record) + "\n")
            metrics_file.flush()
            console.print(epoch_line(record))

        train(
            network,
            training.unlabeled,
            num_epochs=settings.num_epochs,
            num_iterations=settings.num_iterations,
            per_modality=lambda epoch: cluster_arguments(config.per_modality, epoch, settings.num_epochs),
            joint=lambda epoch: (
                cluster_arguments(config.joint, epoch, settings.num_epochs)
                if epoch >= settings.joint_start * settings.num_epochs
                else None
            ),
            invariant=settings.expansion == "mie",
            views={VISIBLE: (plain_view, toned_view), INFRARED: (plain_view,)},
            num_classes=settings.num_classes,
            num_samples=settings.num_samples,
            temperature=settings.temperature,
            momentum=settings.momentum,
            learning_rate=lambda epoch: settings.learning_rate(epoch, settings.num_epochs),
            weight_decay=settings.weight_decay,
            seed=settings.seed,
            evaluate=evaluate,
            inspect=lambda labels: known_quality(labels, training),
            log=log,
        )

    seconds = time.perf_counter() - start
    before, after = scores[0], scores[-1]
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, args.out / WEIGHTS)
    rank1 = tuple(moment["infrared_to_visible"].cmc[1] for moment in (before, after))
    retrieval_picture(test, (test_features[0], test_features[-1]), rank1).save(args.out / PICTURE)
    console.print()
    console.print(metrics_table(before, after))
    console.print(
        f"{settings.num_epochs} epochs in {seconds:.0f} s. Scores are of the last epoch, not of the best one."
    )
    for name, what in (
        (PICTURE, "infrared queries and the visible places they retrieve"),
        (METRICS, "one record per epoch"),
        (CONFIG, f"every setting; --config {args.out / CONFIG} repeats the run"),
        (WEIGHTS, "the trained network"),
    ):
        console.print(f"wrote {args.out / name}  [dim]{what}[/dim]", soft_wrap=True)
    return 0


def resolve(args: argparse.Namespace) -> Config:
    """The configuration that the options ask for: the file or the defaults, `--quick`, then single settings."""
    config = read_toml(args.config) if args.config else Config()
    if args.quick:
        config = replace(
            config,
            data=replace(config.data, num_crops=2),
            per_modality=replace(config.per_modality, k1=8, k2=Schedule("constant", 3, 3), min_samples=3),
            joint=replace(config.joint, k1=14, k2=Schedule("constant", 8, 8), min_samples=3),
            train=replace(config.train, num_epochs=2, num_iterations=4, joint_start=0.5),
        )
    given = {"num_epochs": args.epochs, "seed": args.seed, "expansion": args.expansion}
    train_config = replace(config.train, **{name: value for name, value in given.items() if value is not None})
    if train_config.num_epochs < 1:
        raise ValueError(f"demo: epochs must be at least 1, got {train_config.num_epochs}")
    if train_config.expansion not in EXPANSIONS:
        raise ValueError(f"demo: expansion must be one of {', '.join(EXPANSIONS)}, got {train_config.expansion!r}")
    return replace(config, train=train_config)


def cluster_arguments(cluster: ClusterConfig, epoch: int, num_epochs: int) -> dict[str, Any]:
    """The arguments of `pseudo_labels` in one epoch."""
    return {
        "k1": cluster.k1,
        "k2": neighborhood_size(cluster.k2(epoch, num_epochs), cluster.k1),
        "eps": cluster.eps(epoch, num_epochs),
        "min_samples": cluster.min_samples,
    }


def known_quality(labels: EpochLabels, labeled: LabeledGallery) -> Record:
    """Purity and splits of every clustering, from the identities that training does not have; None without clusters."""
    record: Record = {"known": {}}
    for name in ("visible", "infrared", "shared"):
        found = getattr(labels, name)
        values = {"purity": purity(found, labeled.person_ids), "splits": splits(found, labeled.person_ids)}
        record["known"][name] = {key: None if value != value else value for key, value in values.items()}
    return record


# One line per epoch, within 80 columns.
COLUMNS = "{:>5}  {:>9}  {:>9}  {:>9}  {:>6}  {:>6}  {:>6}  {:>6}  {:>6}"
TITLES = COLUMNS.format("epoch", "visible", "infrared", "joint", "mixed", "loss", "IR>VIS", "VIS>IR", "time")


def epoch_line(record: Record) -> str:
    """One epoch for a terminal, under TITLES: clusters+outliers, mixed share and Rank-1 in percent, seconds."""
    clusters, mixed, loss, seconds = ["-"] * 3, None, "-", "-"
    if record["epoch"]:
        found = [record[name] for name in ("visible", "infrared", "shared")]
        clusters = [f"{kind['clusters']}+{kind['outliers']}" if kind["clusters"] else "-" for kind in found]
        mixed = record["shared"]["mixed_share"]
        loss = f"{sum(record['loss'].values()):.2f}"
        seconds = f"{sum(record['seconds'].values()):.1f} s"
    rank1 = [percent(record[direction]["cmc"][1]) for direction in ("infrared_to_visible", "visible_to_infrared")]
    return COLUMNS.format(record["epoch"], *clusters, percent(mixed), loss, *rank1, seconds)


def _print_header(console: Console, training: LabeledGallery, test: LabeledGallery) -> None:
    train_places, test_places = (len(side.person_ids.unique()) for side in (training, test))
    console.print("[bold]dmic demo[/bold]: who is who across modalities, learned without labels")
    console.print(
        "Six sensor bands of one Landsat-7 scene (Olinda, Brazil; USGS, public domain):\n"
        "blue, green, red are visible; NIR, SWIR1, SWIR2 are infrared. A place is an\n"
        "identity, a band is a camera, a sample is a small noisy crop.\n"
        f"{train_places} places ({len(training.person_ids)} crops) train without labels; "
        f"{test_places} other places ({len(test.person_ids)} crops) are\nfor retrieval. "
        "Which crop shows which place is used for the scores only.\n\n"
        "[dim]clusters+outliers; mixed: % of joint clusters with both modalities; Rank-1 in %[/dim]\n"
        f"[bold]{TITLES}[/bold]"
    )
