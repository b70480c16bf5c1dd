"""Inputs of the tests: galleries with a structure worth clustering, and inputs built to break an op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dmic import Csr, reference

CAMERA_MODALITY = np.array([0, 0, 1, 0, 0, 1])  # visible cameras 0, 1, 3, 4; infrared 2, 5, as on SYSU-MM01


@dataclass(frozen=True)
class Gallery:
    features: np.ndarray  # float32 [N, d], norms between 0.6 and 1
    camera_ids: np.ndarray  # int64 [N]
    modality_ids: np.ndarray  # int64 [N]


def gallery(num_samples: int, dim: int, seed: int = 0, samples_per_identity: int = 12, noise: float = 0.7) -> Gallery:
    """Identities seen by six cameras of two modalities: identity + camera offset + noise, then a random norm."""
    rng = np.random.default_rng(seed)
    identity = rng.integers(max(1, num_samples // samples_per_identity), size=num_samples)
    camera = rng.integers(len(CAMERA_MODALITY), size=num_samples)
    directions = rng.standard_normal((identity.max(initial=0) + 1, dim))
    offsets = rng.standard_normal((len(CAMERA_MODALITY), dim))
    features = directions[identity] + 0.4 * offsets[camera] + noise * rng.standard_normal((num_samples, dim))
    norms = rng.uniform(0.6, 1.0, (num_samples, 1))
    features *= norms / np.linalg.norm(features, axis=1, keepdims=True)
    return Gallery(features.astype(np.float32), camera, CAMERA_MODALITY[camera])


def grid_features(num_samples: int, dim: int, seed: int = 0, levels: int = 3) -> np.ndarray:
    """Small integers: every distance is an exact integer in every precision, and ties are everywhere."""
    return np.random.default_rng(seed).integers(0, levels, (num_samples, dim)).astype(np.float32)


def duplicated_features(num_samples: int, dim: int, copies: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A gallery in which one sample occurs `copies` times, at the returned rows, scattered over the index range."""
    rng = np.random.default_rng(seed)
    features = gallery(num_samples, dim, seed).features
    rows = np.sort(rng.choice(num_samples, copies, replace=False))
    features[rows] = features[rows[0]]
    return features, rows


def random_encoding_rows(num_rows: int, num_cols: int, nnz: int, seed: int = 0) -> np.ndarray:
    """A dense int32 [num_rows, num_cols] encoding: about nnz random weights a row, each row summing to 2**30."""
    rng = np.random.default_rng(seed)
    weights = rng.random((num_rows, num_cols)) ** 3 * (rng.random((num_rows, num_cols)) < nnz / num_cols)
    weights[np.arange(num_rows), rng.integers(num_cols, size=num_rows)] += 0.1
    fixed = np.floor(weights / weights.sum(1, keepdims=True) * 2**30).astype(np.int64)
    fixed[np.arange(num_rows), fixed.argmax(1)] += 2**30 - fixed.sum(1)
    return fixed.astype(np.int32)


def random_lists(num_samples: int, k1: int, seed: int = 0, num_lists: int | None = None) -> np.ndarray:
    """Neighbour lists int32 [N or num_lists, k1]: distinct, in no order, the sample itself at any place or missing."""
    rng = np.random.default_rng(seed)
    num_lists = num_samples if num_lists is None else num_lists
    return np.stack([rng.permutation(num_samples)[:k1] for _ in range(num_lists)]).astype(np.int32)


def has_ties(features: np.ndarray) -> bool:
    """Does any sample have two others at the same distance in float32? Then the order depends on the numbering."""
    distances = np.sort(reference.knn_graph(features, len(features))[1], axis=1)
    return bool((distances[:, 1:] == distances[:, :-1]).any())


def csr_from_dense(dense: np.ndarray) -> Csr:
    """The entries of a dense array that are not zero, as numpy arrays."""
    row_idx, col_idx = dense.nonzero()
    row_ptr = np.searchsorted(row_idx, np.arange(len(dense) + 1))
    return Csr(row_ptr.astype(np.int64), col_idx.astype(np.int32), dense[row_idx, col_idx], dense.shape[1])


def some_rows(csr: Csr, rows: np.ndarray | slice) -> Csr:
    """Rows of a numpy Csr, with all of its columns."""
    return csr_from_dense(csr.to_dense()[rows])


def row_sums(encoding: Csr) -> np.ndarray:
    """int64 [N]"""
    rows = encoding.numpy()
    return np.diff(np.concatenate([[0], np.cumsum(rows.values, dtype=np.int64)])[rows.row_ptr])


def edited(array: np.ndarray, at: Any, value: Any) -> np.ndarray:
    """A copy with one entry changed."""
    array = array.copy()
    array[at] = value
    return array


def damaged_rows(rows: Csr) -> list[tuple[Csr, list[str]]]:
    """Every way to break the structure of a numpy Csr, and what the error must mention."""
    row_ptr, col_idx, values = rows.row_ptr, rows.col_idx, rows.values

    def replaced(**arrays) -> Csr:
        return Csr(**({"row_ptr": row_ptr, "col_idx": col_idx, "values": values, "num_cols": rows.num_cols} | arrays))

    return [
        (replaced(values=values.astype(np.float64)), ["values", "float64"]),
        (replaced(values=values[:-1]), ["values"]),
        (replaced(values=values[None]), ["values"]),
        (replaced(col_idx=col_idx.astype(np.int64)), ["col_idx", "int64"]),
        (replaced(col_idx=edited(col_idx, row_ptr[1] - 1, rows.num_cols)), ["col_idx", str(rows.num_cols)]),
        (replaced(col_idx=edited(col_idx, 0, -1)), ["col_idx", "-1"]),
        (replaced(col_idx=edited(col_idx, 1, col_idx[0])), ["col_idx", "row 0"]),
        (replaced(row_ptr=row_ptr.astype(np.int32)), ["row_ptr", "int32"]),
        (replaced(row_ptr=edited(row_ptr, 0, 1)), ["row_ptr", "1"]),
        (replaced(row_ptr=edited(row_ptr, -1, 10**9)), ["row_ptr", str(10**9)]),
        (replaced(row_ptr=edited(row_ptr, 3, 10**9)), ["row_ptr", str(10**9)]),
        (replaced(row_ptr=edited(row_ptr, 3, -(10**9))), ["row_ptr", str(-(10**9))]),
        (replaced(row_ptr=row_ptr[:0]), []),
        (replaced(row_ptr=row_ptr[None]), []),
    ]


def damaged_encodings(encoding: Csr) -> list[tuple[Csr, list[str]]]:
    """The same for an encoding, whose values have rules of their own."""
    row_ptr, col_idx, values, num_cols = encoding.row_ptr, encoding.col_idx, encoding.values, encoding.num_cols
    return [
        *damaged_rows(encoding),
        (Csr(row_ptr, col_idx, edited(values, 0, values[0] + 1), num_cols), ["2^30", str(2**30 + 1), "row 0"]),
        (Csr(row_ptr, col_idx, edited(values, 0, 0), num_cols), ["positive", "0"]),
        (Csr(row_ptr, col_idx, edited(values, 1, -5), num_cols), ["positive", "-5"]),
        (Csr(row_ptr, col_idx, values.astype(np.float32), num_cols), ["values", "float32"]),
    ]


def random_distance(num_samples: int, bridges: float, seed: int = 0) -> np.ndarray:
    """A dense symmetric float32 distance: 0 on the diagonal, multiples of 1/64 below 1 for near pairs, 1 for others.

    Samples form groups of about 9 in which 60 % of the pairs are near; across groups a sample has about `bridges` near
    pairs. The coarse grid makes pairs at exactly eps common.
    """
    rng = np.random.default_rng(seed)
    shape = (num_samples, num_samples)
    group = rng.integers(max(1, num_samples // 9), size=num_samples)
    chance = np.where(group[:, None] == group, 0.6, bridges / num_samples)
    distance = np.where(rng.random(shape) < chance, rng.integers(1, 64, shape) / 64, 1.0)
    distance = np.triu(distance, 1)
    distance += distance.T
    return distance.astype(np.float32)
