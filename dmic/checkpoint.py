"""Files that are whole or absent: tensors and JSON in one safetensors file, written beside its place and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

STATE_KEY, DIGEST_KEY = "state", "digest"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends, or vanishes if it raises.

    Whoever reads sees the old file or the whole new one, even if the process is killed or the machine loses power. What
    a killed process left of the same file is deleted.

    Raises:
        OSError: it cannot be written, a full disk for instance; `path` is as it was, and the message says so.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        process = left.name[len(path.name) + 2 : -len(".tmp")]
        if process.isdecimal() and not _is_alive(int(process)):
            left.unlink(missing_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "the earlier file is untouched" if path.exists() else "there is no earlier one"
        raise OSError(f"{path}: could not be written ({error.strerror or error}); {kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write tensors by name and a JSON state as one file, all or nothing.

    Raises:
        OSError: it cannot be written; an earlier file of that name is untouched.
    """
    separate: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor  # a file has no tensors that share memory
        storages.add(storage)
    text = json.dumps(state)
    data = save(separate, metadata={STATE_KEY: text, DIGEST_KEY: _digest(separate, text)})
    with atomic_write(path) as file:
        file.write(data)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote: tensors on the CPU, and the state. Nothing is unpickled.

    Raises:
        ValueError: the file is damaged, or holds no state.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a checkpoint, or a damaged one ({error})") from None
    if not {STATE_KEY, DIGEST_KEY} <= metadata.keys():
        raise ValueError(f"{path}: not a checkpoint, it has weights but no state")
    if metadata[DIGEST_KEY] != _digest(tensors, metadata[STATE_KEY]):
        raise ValueError(f"{path}: a damaged checkpoint, its content is not what was written")
    return tensors, json.loads(metadata[STATE_KEY])


def _digest(tensors: dict[str, torch.Tensor], state: str) -> str:
    """Of all that a checkpoint holds: safetensors would not notice a byte that has changed."""
    digest = hashlib.blake2b(state.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left of files that it was writing in `folder`; only for who owns the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
