"""Evaluation by the book: loops over trials, queries and ranks, and dense re-ranking, written from the definitions.

Shares nothing with `dmic.evaluate` and `dmic.ranking`: ids and distances are Python lists and numpy arrays.
"""

from __future__ import annotations

import math

import numpy as np

from dmic.data import LabeledGallery, Protocol

RANKS = (1, 5, 10, 20)


def book_distances(query: np.ndarray, gallery: np.ndarray) -> list[list[float]]:
    """Negative cosines, rounded to multiples of 2**-24 so that what is equal on paper is equal here."""

    def unit(row: np.ndarray) -> list[float]:
        norm = math.sqrt(math.fsum(float(value) ** 2 for value in row))
        return [float(np.float32(float(value) / norm)) if norm else 0.0 for value in row]

    def cosine(x: list[float], y: list[float]) -> float:
        units = round(math.fsum(a * b for a, b in zip(x, y, strict=True)) * 2**24)
        return min(max(units / 2**24, -1.0), 1.0)

    queries, others = [unit(row) for row in query], [unit(row) for row in gallery]
    return [[-cosine(x, y) for y in others] for x in queries]


def book_reranked(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """Zhong et al., CVPR 2017, on dense arrays: float64 [Q, G]. Lists count the sample itself."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = x.astype(np.float32).astype(np.float64)
    num = len(x)
    squared = ((x[:, None] - x[None]) ** 2).sum(2)
    rank = squared.argsort(axis=1, kind="stable")
    half = int(np.around(k1 / 2)) + 1

    def reciprocal(i: int, k: int) -> set[int]:
        return {int(j) for j in rank[i, :k] if i in rank[j, :k]}

    encoding = np.zeros((num, num))
    for i in range(num):
        near = reciprocal(i, k1)
        members = set(near)
        for q in near:
            other = reciprocal(q, half)
            if 3 * len(other & near) > 2 * len(other):
                members |= other
        for j in members:
            encoding[i, j] = math.exp(-(2 - 2 * float(x[i] @ x[j])))
        encoding[i] /= encoding[i].sum()
    expanded = np.stack([encoding[rank[i, :k2]].mean(0) for i in range(num)])
    overlap = np.array([[np.minimum(a, b).sum() for b in expanded] for a in expanded])
    jaccard = 1 - overlap / (2 - overlap)
    original = squared / squared.max(1, keepdims=True)
    return ((1 - weight) * jaccard + weight * original)[: len(query), len(query) :]


def book_trial(
    distances: list[list[float]],
    query: list[tuple[int, int]],
    gallery: list[tuple[int, int]],
    protocol: Protocol,
) -> dict[str, float]:
    """Metrics of one trial; queries and gallery are (person, camera), one per row and column of the distances."""
    firsts, average_precisions, penalties, skipped = [], [], [], 0
    for row, (person, camera) in zip(distances, query, strict=True):
        ranking = []
        for j in sorted(range(len(gallery)), key=lambda j: (row[j], j)):
            if (camera, gallery[j][1]) in protocol.ignored_cameras:
                continue
            if protocol.same_camera_ignored and (person, camera) == gallery[j]:
                continue
            ranking.append(gallery[j][0])
        hits = [rank for rank, who in enumerate(ranking, 1) if who == person]
        if not hits:
            skipped += 1
            continue
        if protocol.unique_ids:
            firsts.append(list(dict.fromkeys(ranking)).index(person) + 1)
        else:
            firsts.append(hits[0])
        average_precisions.append(sum(i / rank for i, rank in enumerate(hits, 1)) / len(hits))
        penalties.append(len(hits) / hits[-1])
    count = len(firsts)
    return {
        **{f"rank{r}": sum(first <= r for first in firsts) / count for r in RANKS},
        "ap": sum(average_precisions) / count,
        "inp": sum(penalties) / count,
        "num_queries": count,
        "num_skipped": skipped,
    }


def book_protocol(features: np.ndarray, labeled: LabeledGallery, protocol: Protocol, rerank=None) -> list[dict]:
    """The metrics of every trial; `rerank` is (k1, k2, weight)."""
    who = list(zip(labeled.person_ids.tolist(), labeled.unlabeled.camera_ids.tolist(), strict=True))
    trials = []
    for trial in protocol.trials:
        query, gallery = trial.query_idx.tolist(), trial.gallery_idx.tolist()
        sides = features[query], features[gallery]
        distances = book_reranked(*sides, *rerank).tolist() if rerank else book_distances(*sides)
        trials.append(book_trial(distances, [who[i] for i in query], [who[j] for j in gallery], protocol))
    return trials
