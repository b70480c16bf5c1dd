"""Image files without a data set around them: all of a folder, or all rows of a manifest."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .manifest import scan_manifest
from .samples import Samples
from .tree import IMAGE_SUFFIXES, raise_errors


def samples_in_folder(root: str | os.PathLike[str], modality: int) -> Samples:
    """Every image below a folder, in sorted order; each subfolder of the first level is a camera, in sorted order.

    Args:
        root: the folder; images that lie directly in it are of camera 0 and shift the others by one.
        modality: VISIBLE or INFRARED, of all of them.

    Raises:
        ValueError: there is no image.
    """
    root = Path(root)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"samples_in_folder: {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    folders = [parts[0] if len(parts := path.relative_to(root).parts) > 1 else "" for path in paths]
    cameras = {name: camera for camera, name in enumerate(sorted(set(folders)))}
    return Samples(
        tuple(str(path) for path in paths),
        None,
        torch.tensor([cameras[name] for name in folders]),
        torch.full((len(paths),), modality),
    )


def samples_in_manifest(path: str | os.PathLike[str]) -> Samples:
    """Every row of a manifest, training rows first, identities left out.

    Raises:
        ValueError: bad rows, see `read_manifest`.
    """
    scan = scan_manifest(path)
    raise_errors("samples_in_manifest", scan.problems)
    train, test = scan.train, scan.test
    return Samples(
        (*train.paths, *test.paths),
        None,
        torch.cat([train.camera_ids, test.camera_ids]),
        torch.cat([train.modality_ids, test.modality_ids]),
    )
