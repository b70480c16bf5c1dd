"""`dmic embed`: features of a folder of images or a manifest, for `dmic cluster` or a search of your own."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from .._version import __version__
from ..constants import INFRARED, VISIBLE
from ..data import samples_in_folder, samples_in_manifest
from ..models import embed
from ..npz import check_npz_output, write_npz
from ..run import load_run
from . import common

MODALITIES = {"visible": VISIBLE, "infrared": INFRARED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic embed`."""
    parser.description = "Write features, camera_ids, modality_ids and paths of every image in SOURCE to OUT.npz."
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished `dmic train`")
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="a manifest (.csv, .parquet), or a folder of images"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.npz", help="written only if all goes well"
    )
    parser.add_argument(
        "--modality",
        choices=sorted(MODALITIES),
        help="of the images of a folder, whose subfolders count as cameras; a manifest says it for every image",
    )
    common.add_settings(parser)
    common.add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Embed, and write the features."""
    check_npz_output(options.out, options.source)
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
    console = Console(highlight=False)
    with common.phases(console) as progress:
        features = embed(network.to(common.device(options.device)), gallery, device="cpu", progress=progress)
    write_npz(
        options.out,
        features=features.numpy(),
        camera_ids=samples.camera_ids.numpy(),
        modality_ids=samples.modality_ids.numpy(),
        paths=np.array([str(path) for path in samples.paths]),
        dmic_version=__version__,
    )
    console.print(f"{len(features)} images x {features.shape[1]} features")
    console.print(
        f"wrote {options.out}  [dim]`dmic cluster {options.out} -o labels.npz` clusters it[/dim]", soft_wrap=True
    )
    return 0
