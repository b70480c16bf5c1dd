"""Memories that embeddings are contrasted with. They are updated outside autograd, after the optimiser's step.

Everything is indexed by global sample id: the position of a sample in the gallery, whoever else trains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .constants import NOISE
from .losses import cluster_loss, instance_loss


class ClusterMemory:
    """One L2-normalised row per cluster: its centroid at first, random members of it during training.

    Attributes:
        rows: float32 [num_clusters, d].
        labels: int64 [N], the row of every sample; NOISE samples have none.
        momentum: share of the old row that an update keeps, in [0, 1).

    Raises:
        ValueError: a momentum outside [0, 1).
    """

    def __init__(self, rows: torch.Tensor, labels: torch.Tensor, *, momentum: float = 0.0):
        _check_momentum("ClusterMemory", momentum)
        self.rows = rows
        self.labels = labels
        self.momentum = momentum

    @classmethod
    def from_features(cls, features: torch.Tensor, labels: torch.Tensor, *, momentum: float = 0.0) -> ClusterMemory:
        """The normalised centroids of clusters.

        Args:
            features: float32 [N, d] by global sample id.
            labels: int64 [N]; NOISE samples are left out, the others number the clusters from 0 without gaps.
            momentum: of the updates.

        Raises:
            ValueError: labels that do not fit the features or leave a cluster empty, or a momentum outside [0, 1).
        """
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            got = f"{tuple(features.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"ClusterMemory: features [N, d] and labels [N] must agree, got {got}")
        clustered = labels != NOISE
        counts = labels[clustered].bincount()
        if not bool((counts > 0).all()):
            empty = int((counts == 0).nonzero()[0])
            raise ValueError(f"ClusterMemory: labels must leave no cluster empty, got none of cluster {empty}")
        sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, labels[clustered], features[clustered])
        # A centroid's length does not matter, so neither does dividing by the count.
        return cls(F.normalize(sums), labels, momentum=momentum)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        """Classes that an embedding is told apart from; below two there is nothing to learn from it."""
        return len(self.rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the constructor takes."""
        return {"rows": self.rows, "labels": self.labels}

    def loss(self, embeddings: torch.Tensor, sample_idx: torch.Tensor, temperature: float) -> torch.Tensor:
        """`cluster_loss` of embeddings [n, d] of clustered samples int64 [n]."""
        return cluster_loss(embeddings, self.labels[sample_idx], self.rows, temperature)

    def update(self, embeddings: torch.Tensor, sample_idx: torch.Tensor, generator: torch.Generator) -> None:
        """For every cluster in the batch, one uniformly drawn member replaces the cluster's row (random-sample update).

        With a momentum m, the new row is m * old + (1 - m) * member, normalised.
        """
        _replace_rows(self.rows, self.labels[sample_idx], embeddings, self.momentum, generator)


class InstanceMemory:
    """One L2-normalised row per sample, for as long as a stage lasts; every outlier is a class of its own.

    Attributes:
        rows: float32 [n, d], in the order of `sample_idx`.
        sample_idx: int64 [n], ascending global ids of the samples it holds.
        classes: int64 [n], the class of every row; samples of one cluster share theirs, an outlier has one alone.
        momentum: share of the old row that an update keeps, in [0, 1).

    Raises:
        ValueError: a momentum outside [0, 1).
    """

    def __init__(self, rows: torch.Tensor, sample_idx: torch.Tensor, classes: torch.Tensor, *, momentum: float = 0.0):
        _check_momentum("InstanceMemory", momentum)
        self.rows = rows
        self.sample_idx = sample_idx
        self.classes = classes
        self.momentum = momentum

    @classmethod
    def from_features(
        cls, features: torch.Tensor, sample_idx: torch.Tensor, *, momentum: float = 0.0
    ) -> InstanceMemory:
        """The normalised features of some samples, each a class of its own until `refresh` is called.

        Args:
            features: float32 [N, d] by global sample id.
            sample_idx: int64 [n], ascending: which of them it holds.
            momentum: of the updates.

        Raises:
            ValueError: sample ids that do not ascend within [0, N), or a momentum outside [0, 1).
        """
        bounds = sample_idx[[0, -1]].tolist() if len(sample_idx) else [0, 0]
        if bounds[0] < 0 or bounds[1] >= max(1, len(features)) or not bool((sample_idx.diff() > 0).all()):
            got = f"{bounds[0]} to {bounds[1]} with N={len(features)}"
            raise ValueError(f"InstanceMemory: sample_idx must ascend within [0, N), got {got}")
        classes = torch.arange(len(sample_idx), device=features.device)
        return cls(F.normalize(features[sample_idx]), sample_idx, classes, momentum=momentum)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        """Clusters and outliers."""
        return len(self.classes.unique())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the constructor takes."""
        return {"rows": self.rows, "sample_idx": self.sample_idx, "classes": self.classes}

    def refresh(self, labels: torch.Tensor) -> None:
        """Take the classes from the pseudo labels int64 [N] of a new epoch; the rows stay."""
        own = labels[self.sample_idx]
        outlier = own == NOISE
        largest = int(own.max()) if len(own) else NOISE
        self.classes = torch.where(outlier, largest + outlier.cumsum(0), own)

    def loss(self, embeddings: torch.Tensor, sample_idx: torch.Tensor, temperature: float) -> torch.Tensor:
        """`instance_loss` of embeddings [n, d] of samples int64 [n] that it holds."""
        return instance_loss(embeddings, self.classes[self._rows_of(sample_idx)], self.rows, self.classes, temperature)

    def update(self, embeddings: torch.Tensor, sample_idx: torch.Tensor, generator: torch.Generator) -> None:
        """Every sample in the batch takes one of its own embeddings, uniformly drawn, as its row."""
        _replace_rows(self.rows, self._rows_of(sample_idx), embeddings, self.momentum, generator)

    def _rows_of(self, sample_idx: torch.Tensor) -> torch.Tensor:
        position = torch.searchsorted(self.sample_idx, sample_idx).clamp(max=len(self) - 1)
        absent = self.sample_idx[position] != sample_idx
        if bool(absent.any()):
            raise ValueError(f"InstanceMemory: sample {int(sample_idx[absent][0])} is not in this memory")
        return position


Memory = ClusterMemory | InstanceMemory


def _check_momentum(name: str, momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"{name}: momentum must be in [0, 1), got {momentum}")


@torch.no_grad()
def _replace_rows(
    rows: torch.Tensor,
    targets: torch.Tensor,
    embeddings: torch.Tensor,
    momentum: float,
    generator: torch.Generator,
) -> None:
    """Move every row that is a target towards one of its embeddings, uniformly drawn; targets int64 [n]."""
    # In a random order, the first embedding of each target is a uniform draw.
    order = torch.randperm(len(targets), generator=generator).to(targets.device)
    chosen, target_idx = targets[order].unique(return_inverse=True)
    first = torch.full((len(chosen),), len(targets), device=targets.device)
    first.scatter_reduce_(0, target_idx, torch.arange(len(targets), device=targets.device), "amin")
    members = F.normalize(embeddings[order[first]])
    rows[chosen] = F.normalize(momentum * rows[chosen] + (1 - momentum) * members)
