"""Drop-in replacements for functions that are pasted through the field's training repositories."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from .csr import Csr
from .pseudo_labels import check_inputs, check_search, sparse_distance

logger = logging.getLogger(__name__)

SEARCH_OPTIONS = (0, 1, 2, 3)  # faiss on a GPU in three ways, faiss on the CPU


def compute_jaccard_distance(
    target_features: Any,
    k1: int = 20,
    k2: int = 6,
    print_flag: bool = True,
    search_option: int = 0,
    use_float16: bool = False,
    *,
    neighbor_idx: Any = None,
    encoding: Csr | None = None,
) -> np.ndarray:
    """Dense k-reciprocal Jaccard distances, with the signature of SpCL, ClusterContrast, ADCA, PGM and PCA.

    An existing script keeps its DBSCAN and changes one import. The array is dense by contract and takes 4 N**2 bytes
    (4.7 GB for the 34,167 images of SYSU-MM01), everything else is linear in N; `dmic.pseudo_labels` gives the same
    labels without the array.

    Args:
        target_features: [N, d] float32, float16, bfloat16 or float64, torch or numpy, on any device.
        k1: size of the neighbour lists, the sample itself included; in [1, N].
        k2: how many neighbours the local query expansion averages; in [1, k1].
        print_flag: the published function prints; here the steps are logged to "dmic.compat" at level INFO.
        search_option: 0 to 3 are accepted and change nothing: they chose a search of faiss, and ours is exact.
        use_float16: return float16, rounded from the float32 distances.
        neighbor_idx, encoding: results of earlier steps, as in `dmic.pseudo_labels`.

    Returns:
        numpy float32 (or float16) [N, N], symmetric, in [0, 1]; 1 for pairs that share no neighbour.

    Raises:
        ValueError: in one line: an argument is out of range, has the wrong shape or dtype, or holds NaN or infinity.
        TypeError: an argument is not an array.
    """
    name = "compute_jaccard_distance"
    if search_option not in SEARCH_OPTIONS:
        raise ValueError(f"{name}: search_option must be one of 0, 1, 2, 3, got {search_option!r}")
    k1, k2, max_distance = check_search(name, k1, k2, eps=1.0)
    inputs = check_inputs(name, target_features, None, None, neighbor_idx, encoding, None, k1, k2)
    dtype = np.float16 if use_float16 else np.float32
    if inputs.num_samples == 0:
        return np.empty((0, 0), dtype)
    if print_flag:
        logger.info("computing the Jaccard distance of %d samples", inputs.num_samples)
    seconds: dict[str, float] = {}
    rows = sparse_distance(inputs, k1, k2, max_distance, None, seconds)[0].numpy()
    dense = Csr(rows.row_ptr, rows.col_idx, rows.values.astype(dtype, copy=False), rows.num_cols).to_dense(fill_value=1)
    if print_flag:
        logger.info("done in %s", ", ".join(f"{stage} {spent:.2f} s" for stage, spent in seconds.items()))
    return dense
