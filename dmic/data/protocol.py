"""How a data set is evaluated: which images are queries, which gallery each searches, and what does not count."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Trial:
    """One draw of queries and gallery.

    Attributes:
        query_idx: int64 [Q], positions in the test gallery.
        gallery_idx: int64 [G], positions in the test gallery, in the order in which ties are broken.
    """

    query_idx: torch.Tensor
    gallery_idx: torch.Tensor


@dataclass(frozen=True, eq=False)
class Protocol:
    """A named way to score retrieval; results are means over its trials.

    Attributes:
        name: as it is printed beside every number, such as "SYSU-MM01, all search, single shot".
        trials: at least one.
        ignored_cameras: pairs (query camera id, gallery camera id): such a query does not see such gallery images.
        same_camera_ignored: a query does not see gallery images of its own identity from its own camera.
        unique_ids: CMC ranks identities, each at its best position, instead of images.
    """

    name: str
    trials: tuple[Trial, ...]
    ignored_cameras: tuple[tuple[int, int], ...] = ()
    same_camera_ignored: bool = False
    unique_ids: bool = False
