"""Images in files: decoded by several threads when they are asked for, and kept in memory as far as that is allowed."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

PROBES_IN_FLIGHT = 1024  # images whose check is queued at once
PROGRESS_SECONDS = 0.05  # between two calls of a progress function


class ImageFiles:
    """Pixels of image files by position: `files[sample_idx]` is what indexing a uint8 tensor [N, 3, H, W] would give.

    An image is decoded at its full size, converted to RGB and resized by Pillow's bicubic filter, as torchvision does
    with Pillow images; a JPEG is not decoded at a reduced size, which would change the pixels. Orientation tags are
    ignored, as in published pipelines. Decoded images stay in memory, first come, until `cache_bytes` are used; none
    is ever dropped. Any number of threads may index at once.

    Args:
        paths: N image files of any format that Pillow reads, 8 bits a channel.
        height, width: H and W in pixels.
        cache_bytes: most memory for decoded images; one takes 3 H W bytes.
        num_workers: threads that decode; None for as many as torch has.

    Raises:
        ValueError: a size below 1, or a negative cache; on indexing, an image that cannot be read.
    """

    dtype = torch.uint8

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        height: int,
        width: int,
        cache_bytes: int = 0,
        num_workers: int | None = None,
    ):
        num_workers = torch.get_num_threads() if num_workers is None else num_workers
        for name, value, least in (
            ("height", height, 1),
            ("width", width, 1),
            ("cache_bytes", cache_bytes, 0),
            ("num_workers", num_workers, 1),
        ):
            if value < least:
                raise ValueError(f"ImageFiles: {name} must be at least {least}, got {value}")
        self.paths = tuple(os.fspath(path) for path in paths)
        self.shape = (len(self.paths), 3, height, width)
        self._pool = ThreadPoolExecutor(num_workers, "dmic-decode") if num_workers > 1 else None
        self._lock = threading.Lock()
        capacity = min(len(self.paths), cache_bytes // (3 * height * width))
        self._cache = torch.empty(capacity, 3, height, width, dtype=torch.uint8)  # its pages are taken when written
        self._slot_of = torch.full((len(self.paths),), -1)  # row of a sample in the cache, -1 while it is not there
        self._num_cached = 0

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def max_cached_bytes(self) -> int:
        """Bytes of decoded images that will be in memory when every image has been asked for."""
        return self._cache.nbytes

    @property
    def max_cached_share(self) -> float:
        """Share of the images that will then be in memory; 1 if all fit."""
        return len(self._cache) / max(1, len(self))

    @property
    def cached_share(self) -> float:
        """Share of the images that are in memory now."""
        return self._num_cached / max(1, len(self))

    def __getitem__(self, sample_idx: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [n, 3, H, W] of the samples int64 [n], which may repeat."""
        if sample_idx.dtype != torch.int64 or sample_idx.dim() != 1:
            got = f"{sample_idx.dtype} {tuple(sample_idx.shape)}"
            raise ValueError(f"ImageFiles: sample_idx must be int64 [n], got {got}")
        with self._lock:
            slots = self._slot_of[sample_idx]
        cached = slots >= 0
        pixels = self._cache.index_select(0, slots[cached])  # rows that have been written are never written again
        missing, position = sample_idx[~cached].unique(return_inverse=True)
        if len(missing):
            decode = self._pool.map if self._pool else map
            decoded = torch.stack(list(decode(self._decode, missing.tolist())))
            self._keep(missing, decoded)
            row = torch.empty_like(slots)
            row[cached] = torch.arange(len(pixels))
            row[~cached] = len(pixels) + position
            pixels = torch.cat([pixels, decoded]).index_select(0, row)  # several times as fast as masked assignment
        return pixels

    def _decode(self, sample: int) -> torch.Tensor:
        path = self.paths[sample]
        try:
            image = decode_rgb(read_bytes(path))
        except ValueError as error:
            advice = "`dmic data check DIR` lists all such images, data.skip_unreadable = true leaves them out"
            raise ValueError(f"{path}: {error}; {advice}") from None
        image = image.resize((self.shape[3], self.shape[2]), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    def _keep(self, samples: torch.Tensor, decoded: torch.Tensor) -> None:
        with self._lock:
            new = self._slot_of[samples] < 0  # another thread may have been faster
            room = len(self._cache) - self._num_cached
            samples, decoded = samples[new][:room], decoded[new][:room]
            start, self._num_cached = self._num_cached, self._num_cached + len(samples)
            self._cache[start : self._num_cached] = decoded
            self._slot_of[samples] = torch.arange(start, self._num_cached)


@dataclass(frozen=True)
class Probe:
    """What reading a whole image file found.

    Attributes:
        fault: why it cannot be used; None if it can.
        digest: of the bytes of the file; equal for equal files. Empty if they could not be read.
    """

    fault: str | None
    digest: bytes


def probe_images(
    paths: Sequence[str],
    *,
    num_workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Probe]:
    """Read and decode every file, one Probe each; `progress(stage, done, total)` is called from the calling thread."""
    probes: list[Probe] = []
    last = time.monotonic()
    num_workers = torch.get_num_threads() if num_workers is None else num_workers
    with ThreadPoolExecutor(num_workers, "dmic-probe") as pool:
        for start in range(0, len(paths), PROBES_IN_FLIGHT):
            for probe in pool.map(_probe, paths[start : start + PROBES_IN_FLIGHT]):
                probes.append(probe)
                if progress and (time.monotonic() - last > PROGRESS_SECONDS or len(probes) == len(paths)):
                    progress("decoding", len(probes), len(paths))
                    last = time.monotonic()
    return probes


def _probe(path: str) -> Probe:
    digest = b""
    try:
        data = read_bytes(path)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        decode_rgb(data)
    except ValueError as error:
        return Probe(str(error), digest)
    return Probe(None, digest)


def read_bytes(path: str) -> bytes:
    """The content of a file; ValueError with the reason if it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if not data:
        raise ValueError("is empty")
    return data


def decode_rgb(data: bytes) -> Image.Image:
    """The image in a file's bytes at its full size, as 8-bit RGB; ValueError with the reason if there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):  # conversion would clip them to 255
                raise ValueError(f"more than 8 bits a channel (mode {image.mode}), convert it to 8 bits first")
            return image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except Exception as error:  # decoders raise almost anything on damaged data
        raise ValueError(f"is not a readable image ({error})") from None
