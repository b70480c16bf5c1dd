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
    if embeddings.dim() != 2 or memory_rows.dim() != 2 or embeddings.shape[1] != memory_rows.shape[1]:
        got = f"{tuple(embeddings.shape)} and {tuple(memory_rows.shape)}"
        raise ValueError(f"cluster_loss: embeddings [n, d] and memory_rows [num_clusters, d] must agree, got {got}")
    if labels.shape != embeddings.shape[:1] or len(labels) == 0:
        raise ValueError(f"cluster_loss: labels must have shape [n], n > 0, got {tuple(labels.shape)}")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= len(memory_rows):
        raise ValueError(f"cluster_loss: labels must be in [0, {len(memory_rows)}), got {low if low < 0 else high}")
    if not temperature > 0:
        raise ValueError(f"cluster_loss: temperature must be positive, got {temperature}")
    return F.cross_entropy(embeddings @ memory_rows.detach().T / temperature, labels)
