"""Finished stages of a long clustering, in a folder: what is there and whole is used, whatever wrote it is named.

Every rank writes the rows that it owns, as `<stage>.<first row>-<end>.safetensors` with a checksum beside it; any
number of ranks can read them. A file of other features or settings is an error and never used; a damaged or missing one
means that the stage runs again.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load, save

from . import process_group
from .blockwise import Ring, Rows
from .checkpoint import atomic_write, remove_leftovers
from .csr import Csr

NAME = re.compile(r"(?P<stage>\w+)\.(?P<begin>\d+)-(?P<end>\d+)\.safetensors")


class StageFiles:
    """Stages in a folder, which is made if it is not there. `open` comes first, on every rank."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def open(self, fingerprint: str, ring: Ring) -> None:
        """Say what the stages belong to.

        Raises:
            ValueError: the folder has stages of something else; says what differs.
        """
        self.fingerprint, self.ring = fingerprint, ring
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)  # of killed ranks; nobody writes before all have been here
        for path in sorted(self.folder.glob("*.json")):
            try:
                there = json.loads(path.read_text())["fingerprint"]
            except (ValueError, KeyError, TypeError):
                continue  # half of a file: what it belongs to is written again
            if there != fingerprint:
                theirs, ours = json.loads(there), json.loads(fingerprint)
                different = ", ".join(
                    f"{key} {theirs.get(key)} (now {ours[key]})" for key in ours if theirs.get(key) != ours[key]
                )
                raise ValueError(
                    f"{self.folder}: holds stages of another clustering: {different}; choose another folder"
                )

    def save(self, stage: str, rows: torch.Tensor) -> None:
        """One tensor with a row for each of this rank."""
        self._write(stage, {"rows": rows})

    def load(self, stage: str) -> torch.Tensor | None:
        """The rows of this rank, or None on every rank if not all of them are there."""
        parts = self._read(stage)
        return None if parts is None else torch.cat([part["rows"][rows.begin : rows.end] for part, rows in parts])

    def save_csr(self, stage: str, rows: Csr) -> None:
        self._write(stage, {"row_ptr": rows.row_ptr, "col_idx": rows.col_idx, "values": rows.values})

    def load_csr(self, stage: str) -> Csr | None:
        parts = self._read(stage)
        if parts is None:
            return None
        lengths, cols, values = [], [], []
        for part, rows in parts:
            ptr = part["row_ptr"][rows.begin : rows.end + 1]
            lengths.append(ptr.diff())
            cols.append(part["col_idx"][int(ptr[0]) : int(ptr[-1])])
            values.append(part["values"][int(ptr[0]) : int(ptr[-1])])
        lengths = torch.cat(lengths)
        row_ptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        device = self.ring.device
        col_idx, values = torch.cat(cols).to(device), torch.cat(values).to(device)
        return Csr(row_ptr.to(device), col_idx, values, self.ring.num_samples)

    def _write(self, stage: str, tensors: dict[str, torch.Tensor]) -> None:
        own = self.ring.own
        path = self.folder / f"{stage}.{own.begin}-{own.end}.safetensors"
        data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        about = {"fingerprint": self.fingerprint, "blake2b": hashlib.blake2b(data).hexdigest()}
        for target, content in ((path, data), (path.with_suffix(".json"), json.dumps(about).encode())):
            with atomic_write(target) as file:
                file.write(content)

    def _read(self, stage: str) -> list[tuple[dict[str, torch.Tensor], Rows]] | None:
        """Files of a stage with the rows of them that are this rank's, counted from their first."""
        own, found, at = self.ring.own, [], self.ring.own.begin
        shards = [
            match for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name)) and match["stage"] == stage
        ]
        for match in sorted(shards, key=lambda match: int(match["begin"])):
            begin, end = int(match["begin"]), int(match["end"])
            if begin > at or end <= at or at >= own.end:
                continue
            tensors = self._checked(self.folder / match.string)
            if tensors is None:
                continue
            found.append((tensors, Rows(at - begin, min(end, own.end) - begin)))
            at = min(end, own.end)
        if len(own) == 0:  # nothing is needed, but shapes are
            whole = next((t for m in shards if (t := self._checked(self.folder / m.string)) is not None), None)
            found = [] if whole is None else [(whole, Rows(0, 0))]
        complete = at == own.end and bool(found)
        return None if process_group.any_rank(not complete, self.ring.group) else found

    def _checked(self, path: Path) -> dict[str, torch.Tensor] | None:
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            data = path.read_bytes()
            whole = about["blake2b"] == hashlib.blake2b(data).hexdigest()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return load(data) if whole else None
