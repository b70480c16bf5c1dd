"""Files that are whole or absent: tensors and JSON in one safetensors file, written beside its place and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

STATE_KEY = "state"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends, or vanishes if it raises.

    Whoever reads sees the old file or the whole new one, even if the process is killed or the machine loses power.

    Raises:
        OSError: it cannot be written, a full disk for instance; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write tensors by name and a JSON state as one file, all or nothing.

    Raises:
        OSError: it cannot be written; an earlier file of that name is untouched.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(contiguous, metadata={STATE_KEY: json.dumps(state)})
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        kept = "the earlier checkpoint is untouched" if path.exists() else "there is no earlier checkpoint"
        reason = error.strerror or str(error)
        raise OSError(f"{path}: could not write the checkpoint ({reason}); {kept}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote: tensors on the CPU, and the state. Nothing is unpickled.

    Raises:
        ValueError: the file is damaged, or holds no state.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads((file.metadata() or {})[STATE_KEY])
    except SafetensorError as error:
        raise ValueError(f"{path}: not a checkpoint, or a damaged one ({error})") from None
    except KeyError:
        raise ValueError(f"{path}: not a checkpoint, it has weights but no state") from None
    return tensors, state


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left of files that it was writing in `folder`; only for who owns the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
