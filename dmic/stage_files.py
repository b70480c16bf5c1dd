"""Finished stages of a long clustering, in a folder: what is there and whole is used, whatever wrote it is named.

Every rank writes the rows that it owns, as `<stage>-<settings>.<first row>-<end>.safetensors` with a checksum beside
it; any number of ranks can read them, and a stage serves all clusterings that share the settings in its name. A file of
another gallery is an error and never used; a damaged or missing one means that the stage runs again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from . import process_group
from .block_memory import Search
from .blockwise import Ring, Rows
from .checkpoint import atomic_write, remove_leftovers
from .csr import Csr

DTYPES = {torch.int64: "I64", torch.int32: "I32", torch.float32: "F32"}
PIECE_BYTES = 1 << 20  # hashed at a time
SETTINGS = {"knn_graph": ("k1",), "invariant_expansion": ("k1", "k2"), "jaccard_distance": ("k1", "k2", "eps")}
NAME = re.compile(r"(?P<stage>.+)\.(?P<begin>\d+)-(?P<end>\d+)\.safetensors")


class StageFiles:
    """Stages in a folder, which is made if it is not there. `open` comes first, on every rank."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def open(self, fingerprint: dict[str, Any], search: Search, ring: Ring) -> None:
        """Say what the stages belong to.

        Args:
            fingerprint: of the gallery; something that JSON gives back as it is.

        Raises:
            ValueError: the folder has stages of something else, and which, or cannot be written to.
        """
        self.fingerprint, self.search, self.ring = fingerprint, search, ring
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise ValueError(f"{self.folder}: cannot be written to ({error.strerror}); choose another folder") from None
        remove_leftovers(self.folder)  # of killed ranks; nobody writes before all have been here
        for path in sorted(self.folder.glob("*.json")):
            try:
                there = json.loads(path.read_text())["fingerprint"]
            except (ValueError, KeyError, TypeError):
                continue  # half of a file: what it belongs to is written again
            if there != fingerprint:
                theirs = there if isinstance(there, dict) else {}  # of another version
                different = ", ".join(
                    f"{key} {theirs.get(key)} (now {now})" for key, now in fingerprint.items() if theirs.get(key) != now
                )
                raise ValueError(f"{self.folder}: holds stages of another gallery: {different}; choose another folder")

    def save(self, stage: str, rows: torch.Tensor) -> None:
        """One tensor with a row for each of this rank."""
        self._write(stage, {"rows": rows})

    def load(self, stage: str) -> torch.Tensor | None:
        """The rows of this rank, or None on every rank if not all of them are there."""
        parts = self._read(stage)
        if parts is None:
            return None
        return torch.cat([_part(path, "rows", rows.begin, rows.end) for path, rows in parts]).to(self.ring.device)

    def save_csr(self, stage: str, rows: Csr) -> None:
        self._write(stage, {"row_ptr": rows.row_ptr, "col_idx": rows.col_idx, "values": rows.values})

    def load_csr(self, stage: str) -> Csr | None:
        parts = self._read(stage)
        if parts is None:
            return None
        lengths, cols, values = [], [], []
        for path, rows in parts:
            ptr = _part(path, "row_ptr", rows.begin, rows.end + 1)
            lengths.append(ptr.diff())
            cols.append(_part(path, "col_idx", int(ptr[0]), int(ptr[-1])))
            values.append(_part(path, "values", int(ptr[0]), int(ptr[-1])))
        lengths = torch.cat(lengths)
        row_ptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        device = self.ring.device
        col_idx, values = torch.cat(cols).to(device), torch.cat(values).to(device)
        return Csr(row_ptr.to(device), col_idx, values, self.ring.num_samples)

    def _write(self, stage: str, tensors: dict[str, torch.Tensor]) -> None:
        own = self.ring.own
        path = self.folder / f"{self._name(stage)}.{own.begin}-{own.end}.safetensors"
        digest, header, end = hashlib.blake2b(), {}, 0
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.nbytes
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(path) as file:  # tensor by tensor: the library holds all of them once more
            for piece in (struct.pack("<Q", len(text)), text, *tensors.values()):
                data = piece.cpu().contiguous().numpy() if torch.is_tensor(piece) else piece
                digest.update(data)
                file.write(data)
        with atomic_write(path.with_suffix(".json")) as file:
            about = {"fingerprint": self.fingerprint, "file": path.name, "blake2b": digest.hexdigest()}
            file.write(json.dumps(about).encode())

    def _name(self, stage: str) -> str:
        return "-".join([stage, *(f"{name}={getattr(self.search, name)}" for name in SETTINGS[stage])])

    def _read(self, stage: str) -> list[tuple[Path, Rows]] | None:
        """Files of a stage with the rows of them that are this rank's, counted from their first."""
        own, found, at, name = self.ring.own, [], self.ring.own.begin, self._name(stage)
        shards = [
            match for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name)) and match["stage"] == name
        ]
        for match in sorted(shards, key=lambda match: int(match["begin"])):
            begin, end = int(match["begin"]), int(match["end"])
            if begin > at or end <= at or at >= own.end:
                continue
            path = self.folder / match.string
            if not _is_whole(path):
                continue
            found.append((path, Rows(at - begin, min(end, own.end) - begin)))
            at = min(end, own.end)
        if len(own) == 0:  # nothing is needed, but shapes are
            whole = next((path for m in shards if _is_whole(path := self.folder / m.string)), None)
            found = [] if whole is None else [(whole, Rows(0, 0))]
        complete = at == own.end and bool(found)
        return None if process_group.any_rank(not complete, self.ring.group) else found


def _is_whole(path: Path) -> bool:
    digest = hashlib.blake2b()
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        return (about["file"], about["blake2b"]) == (path.name, digest.hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _part(path: Path, name: str, begin: int, end: int) -> torch.Tensor:
    """Entries [begin, end) of a tensor in a file, of which nothing else is read."""
    with safe_open(path, "pt") as file:
        return file.get_slice(name)[begin:end]
