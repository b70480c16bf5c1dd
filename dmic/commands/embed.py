"""`dmic embed`: features of a run's own images, a folder or a manifest, for `dmic cluster` or a search of your own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from .. import process_group
from .._version import __version__
from ..config import Config
from ..constants import INFRARED, VISIBLE
from ..data import Gallery, samples_in_folder, samples_in_manifest
from ..data.image_files import ImageFiles
from ..models import embed
from ..npz import check_output, write_npz, write_safetensors
from ..run import WEIGHTS, agree_on_images, agree_on_settings, agree_on_weights, build_dataset, load_run
from . import common

MODALITIES = {"visible": VISIBLE, "infrared": INFRARED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic embed`."""
    parser.description = (
        "Write features, camera_ids, modality_ids and paths of every image in SOURCE to OUT: .npz, or .safetensors, of "
        "which the ranks of `dmic cluster` read a share each. Without SOURCE: of the images that RUN was trained on, "
        "with person_ids where they are known. Under torchrun every rank embeds a share."
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished `dmic train`")
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        metavar="SOURCE",
        help="a manifest (.csv, .parquet), or a folder of images (default: the training images of RUN)",
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
    with common.joined(options) as (device, group):
        watch = process_group.Watch(group)
        with watch.guard():
            return _run(options, device, watch)


def _run(options: argparse.Namespace, device: str, watch: process_group.Watch) -> int:
    group = watch.group
    check_output(options.out, options.source or options.run_folder / WEIGHTS, (".npz", ".safetensors"))
    config, network = load_run(options.run_folder, tuple(options.set))
    gallery, person_ids = _open(options, config)
    paths = gallery.images.paths if isinstance(gallery.images, ImageFiles) else ()
    first = process_group.rank(group) == 0
    console = Console(highlight=False, quiet=not first)
    agree_on_settings(config, group)
    agree_on_weights(network, group)
    agree_on_images(str(options.source or options.run_folder), gallery, group)
    with common.phases(console) as progress:
        watch.enter("embed")
        features = embed(network.to(device), gallery, device="cpu", progress=progress, group=group)
    if not first:
        return 0
    arrays = {"features": features, "camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    if person_ids is not None:
        arrays["person_ids"] = person_ids
    arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
    if options.out.suffix == ".npz":
        texts = {"paths": np.array(paths)} if paths else {}
        write_npz(options.out, **arrays, **texts, dmic_version=__version__)
    else:
        texts = {"paths": json.dumps(paths)} if paths else {}
        write_safetensors(options.out, texts | {"dmic_version": __version__}, **arrays)
    console.print(f"{len(features)} images x {features.shape[1]} features")
    console.print(
        f"wrote {options.out}  [dim]`dmic cluster {options.out} -o labels.npz` clusters it[/dim]", soft_wrap=True
    )
    return 0


def _open(options: argparse.Namespace, config: Config) -> tuple[Gallery, torch.Tensor | None]:
    """The images, and who is in them if they are those of the run and that is known."""
    source, modality = options.source, options.modality
    if source is None:
        if modality is not None:
            raise ValueError(f"{options.run_folder}: its images have a modality each, leave out --modality")
        dataset = build_dataset(config)
        return dataset.train, dataset.train_person_ids
    if config.data.kind == "landsat":
        raise ValueError(
            f"{options.run_folder}: this network takes crops of one satellite band, not image files; "
            "without SOURCE its own images are embedded"
        )
    if source.is_dir():
        if modality is None:
            raise ValueError(f"{source}: say with --modality what a folder holds: {', '.join(sorted(MODALITIES))}")
        samples = samples_in_folder(source, MODALITIES[modality])
    elif modality is not None:
        raise ValueError(f"{source}: a manifest has the modality of every image, leave out --modality")
    else:
        samples = samples_in_manifest(source)
    data = config.data
    return samples.gallery(height=data.height, width=data.width, num_workers=data.num_workers), None
