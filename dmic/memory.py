"""Memories that embeddings are contrasted with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .constants import NOISE


class ClusterMemory:
    """One L2-normalised row per cluster: its centroid at first, random members of it during training.

    Attributes:
        rows: float32 [num_clusters, d].

    Args:
        features: float32 [N, d] by global sample id.
        labels: int64 [N]; NOISE samples are left out, the others number the clusters from 0 without gaps.
        momentum: share of the old row that an update keeps, in [0, 1).

    Raises:
        ValueError: labels that do not fit the features or leave a cluster empty, or a momentum outside [0, 1).
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, *, momentum: float = 0.0):
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            got = f"{tuple(features.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"ClusterMemory: features [N, d] and labels [N] must agree, got {got}")
        if not 0 <= momentum < 1:
            raise ValueError(f"ClusterMemory: momentum must be in [0, 1), got {momentum}")
        clustered = labels != NOISE
        counts = labels[clustered].bincount()
        if not bool((counts > 0).all()):
            empty = int((counts == 0).nonzero()[0])
            raise ValueError(f"ClusterMemory: labels must leave no cluster empty, got none of cluster {empty}")
        sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, labels[clustered], features[clustered])
        self.rows = F.normalize(sums)  # a centroid's length does not matter, so neither does dividing by the count
        self.momentum = momentum

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def update(self, embeddings: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> None:
        """For every class in the batch, one uniformly drawn member replaces the class's row (random-sample update).

        Call it after the optimiser step, with the embeddings [n, d] that the step was taken on and their labels [n].
        With a momentum m, the new row is m * old + (1 - m) * member, normalised.
        """
        # In a random order, the first member of each class is a uniform draw.
        order = torch.randperm(len(labels), generator=generator)
        classes, class_idx = labels[order].unique(return_inverse=True)
        first = torch.full((len(classes),), len(labels)).scatter_reduce_(
            0, class_idx, torch.arange(len(labels)), "amin"
        )
        members = F.normalize(embeddings[order[first]])
        self.rows[classes] = F.normalize(self.momentum * self.rows[classes] + (1 - self.momentum) * members)
