"""A table of image files: who is in each, which camera took it, and in which light."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from .gallery import Gallery, LabeledGallery
from .image_files import ImageFiles


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of N image files.

    Attributes:
        paths: N files.
        person_ids: int64 [N], or None where nobody knows.
        camera_ids: int64 [N], from 0.
        modality_ids: int64 [N], VISIBLE or INFRARED.
    """

    paths: tuple[str, ...]
    person_ids: torch.Tensor | None
    camera_ids: torch.Tensor
    modality_ids: torch.Tensor

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, int, int, int]]) -> Samples:
        """From rows of path, person id, camera id and modality id."""
        rows = list(rows)
        person_ids, camera_ids, modality_ids = (
            torch.tensor([row[column] for row in rows], dtype=torch.int64) for column in (1, 2, 3)
        )
        return cls(tuple(row[0] for row in rows), person_ids, camera_ids, modality_ids)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, sample_idx: torch.Tensor) -> Samples:
        """The rows int64 [n], in that order, or those where a mask bool [N] is true."""
        if sample_idx.dtype == torch.bool:
            sample_idx = sample_idx.nonzero().flatten()
        return Samples(
            tuple(self.paths[sample] for sample in sample_idx.tolist()),
            None if self.person_ids is None else self.person_ids[sample_idx],
            self.camera_ids[sample_idx],
            self.modality_ids[sample_idx],
        )

    def without_identities(self) -> Samples:
        """The same rows, of unknown persons."""
        return replace(self, person_ids=None)

    def gallery(self, *, height: int, width: int, cache_bytes: int = 0, num_workers: int | None = None) -> Gallery:
        """The images as training sees them; the arguments are those of ImageFiles."""
        images = ImageFiles(self.paths, height=height, width=width, cache_bytes=cache_bytes, num_workers=num_workers)
        return Gallery(images, self.camera_ids, self.modality_ids)

    def labeled_gallery(
        self, *, height: int, width: int, cache_bytes: int = 0, num_workers: int | None = None
    ) -> LabeledGallery:
        """The images and who is in them; ValueError where nobody knows."""
        if self.person_ids is None:
            raise ValueError("Samples: labeled_gallery needs person_ids, got None")
        unlabeled = self.gallery(height=height, width=width, cache_bytes=cache_bytes, num_workers=num_workers)
        return LabeledGallery(unlabeled, self.person_ids)


def random_gallery(
    samples: Samples, *, modality: int, camera_ids: Sequence[int], num_shots: int, seed: int
) -> torch.Tensor:
    """A few images of every person and camera, drawn as published evaluations of SYSU-MM01 and LLCM draw them.

    Python's generator is seeded with `seed`; persons are taken in ascending order and, within a person, cameras in the
    order given. One shot is `random.choice` of the images, more are `random.sample` of them, all if there are fewer.
    The images of a person and camera are in the order of the rows, for which readers sort them by file name.

    Args:
        samples: with person_ids.
        modality: VISIBLE or INFRARED; other rows are not drawn.
        camera_ids: cameras to draw from; a person without an image there is left out.
        num_shots: images per person and camera.
        seed: of the draws.

    Returns:
        int64 [G], positions in `samples` in the order of the draws.
    """
    images = defaultdict(list)
    columns = (samples.person_ids, samples.camera_ids, samples.modality_ids)
    for position, (person, camera, own_modality) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if own_modality == modality:
            images[person, camera].append(position)
    rng = random.Random(seed)
    drawn: list[int] = []
    for person in sorted({person for person, _ in images}):
        for camera in camera_ids:
            choices = images.get((person, camera))
            if choices and num_shots == 1:
                drawn.append(rng.choice(choices))
            elif choices:
                drawn += rng.sample(choices, min(num_shots, len(choices)))
    return torch.tensor(drawn, dtype=torch.int64)
