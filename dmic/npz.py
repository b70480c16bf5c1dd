"""Results as .npz files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import atomic_write


def check_npz_output(out: Path, source: Path) -> None:
    """Raise ValueError unless `out` can be written and is not the file that is read."""
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the extension of the output must be .npz, got {out.suffix or 'none'}")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out}: would overwrite the features")


def write_npz(path: Path, **arrays: Any) -> None:
    """All or nothing: readers see the old file or the whole new one."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)
