"""What a gallery is, with and without knowledge of who is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface

import torch

from ..constants import INFRARED, VISIBLE
from .protocol import Protocol


class Images(Interface):
    """Pixels by global sample id: a uint8 tensor [N, C, H, W], or files that are decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """torch.uint8."""

    def __len__(self) -> int: ...

    def __getitem__(self, sample_idx: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [n, C, H, W] of the samples int64 [n]."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images of unknown identity: all that training ever sees. A sample's global id is its position here.

    Attributes:
        images: uint8 [N, C, H, W], in memory or in files.
        camera_ids: int64 [N], from 0.
        modality_ids: int64 [N], VISIBLE or INFRARED.

    Raises:
        ValueError: wrong shapes or types, negative camera ids, or a modality that is neither visible nor infrared.
    """

    images: Images
    camera_ids: torch.Tensor
    modality_ids: torch.Tensor

    def __post_init__(self) -> None:
        if len(self.images.shape) != 4 or self.images.dtype != torch.uint8:
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(f"Gallery: images must be uint8 [N, C, H, W], got {got}")
        for name in ("camera_ids", "modality_ids"):
            check_ids(f"Gallery: {name}", getattr(self, name), len(self))
        if len(self) and int(self.modality_ids.max()) > max(VISIBLE, INFRARED):
            raise ValueError(f"Gallery: modality_ids must be 0 or 1, got {int(self.modality_ids.max())}")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class LabeledGallery:
    """A gallery and who is in each image: for evaluation, never for training.

    Attributes:
        unlabeled: the images.
        person_ids: int64 [N], from 0: the identities, people or places.
    """

    unlabeled: Gallery
    person_ids: torch.Tensor

    def __post_init__(self) -> None:
        check_ids("LabeledGallery: person_ids", self.person_ids, len(self.unlabeled))


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a run trains on and is measured with.

    Attributes:
        name: for people.
        train: all that training sees.
        train_person_ids: int64 [N] for the quality of pseudo labels, never for training; None where nobody knows.
        test: images with identities that training never sees; None if there are none.
        protocols: how `test` is scored; empty without it.
    """

    name: str
    train: Gallery
    train_person_ids: torch.Tensor | None
    test: LabeledGallery | None
    protocols: tuple[Protocol, ...]


def check_ids(argument: str, ids: torch.Tensor, num_samples: int) -> None:
    """Raise ValueError unless `ids` is int64 [num_samples] without negative entries."""
    if ids.dtype != torch.int64 or ids.shape != (num_samples,):
        raise ValueError(f"{argument} must be int64 [N], got {ids.dtype} {tuple(ids.shape)} with N={num_samples}")
    if num_samples and int(ids.min()) < 0:
        raise ValueError(f"{argument} must not be negative, got {int(ids.min())}")
