"""Exact clustering of unlabeled visible-infrared galleries in linear memory, and training on the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .constants import INFRARED, NOISE, VISIBLE
from .csr import Csr
from .pseudo_labels import JaccardDBSCAN, MemoryEstimate, PseudoLabels, estimate_memory, pseudo_labels

if TYPE_CHECKING:
    from ._native import build_info
    from .ops import dbscan, invariant_expansion, jaccard_distance, k_reciprocal_encoding, knn_graph

# Loaded on first use, so that `dmic doctor` can still say what is wrong when the compiled library does not load.
_COMPILED = {
    "build_info": "_native",
    "dbscan": "ops",
    "invariant_expansion": "ops",
    "jaccard_distance": "ops",
    "k_reciprocal_encoding": "ops",
    "knn_graph": "ops",
}

__all__ = [
    "INFRARED",
    "NOISE",
    "VISIBLE",
    "Csr",
    "JaccardDBSCAN",
    "MemoryEstimate",
    "PseudoLabels",
    "__version__",
    "build_info",
    "dbscan",
    "estimate_memory",
    "invariant_expansion",
    "jaccard_distance",
    "k_reciprocal_encoding",
    "knn_graph",
    "pseudo_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _COMPILED:
        raise AttributeError(f"module 'dmic' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_COMPILED[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
