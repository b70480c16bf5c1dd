"""The kinds of data sets that can be read, by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .gallery import Dataset
from .llcm import read_llcm
from .manifest import FILE_NAMES, SUFFIXES, read_manifest
from .regdb import read_regdb
from .sysu_mm01 import read_sysu_mm01

READERS: dict[str, Callable[..., Dataset]] = {
    "sysu_mm01": read_sysu_mm01,
    "regdb": read_regdb,
    "llcm": read_llcm,
    "manifest": read_manifest,
}
MARKS = {  # patterns below the root, of which any tells the kind; several, so that a damaged tree is still recognised
    "sysu_mm01": ("exp/*_id.txt", "cam[1-6]"),
    "regdb": ("idx/*_visible_*.txt", "idx/*_thermal_*.txt", "Visible", "Thermal"),
    "llcm": ("idx/train_vis.txt", "idx/train_nir.txt", "test_vis", "test_nir"),
    "manifest": FILE_NAMES,
}


def open_dataset(kind: str, root: str | os.PathLike[str], **settings: Any) -> Dataset:
    """The data set of a kind in READERS: `read_<kind>(root, **settings)`.

    Raises:
        ValueError: an unknown kind, nothing at `root` or nothing that may be read, or what the reader raises.
    """
    check_kind("open_dataset", kind)
    _check_root("open_dataset", Path(root))
    return READERS[kind](root, **settings)


def check_kind(function: str, kind: str) -> None:
    """Raise ValueError unless there is a reader for `kind`."""
    if kind not in READERS:
        raise ValueError(f"{function}: kind must be one of {', '.join(READERS)}, got {kind!r}")


def detect_dataset(root: str | os.PathLike[str]) -> str:
    """The kind of the data set at a path: a name in READERS.

    Raises:
        ValueError: there is nothing, nothing that may be read or is known, or more than one kind.
    """
    path = Path(root)
    _check_root("detect_dataset", path)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return "manifest"
        raise ValueError(f"detect_dataset: {path} must be a folder or a manifest ({', '.join(SUFFIXES)})")
    kinds = [kind for kind, patterns in MARKS.items() if any(any(path.glob(pattern)) for pattern in patterns)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise ValueError(f"detect_dataset: {path} looks like {' and '.join(kinds)}, name the kind (--kind)")
    marks = "; ".join(f"{', '.join(patterns)} ({kind})" for kind, patterns in MARKS.items())
    raise ValueError(f"detect_dataset: {path} holds no known data set; there is none of {marks}")


def _check_root(function: str, path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{function}: {path} does not exist")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise ValueError(f"{function}: there is no permission to read {path}")
