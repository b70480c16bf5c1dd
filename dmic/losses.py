"""Contrastive losses against memories."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cluster_loss(
    embeddings: torch.Tensor, labels: torch.Tensor, memory_rows: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean cross entropy of each embedding's similarities to all cluster rows: -log softmax(x . M / temperature)[y].

    Args:
        embeddings: x, float [n, d], L2-normalised.
        labels: y, int64 [n], rows of the memory.
        memory_rows: M, float [num_clusters, d], L2-normalised; no gradient flows into it.
        temperature: above 0.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit, a label outside the memory, or a temperature that is not positive.
    """
    _check("cluster_loss", embeddings, labels, memory_rows, temperature)
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= len(memory_rows):
        raise ValueError(f"cluster_loss: labels must be in [0, {len(memory_rows)}), got {low if low < 0 else high}")
    return F.cross_entropy(embeddings @ memory_rows.detach().T / temperature, labels)


def instance_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    memory_rows: torch.Tensor,
    memory_labels: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Mean of -log(sum over j with y_j = y of exp(x . U_j / temperature) / sum over all j of the same).

    The sum over the class is not divided by its size. Both sums are taken as logarithms and cannot overflow.

    Args:
        embeddings: x, float [n, d], L2-normalised.
        labels: y, int64 [n], the class of each.
        memory_rows: U, float [N, d], L2-normalised; no gradient flows into it.
        memory_labels: int64 [N], the class of each row.
        temperature: above 0.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit, a class without a row, or a temperature that is not positive.
    """
    _check("instance_loss", embeddings, labels, memory_rows, temperature)
    if memory_labels.shape != memory_rows.shape[:1]:
        got = f"{tuple(memory_labels.shape)} with N={len(memory_rows)}"
        raise ValueError(f"instance_loss: memory_labels must have shape [N], got {got}")
    same = labels[:, None] == memory_labels
    if not bool(same.any(1).all()):
        alone = int(labels[~same.any(1)][0])
        raise ValueError(f"instance_loss: every class must have a row in the memory, got none of class {alone}")
    similarities = embeddings @ memory_rows.detach().T / temperature
    own = similarities.masked_fill(~same, float("-inf"))
    return (similarities.logsumexp(1) - own.logsumexp(1)).mean()


def _check(
    name: str, embeddings: torch.Tensor, labels: torch.Tensor, memory_rows: torch.Tensor, temperature: float
) -> None:
    if embeddings.dim() != 2 or memory_rows.dim() != 2 or embeddings.shape[1] != memory_rows.shape[1]:
        got = f"{tuple(embeddings.shape)} and {tuple(memory_rows.shape)}"
        raise ValueError(f"{name}: embeddings [n, d] and memory_rows [rows, d] must agree, got {got}")
    if labels.shape != embeddings.shape[:1] or len(labels) == 0:
        raise ValueError(f"{name}: labels must have shape [n], n > 0, got {tuple(labels.shape)}")
    if not temperature > 0:
        raise ValueError(f"{name}: temperature must be positive, got {temperature}")
