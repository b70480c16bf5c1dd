"""knn_graph against faiss's exact index and a blocked torch product with topk."""

import numpy as np
import pytest
import torch

import dmic

from . import baselines
from .sizes import K1

pytestmark = pytest.mark.benchmark(group="knn_graph")


def blocked_topk(features: np.ndarray, k1: int, block_rows: int = 1024) -> torch.Tensor:
    x = torch.from_numpy(features)
    norm_sq = (x * x).sum(1)
    scores = (torch.addmm(norm_sq, block, x.T, alpha=-2) for block in x.split(block_rows))
    return torch.cat([block.topk(k1, largest=False).indices for block in scores])


def same_neighbors(found: np.ndarray, want: np.ndarray) -> float:
    """Share of the entries of `want` that `found` has, row by row."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, want, strict=True)]))


def test_dmic(measure, gallery):
    measure(dmic.knn_graph, gallery.features, K1)


def test_faiss(measure, benchmark, gallery, neighbor_idx):
    found = measure(baselines.search, gallery.features, K1)
    benchmark.extra_info["recall"] = same_neighbors(found, neighbor_idx)


def test_torch_blocked_topk(measure, benchmark, gallery, neighbor_idx):
    found = measure(blocked_topk, gallery.features, K1)
    benchmark.extra_info["recall"] = same_neighbors(found.numpy(), neighbor_idx)
