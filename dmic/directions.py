"""Directions along which features vary most: `knn_graph` on a CPU compares samples along them before anything else."""

from __future__ import annotations

import math

import torch

MIN_SAMPLES = 6_000  # below, comparing in full is as fast
MIN_COLUMNS = 256
MIN_ROWS = 600  # of a part of the samples that stands for all
SAMPLE = 2048  # rows that the directions and the decision are made from
QUERIES = 64
WIDTHS = (31, 47, 63, 95, 127, 191, 255)  # directions tried; one more column holds what they leave
DOT_COST = 6  # of a canonical dot product, in multiply-adds of a tile, per column
COLUMN_COST = 24  # of the filter and the lists, for each pair, in the same unit
MIN_GAIN = 1.2
ROUNDED = {  # tiles of rounded rows: cost of a multiply-add, in the same unit, and error of x.y, relative to |x| |y|
    "amx": (1 / 8, 0.0034),  # bfloat16
    "vnni": (1 / 2, 0.0007),  # int16
}


def most(num_features: int) -> int:
    """The most directions that are tried of so many columns."""
    return max((width for width in WIDTHS if width < num_features // 4), default=0)


def scratch_bytes(num_samples: int, num_features: int) -> int:
    """Memory that `leading_directions` takes and gives back: two samples of rows, the basis a few times, torch's linear
    algebra on its first use."""
    if num_samples < MIN_SAMPLES or num_features < MIN_COLUMNS:
        return 0
    return (10 * SAMPLE + 16 * (WIDTHS[-1] + 9)) * num_features + 16_000_000


def leading_directions(
    features: torch.Tensor, k1: int, num_samples: int | None = None, simd: str | None = None
) -> torch.Tensor | None:
    """As many directions as make the search cheapest, or None where it is cheaper without.

    A randomised range finder on a sample of rows proposes them, and the bound that the search uses is tried on pairs of
    the sample: it rejects few pairs where features vary in all directions alike, and most where they do not. The result
    of the search does not depend on what is returned here.

    Args:
        features: float32 [n, d] on the CPU, finite or not.
        k1: length of the lists.
        num_samples: N; these are n of them, which are compared with each other first and with the others then. By
            default they are all.
        simd: the instruction set of the search, as `build_info()["simd_used"]` names it; by default one that multiplies
            float32.

    Returns:
        float32 [m, d] with orthonormal rows, or None.

    Source: Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4.
    """
    num_rows, dim = features.shape
    num_samples = num_rows if num_samples is None else num_samples
    if num_samples < MIN_SAMPLES or num_rows < MIN_ROWS or dim < MIN_COLUMNS:
        return None
    widths = [width for width in WIDTHS if width < dim // 4]
    random = torch.Generator().manual_seed(0)
    rows = torch.randperm(num_rows, generator=random)[: min(SAMPLE, num_rows // 2)]
    sample = features[rows]
    length = sample.square().sum(1).max().sqrt()
    if not (torch.isfinite(length) and length > 0):
        return None  # the op says what is wrong with it
    sample /= length
    basis = torch.randn(dim, min(dim, widths[-1] + 9), generator=random)
    for _ in range(2):
        basis = _orthonormal(sample.T @ (sample @ basis))
    along = sample @ basis
    order = torch.linalg.eigh(along.T @ along).eigenvectors.flip(1)[:, : widths[-1]]
    directions, sketches = (basis @ order).T, along @ order

    product, error = ROUNDED.get(simd, (1, 0))
    queries = slice(0, QUERIES)
    norm_sq = sample.square().sum(1)
    others = (k1 - 1) * len(sample) / num_samples  # of a list, in the sample
    place = min(len(sample), 1 + max(1, math.ceil(others)))  # the first is the query itself
    distance = norm_sq[queries, None] + norm_sq - 2 * sample[queries] @ sample.T
    farthest = distance.kthvalue(place, dim=1, keepdim=True).values
    pairs = num_samples / 2  # a row is compared with half of the others
    by_sketches = pairs + num_rows / 2  # those that are compared first, twice: lists start with the nearest by sketches
    in_full = pairs * (dim * product + COLUMN_COST)
    norms = norm_sq.sqrt()
    slack = 2 * error * norms[queries, None] * norms
    best, cost = None, in_full / MIN_GAIN
    for width in widths:
        part = sketches[:, :width]
        left = (norm_sq - part.square().sum(1)).clamp(min=0).sqrt()
        bound = norm_sq[queries, None] + norm_sq - 2 * (part[queries] @ part.T + left[queries, None] * left)
        unsettled = float((bound - slack <= farthest).float().mean())
        if unsettled * DOT_COST > 1:
            continue
        dots = 2 * pairs * unsettled + k1
        with_sketches = by_sketches * ((width + 1) * product + COLUMN_COST) + dim * (width + DOT_COST * dots)
        if with_sketches < cost:
            best, cost = width, with_sketches
    return None if best is None else directions[:best].contiguous()


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span what these span, but for directions in which they hardly reach.

    By a few large products: a QR decomposition has many small steps, at each of which the threads of a busy machine
    wait for each other, and cannot be interrupted.
    """
    wide = columns.double()
    for _ in range(2):  # the first leaves errors of 1e-4 where columns are short
        squares, turned = torch.linalg.eigh(wide.T @ wide)
        reached = squares > 1e-12 * squares[-1]
        wide = wide @ (turned[:, reached] / squares[reached].sqrt())
    return wide.float()
