"""Batches of P clusters x K samples that cross cameras."""

from __future__ import annotations

import torch

from ..constants import NOISE
from ..seeds import generator


class CameraCrossingSampler:
    """Draws batches of clusters whose samples come from as many cameras as the clusters have.

    Clusters are taken in shuffled order, and shuffled again when fewer than P are left. In a cluster, a random anchor
    is joined by samples of other cameras than the anchor's, or of the same camera if there is no other; samples repeat
    only if there are too few. A batch depends on the seed and on its number alone.

    Args:
        labels: int64 [N] by global sample id; NOISE samples are never drawn.
        camera_ids: int64 [N].
        num_classes: P, clusters in a batch; with fewer clusters the batch is smaller.
        num_samples: K, samples of each cluster.
        seed: the source of all randomness.

    Raises:
        ValueError: there is no cluster, or P or K is below 1.
    """

    def __init__(
        self, labels: torch.Tensor, camera_ids: torch.Tensor, *, num_classes: int, num_samples: int, seed: int
    ):
        for name, value in (("num_classes", num_classes), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"CameraCrossingSampler: {name} must be at least 1, got {value}")
        clustered = (labels != NOISE).nonzero().flatten()
        if len(clustered) == 0:
            raise ValueError("CameraCrossingSampler: labels must hold a cluster, got outliers only")
        order = labels[clustered].argsort(stable=True)
        _, sizes = labels[clustered].unique(return_counts=True)
        self._members = clustered[order].split(sizes.tolist())
        self._camera_ids = camera_ids
        self._num_classes = min(num_classes, len(self._members))
        self._num_samples = num_samples
        self._seed = seed

    def batch(self, number: int) -> torch.Tensor:
        """Global sample ids of batch `number` >= 0: int64 [min(P, clusters) * K], by cluster, each anchor first."""
        turn, place = divmod(number, len(self._members) // self._num_classes)
        order = torch.randperm(len(self._members), generator=generator(self._seed, "order", turn))
        draws = generator(self._seed, "batch", number)
        chosen = order[place * self._num_classes : (place + 1) * self._num_classes]
        return torch.cat([self._draw(self._members[c], draws) for c in chosen.tolist()])

    def _draw(self, members: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        anchor = members[torch.randint(len(members), (1,), generator=draws)]
        elsewhere = members[self._camera_ids[members] != self._camera_ids[anchor]]
        pool = elsewhere if len(elsewhere) else members
        count = self._num_samples - 1
        if len(pool) >= count:
            picked = torch.randperm(len(pool), generator=draws)[:count]
        else:
            picked = torch.randint(len(pool), (count,), generator=draws)
        return torch.cat([anchor, pool[picked]])
