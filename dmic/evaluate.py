"""What a network is worth, measured with identities that training never sees: retrieval metrics and cluster quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .constants import INFRARED, NOISE, VISIBLE
from .data import LabeledGallery

RANKS = (1, 5, 10, 20)
CHUNK_BYTES = 64_000_000  # memory for the rankings of one chunk of queries
BYTES_PER_PAIR = 40  # similarity, order and matches of one query with one gallery sample, with temporaries


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have a match in the gallery; shares, not percent; NaN if no query has one.

    Attributes:
        cmc: for each rank r asked for, the share of queries whose first match is among the first r results.
        mean_average_precision: of AP = mean over matches of (matches so far / rank).
        mean_inverse_negative_penalty: of INP = number of matches / rank of the last match.
        num_queries: queries that count.
        num_skipped: queries without a match in the gallery.
    """

    cmc: dict[int, float]
    mean_average_precision: float
    mean_inverse_negative_penalty: float
    num_queries: int
    num_skipped: int


def retrieval_metrics(
    query_features: torch.Tensor,
    gallery_features: torch.Tensor,
    query_person_ids: torch.Tensor,
    gallery_person_ids: torch.Tensor,
    *,
    ranks: tuple[int, ...] = RANKS,
    chunk_bytes: int = CHUNK_BYTES,
) -> RetrievalMetrics:
    """Rank the gallery for every query by cosine similarity, ties to the lower gallery index, and score the rankings.

    With the G > 0 matches of a query at ranks r_1 < ... < r_G: AP = mean of i / r_i, INP = G / r_G, and it counts for
    cmc[r] if r_1 <= r (Ye et al., TPAMI 2022, for INP). Queries with G = 0 are skipped and counted. Ranks beyond the
    gallery's size are allowed. Memory is linear in the gallery: queries are taken in chunks of `chunk_bytes`.

    Args:
        query_features: float [Q, d]; a zero row is equally similar (0) to everything.
        gallery_features: float [G, d].
        query_person_ids: int64 [Q].
        gallery_person_ids: int64 [G].
        ranks: positive.
        chunk_bytes: bounds the temporary memory, one query at a time at least.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or a rank below 1.
    """
    sides = {"query": (query_features, query_person_ids), "gallery": (gallery_features, gallery_person_ids)}
    for side, (features, person_ids) in sides.items():
        if features.dim() != 2 or person_ids.shape != features.shape[:1]:
            got = f"{tuple(features.shape)} and {tuple(person_ids.shape)}"
            raise ValueError(
                f"retrieval_metrics: {side}_features [n, d] and {side}_person_ids [n] must agree, got {got}"
            )
        if not bool(features.isfinite().all()):
            row = int((~features.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"retrieval_metrics: {side}_features must be finite, got NaN or infinity in row {row}")
    if query_features.shape[1] != gallery_features.shape[1]:
        got = f"d={query_features.shape[1]} and d={gallery_features.shape[1]}"
        raise ValueError(f"retrieval_metrics: query_features and gallery_features must agree in d, got {got}")
    if min(ranks, default=1) < 1:
        raise ValueError(f"retrieval_metrics: ranks must be at least 1, got {min(ranks)}")

    gallery = F.normalize(gallery_features)
    rank = torch.arange(1, len(gallery) + 1, dtype=torch.float64)
    chunk = max(1, chunk_bytes // (BYTES_PER_PAIR * max(1, len(gallery))))
    nothing = torch.empty(0, dtype=torch.float64)
    first_ranks, precisions, penalties = [nothing], [nothing], [nothing]
    for queries, person_ids in zip(query_features.split(chunk), query_person_ids.split(chunk), strict=True):
        order = (F.normalize(queries) @ gallery.T).argsort(dim=1, descending=True, stable=True)
        matches = gallery_person_ids[order] == person_ids[:, None]
        matches = matches[matches.any(1)]
        if len(matches) == 0:
            continue
        found = matches.cumsum(1)
        count = found[:, -1]
        first_ranks.append((found == 0).sum(1) + 1.0)
        precisions.append((matches * found / rank).sum(1) / count)
        penalties.append(count.double() / ((found < count[:, None]).sum(1) + 1))
    first_rank = torch.cat(first_ranks)
    return RetrievalMetrics(
        cmc={r: float((first_rank <= r).double().mean()) for r in ranks},
        mean_average_precision=float(torch.cat(precisions).mean()),
        mean_inverse_negative_penalty=float(torch.cat(penalties).mean()),
        num_queries=len(first_rank),
        num_skipped=len(query_features) - len(first_rank),
    )


def cross_modality_metrics(features: torch.Tensor, labeled: LabeledGallery) -> dict[str, RetrievalMetrics]:
    """Retrieval of visible images by infrared queries, and the other way round; features float [N, d] by sample."""
    visible, infrared = (labeled.unlabeled.modality_ids == modality for modality in (VISIBLE, INFRARED))

    def directed(query_mask: torch.Tensor, gallery_mask: torch.Tensor) -> RetrievalMetrics:
        ids = labeled.person_ids
        return retrieval_metrics(features[query_mask], features[gallery_mask], ids[query_mask], ids[gallery_mask])

    return {"infrared_to_visible": directed(infrared, visible), "visible_to_infrared": directed(visible, infrared)}


def purity(labels: torch.Tensor, person_ids: torch.Tensor) -> float:
    """Share of the clustered samples whose identity is the most frequent one of their cluster; NaN without clusters.

    Args:
        labels: int64 [N]; NOISE samples do not count.
        person_ids: int64 [N].
    """
    clustered = labels != NOISE
    pairs, counts = torch.stack([labels[clustered], person_ids[clustered]]).unique(dim=1, return_counts=True)
    if pairs.numel() == 0:
        return float("nan")
    largest = counts.new_zeros(int(pairs[0].max()) + 1).scatter_reduce_(0, pairs[0], counts, "amax")
    return float(largest.sum() / counts.sum())


def splits(labels: torch.Tensor, person_ids: torch.Tensor) -> float:
    """Mean number of clusters that an identity is spread over, identities without a clustered sample left out."""
    clustered = labels != NOISE
    pairs = torch.stack([person_ids[clustered], labels[clustered]]).unique(dim=1)
    return pairs.shape[1] / len(pairs[0].unique()) if pairs.numel() else float("nan")
