"""`dmic embed`: features of a folder of images or a manifest, for `dmic cluster` or a search of your own."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
from rich.console import Console

from .. import process_group
from .._version import __version__
from ..constants import INFRARED, VISIBLE
from ..data import samples_in_folder, samples_in_manifest
from ..models import embed
from ..npz import check_output, write_npz, write_safetensors
from ..run import agree_on_images, agree_on_settings, agree_on_weights, load_run
from . import common

MODALITIES = {"visible": VISIBLE, "infrared": INFRARED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic embed`."""
    parser.description = (
        "Write features, camera_ids, modality_ids and paths of every image in SOURCE to OUT: .npz, or .safetensors, of "
        "which the ranks of `dmic cluster` read a share each. Under torchrun every rank embeds a share."
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished `dmic train`")
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="a manifest (.csv, .parquet), or a folder of images"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="written only if all goes well")
    parser.add_argument(
        "--modality",
        choices=sorted(MODALITIES),
        help="of the images of a folder, whose subfolders count as cameras; a manifest says it for every image",
    )
    common.add_settings(parser)
    common.add_device(parser)
    common.add_timeout(parser, 120)


def run(options: argparse.Namespace) -> int:
    """Embed, and write the features; under torchrun every rank embeds a share, and rank 0 writes."""
    device = common.device(options.device)
    with process_group.started(device, timedelta(minutes=options.timeout)) as group:
        watch = process_group.Watch(group)
        with watch.guard():
            return _run(options, device, watch)


def _run(options: argparse.Namespace, device: str, watch: process_group.Watch) -> int:
    group = watch.group
    check_output(options.out, options.source, (".npz", ".safetensors"))
    config, network = load_run(options.run_folder, tuple(options.set))
    if config.data.kind == "landsat":
        raise ValueError(f"{options.run_folder}: this network takes crops of one satellite band, not image files")
    if options.source.is_dir():
        if options.modality is None:
            raise ValueError(
                f"{options.source}: say with --modality what a folder holds: {', '.join(sorted(MODALITIES))}"
            )
        samples = samples_in_folder(options.source, MODALITIES[options.modality])
    elif options.modality is not None:
        raise ValueError(f"{options.source}: a manifest has the modality of every image, leave out --modality")
    else:
        samples = samples_in_manifest(options.source)
    gallery = samples.gallery(height=config.data.height, width=config.data.width, num_workers=config.data.num_workers)
    first = process_group.rank(group) == 0
    console = Console(highlight=False, quiet=not first)
    agree_on_settings(config, group)
    agree_on_weights(network, group)
    agree_on_images(str(options.source), gallery, group)
    with common.phases(console) as progress:
        watch.enter("embed")
        features = embed(network.to(device), gallery, device="cpu", progress=progress, group=group)
    if not first:
        return 0
    ids = {"camera_ids": samples.camera_ids.numpy(), "modality_ids": samples.modality_ids.numpy()}
    paths = [str(path) for path in samples.paths]
    if options.out.suffix == ".npz":
        write_npz(options.out, features=features.numpy(), **ids, paths=np.array(paths), dmic_version=__version__)
    else:
        texts = {"paths": json.dumps(paths), "dmic_version": __version__}
        write_safetensors(options.out, texts, features=features.numpy(), **ids)
    console.print(f"{len(features)} images x {features.shape[1]} features")
    console.print(
        f"wrote {options.out}  [dim]`dmic cluster {options.out} -o labels.npz` clusters it[/dim]", soft_wrap=True
    )
    return 0
