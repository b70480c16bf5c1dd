"""Rows of features wherever they are: in memory, on a GPU, or in a file that is read a block at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._arrays import dtype_name, to_tensor
from .read_ahead import Copies, ReadAhead

Read = Callable[..., torch.Tensor]  # (begin, end, out=None), as FeatureRows.read
PIECE_BYTES = 1 << 22  # of rows of another dtype than float32 that are converted at a time
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class FeatureRows:
    """Features [N, d] of which blocks are asked for. Nothing is read before that, and nothing is kept.

    Attributes:
        shape: (N, d).
        dtype: as stored.
        device: where blocks are.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    source: torch.Tensor | tuple[Path, int]  # in memory, or a file and where its first value is
    name: str  # begins the errors: the file's, where there is one
    first: int = 0  # number of row 0 in what this is a part of, for errors

    @classmethod
    def of(cls, name: str, features: Any, device: torch.device | None = None) -> FeatureRows:
        """Of an array [N, d], or of a `.npy` or `.safetensors` file (key `features`) by its path; rows are as they are.

        Args:
            name: begins the errors.
            features: the array or the path.
            device: where blocks are to be; None is where the array is, and the CPU for a file.

        Raises:
            ValueError: in one line: the file cannot be read, has no features [N, d] of floating point in rows.
        """
        if isinstance(features, FeatureRows):
            return replace(features, device=device or features.device)
        if isinstance(features, str | Path):
            return _open(Path(features), device or torch.device("cpu"))
        tensor = to_tensor(features, f"{name}: features")
        if tensor.dim() != 2 or not tensor.is_floating_point():
            got = f"{dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{name}: features must be floating point [N, d], got {got}")
        return cls(tuple(tensor.shape), tensor.dtype, device or tensor.device, tensor, name)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.source, torch.Tensor)

    @property
    def from_host(self) -> bool:
        """Whether blocks go from the host's memory, or from a file, to a GPU."""
        return self.device.type == "cuda" and not (self.in_memory and self.source.device.type == "cuda")

    def on_host(self) -> FeatureRows:
        """The same rows, whose blocks are to be in the host's memory."""
        return replace(self, device=torch.device("cpu"))

    @contextmanager
    def ahead(self, ranges: Iterable[tuple[int, int]], most_rows: int) -> Iterator[Read]:
        """`read` for rows that will be asked for in this order, (begin, end) each, to the last or not: on their way
        from the host to a GPU, each is read and copied while those before it are in use.

        Elsewhere this is `read` itself, and `ranges` is not looked at.

        Args:
            ranges: a generator is run by another thread: it must not use the GPU.
            most_rows: of a range.
        """
        ranges = iter(ranges if self.from_host else ())
        first = next(ranges, None)
        if first is None:
            yield self.read
            return
        load, ranges = self.on_host().read, chain([first], ranges)
        with closing(ReadAhead(load, ranges, most_rows, self.shape[1], Copies(self.device))) as reader:
            yield reader.read

    def read(self, begin: int, end: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [begin, end) as contiguous float32; of a tensor that is that already, a view. In `out`, if there is one:
        contiguous float32 of that shape, on the device.

        Raises:
            ValueError: a value is not finite, or does not fit float32.
        """
        if self.dtype == torch.float32:
            return self._read(begin, end, out)
        out = torch.empty(end - begin, self.shape[1], device=self.device) if out is None else out
        step = max(1, PIECE_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        for first in range(begin, end, step):
            last = min(end, first + step)
            self._read(first, last, out[first - begin : last - begin])
        return out

    def _read(self, begin: int, end: int, out: torch.Tensor | None) -> torch.Tensor:
        if self.in_memory:
            rows = self.source[begin:end]
        else:
            path, offset = self.source
            row_bytes = self.shape[1] * self.dtype.itemsize
            straight = out is not None and out.device.type == "cpu" and self.dtype == torch.float32
            rows = out if straight else torch.empty(end - begin, self.shape[1], dtype=self.dtype)
            with path.open("rb") as file:
                file.seek(offset + begin * row_bytes)
                if rows.numel() and file.readinto(rows.view(torch.uint8).numpy()) != rows.nbytes:
                    raise ValueError(f"{path}: ends before row {self.first + end}; it is truncated")
        if rows.numel() and not all(bound.to(torch.float32).isfinite() for bound in torch.aminmax(rows)):
            row, column = (~rows.to(torch.float32).isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{self.name}: features must be finite in float32, got {float(rows[row, column])} at row "
                f"{self.first + begin + row}, column {column}"
            )
        if out is None:
            return rows.to(self.device).to(torch.float32).contiguous()
        return out if rows is out else out.copy_(rows)

    def loaded(self) -> FeatureRows:
        """The same rows on the device, read once: blocks are views of them."""
        rows = self.read(0, self.shape[0])
        return replace(self, source=rows, dtype=rows.dtype)

    def part(self, begin: int, end: int) -> FeatureRows:
        """The rows [begin, end) as features of their own."""
        if self.in_memory:
            source = self.source[begin:end]
        else:
            path, offset = self.source
            source = path, offset + begin * self.shape[1] * self.dtype.itemsize
        return replace(self, shape=(end - begin, self.shape[1]), source=source, first=self.first + begin)


def _open(path: Path, device: torch.device) -> FeatureRows:
    if path.suffix not in OPENERS:
        raise ValueError(f"{path}: to read features block by block the extension must be one of {', '.join(OPENERS)}")
    try:
        shape, dtype, offset = OPENERS[path.suffix](path)
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    if len(shape) != 2:
        raise ValueError(f"{path}: features must have shape [N, d], got {tuple(shape)}")
    if size < offset + shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"{path}: has {size} bytes, too few for features of shape {tuple(shape)}; it is truncated")
    return FeatureRows(tuple(shape), dtype, device, (path, offset), str(path))


def _open_npy(path: Path) -> tuple[tuple[int, ...], torch.dtype, int]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"{path}: not a readable .npy file ({error})") from error
    if array.dtype not in (np.float32, np.float16, np.float64):  # of this byte order
        raise ValueError(f"{path}: features must be float32, float16 or float64, got {array.dtype}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{path}: features must be stored in rows (C order); save numpy.ascontiguousarray of them")
    return array.shape, getattr(torch, array.dtype.name), array.offset


def _open_safetensors(path: Path) -> tuple[tuple[int, ...], torch.dtype, int]:
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(file.read(length))
            if not isinstance(entries, dict):
                raise ValueError("a header that is no table")
        except (struct.error, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not a readable .safetensors file ({error})") from error
    if "features" not in entries:
        keys = ", ".join(sorted(set(entries) - {"__metadata__"})) or "nothing"
        raise ValueError(f"{path}: there is no key 'features', only {keys}")
    entry = entries["features"]
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        allowed = ", ".join(SAFETENSORS_DTYPES)
        raise ValueError(f"{path}: features must be one of {allowed}, got {entry['dtype']}")
    return tuple(entry["shape"]), SAFETENSORS_DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0]


OPENERS = {".npy": _open_npy, ".safetensors": _open_safetensors}
