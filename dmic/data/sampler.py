"""Batches of P clusters x K samples that cross cameras."""

from __future__ import annotations

import torch

from ..constants import NOISE


class CameraCrossingSampler:
    """Draws batches of clusters whose samples come from as many cameras as the clusters have.

    Clusters are taken in shuffled order, and shuffled again when fewer than P are left. In a cluster, a random anchor
    is joined by samples of other cameras than the anchor's, or of the same camera if there is no other; samples repeat
    only if there are too few.

    Args:
        labels: int64 [N] by global sample id; NOISE samples are never drawn.
        camera_ids: int64 [N].
        num_classes: P, clusters in a batch; with fewer clusters the batch is smaller.
        num_samples: K, samples of each cluster.
        generator: the source of all randomness.

    Raises:
        ValueError: there is no cluster, or P or K is below 1.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        camera_ids: torch.Tensor,
        *,
        num_classes: int,
        num_samples: int,
        generator: torch.Generator,
    ):
        for name, value in (("num_classes", num_classes), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"CameraCrossingSampler: {name} must be at least 1, got {value}")
        classes = labels[labels != NOISE].unique()
        if len(classes) == 0:
            raise ValueError("CameraCrossingSampler: labels must hold a cluster, got outliers only")
        self._members = [(labels == c).nonzero().flatten() for c in classes]
        self._camera_ids = camera_ids
        self._num_classes = min(num_classes, len(classes))
        self._num_samples = num_samples
        self._generator = generator
        self._queue: list[int] = []

    def batch(self) -> torch.Tensor:
        """Global sample ids, int64 [min(P, number of clusters) * K], cluster by cluster, each anchor first."""
        if len(self._queue) < self._num_classes:
            self._queue = torch.randperm(len(self._members), generator=self._generator).tolist()
        chosen, self._queue = self._queue[: self._num_classes], self._queue[self._num_classes :]
        return torch.cat([self._draw(self._members[c]) for c in chosen])

    def _draw(self, members: torch.Tensor) -> torch.Tensor:
        anchor = members[torch.randint(len(members), (1,), generator=self._generator)]
        elsewhere = members[self._camera_ids[members] != self._camera_ids[anchor]]
        pool = elsewhere if len(elsewhere) else members
        count = self._num_samples - 1
        if len(pool) >= count:
            picked = torch.randperm(len(pool), generator=self._generator)[:count]
        else:
            picked = torch.randint(len(pool), (count,), generator=self._generator)
        return torch.cat([anchor, pool[picked]])
