"""How far gallery images are from queries: by cosine, and k-reciprocally re-ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import ops

BLOCK_ROWS = 4096  # rows that are float64 at a time
COSINE_UNITS = 2.0**24  # cosines are whole multiples of one part in this, which float32 holds exactly

Distances = Callable[[int, int], torch.Tensor]  # (start, stop) -> [stop - start, G], smaller is nearer


@dataclass(frozen=True)
class Rerank:
    """k-reciprocal re-ranking of a test ranking: (1 - weight) * Jaccard + weight * original distance.

    Attributes:
        k1: neighbours searched among queries and gallery together, counting the image itself.
        k2: neighbours whose encodings are averaged, counting the image itself; at most k1.
        weight: lambda, the share of the original distance, in [0, 1]; 1 is the plain ranking.

    Raises:
        ValueError: a number out of range.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.k2 <= self.k1:
            raise ValueError(f"Rerank: k2 must be in [1, k1], got k2={self.k2} with k1={self.k1}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"Rerank: weight must be in [0, 1], got {self.weight}")

    def __str__(self) -> str:
        return f"re-ranked, k1={self.k1}, k2={self.k2}, lambda={self.weight:g}"


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Rows divided by their Euclidean norm, in float64, and rounded to float32; a zero row stays zero."""
    rows = torch.empty(features.shape, device=features.device)
    for target, source in zip(rows.split(BLOCK_ROWS), features.split(BLOCK_ROWS), strict=True):
        target.copy_(F.normalize(source.double()))
    return rows


def cosine(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Products of `unit_rows` [n, d] and [m, d]: float32 [n, m] multiples of 2**-24 in [-1, 1].

    The sums are float64, whose error is far below the rounding: equal rows tie wherever a matrix product puts them.
    """
    products = torch.empty(len(rows), len(others), device=rows.device)
    for target, block in zip(products.split(BLOCK_ROWS, dim=1), others.split(BLOCK_ROWS), strict=True):
        target.copy_((rows.double() @ block.double().T).mul_(COSINE_UNITS).round_().div_(COSINE_UNITS).clamp_(-1, 1))
    return products


def plain_distances(query: torch.Tensor, gallery: torch.Tensor) -> Distances:
    """Negative cosines of `unit_rows` [Q, d] and [G, d], in chunks of queries; float32."""
    return lambda start, stop: -cosine(query[start:stop], gallery)


def reranked_distances(query: torch.Tensor, gallery: torch.Tensor, rerank: Rerank) -> Distances:
    """(1 - weight) * Jaccard + weight * original of `unit_rows` [Q, d] and [G, d], in chunks of queries; float64.

    Jaccard distances are those of `jaccard_distance` with plain expansion over queries and gallery together, 1 where a
    pair does not overlap. The original distance is the squared Euclidean one, divided by the largest between the query
    and any query or gallery image. Kept in memory: the pairs that overlap; what is returned is the only dense part.

    Raises:
        ValueError: k1 exceeds the number of queries and gallery images.

    Source: Zhong et al., CVPR 2017, equation 12; the scale of the original distance as in the code published with it.
    """
    samples = torch.cat([query, gallery])
    neighbor_idx, _ = ops.knn_graph(samples, rerank.k1)
    encoding = ops.k_reciprocal_encoding(samples, neighbor_idx, int(np.around(rerank.k1 / 2)))
    jaccard = ops.jaccard_distance(ops.invariant_expansion(encoding, neighbor_idx, rerank.k2), 1.0)

    def distances(start: int, stop: int) -> torch.Tensor:
        original = 2 - 2 * cosine(samples[start:stop], samples).double()
        original /= original.amax(1, keepdim=True).clamp_min(1 / COSINE_UNITS)  # 0 if all samples are equal
        row_ptr = jaccard.row_ptr[start : stop + 1]
        stored = slice(int(row_ptr[0]), int(row_ptr[-1]))
        row_idx = torch.arange(stop - start, device=samples.device).repeat_interleave(row_ptr.diff())
        final = torch.ones_like(original)
        final[row_idx, jaccard.col_idx[stored].long()] = jaccard.values[stored].double()
        final *= 1 - rerank.weight
        final += rerank.weight * original
        return final[:, len(query) :]

    return distances
