"""Results as files, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from .checkpoint import atomic_write


def check_output(out: Path, source: Path, suffixes: tuple[str, ...] = (".npz",)) -> None:
    """Raise ValueError unless `out` can be written and is not the file that is read."""
    if out.suffix not in suffixes:
        allowed = " or ".join(suffixes)
        raise ValueError(f"{out}: the extension of the output must be {allowed}, got {out.suffix or 'none'}")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{out}: there is no permission to write to the folder {out.parent}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out}: is what this command reads; choose another output")


def write_safetensors(path: Path, texts: dict[str, str], **arrays: np.ndarray) -> None:
    """The same of arrays of numbers, with texts as the metadata of the file."""
    with atomic_write(path) as file:
        file.write(save(arrays, metadata=texts))


def write_npz(path: Path, **arrays: Any) -> None:
    """All or nothing: readers see the old file or the whole new one."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)
