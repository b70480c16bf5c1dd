"""Neighbours that a library found without comparing all: what they cost in labels, against the exact search.

    python -m benchmarks.approximate --num-samples 100000 --difficulties easy hard

Lists go in by `pseudo_labels(..., neighbor_idx=)`. Everything runs on one thread, and seconds are those of the
processor. Rows of which an index finds fewer than k1 are searched again with twice the effort, as the lists must be
full; a sample always leads its own list.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dmic
from dmic import ops

from . import measuring
from .scale import quality
from .sizes import generate_gallery

RESULTS = Path(__file__).parent / "results" / "approximate.json"
NUM_PROBES = (1, 4, 16, 64)
EFFORTS = (16, 64, 128)
LINKS = 32  # of a row in the graph of HNSW

Search = Callable[[np.ndarray, int], np.ndarray]  # (rows [n, d], effort) -> indices [n, k1], -1 where there are none


def indices(features: np.ndarray, k1: int) -> Iterator[tuple[str, float, Search, tuple[int, ...]]]:
    """Name, seconds to build, search and efforts of every index."""
    dim = features.shape[1]
    start = time.process_time()
    lists = 1 << round(np.log2(4 * len(features) ** 0.5))
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    inverted.train(features)
    inverted.add(features)

    def probe(rows: np.ndarray, effort: int) -> np.ndarray:
        inverted.nprobe = effort
        return inverted.search(rows, k1)[1]

    yield f"IVF, {lists} lists", time.process_time() - start, probe, NUM_PROBES
    start = time.process_time()
    graph = faiss.IndexHNSWFlat(dim, LINKS)
    graph.add(features)

    def walk(rows: np.ndarray, effort: int) -> np.ndarray:
        graph.hnsw.efSearch = effort
        return graph.search(rows, k1)[1]

    yield f"HNSW, {LINKS} links", time.process_time() - start, walk, EFFORTS


def full_lists(features: np.ndarray, search: Search, effort: int) -> tuple[np.ndarray, int]:
    """Lists as `pseudo_labels` takes them, int64 [N, k1], and how many rows were searched again."""
    found = search(features, effort)
    short = np.flatnonzero((found < 0).any(1))
    again = len(short)
    while len(short):
        effort *= 2
        found[short] = search(features[short], effort)
        short = short[(found[short] < 0).any(1)]
    return self_first(found), again


def self_first(found: np.ndarray) -> np.ndarray:
    """The sample leads its list, in the place of the farthest where it was not found."""
    own = np.arange(len(found))[:, None]
    place = np.where((found == own).any(1), (found == own).argmax(1), found.shape[1] - 1)
    order = np.arange(found.shape[1]) - (np.arange(found.shape[1]) <= place[:, None])
    return np.concatenate([own, np.take_along_axis(found, order[:, 1:], 1)], 1)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact lists that was found, the sample itself left out."""
    hits = 0
    for begin in range(0, len(exact), 4096):
        rows = slice(begin, begin + 4096)
        hits += int((found[rows, 1:, None] == exact[rows, None, 1:]).sum())
    return hits / exact[:, 1:].size


def measure(num_samples: int, dim: int, difficulty: str, images_per_identity: int, k1: int, k2: int) -> list[dict]:
    gallery = generate_gallery(num_samples, dim, difficulty, images_per_identity=images_per_identity)
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    case = {"num_samples": num_samples, "dim": dim, "k1": k1, "k2": k2, "difficulty": difficulty}
    case["images_per_identity"] = images_per_identity

    def clustered(neighbor_idx: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        start = time.process_time()
        found = dmic.pseudo_labels(gallery.features, **ids, k1=k1, k2=k2, neighbor_idx=neighbor_idx)
        return found.labels, {"after_search_seconds": time.process_time() - start}

    start = time.process_time()
    exact = np.asarray(ops.knn_graph(gallery.features, k1)[0])
    seconds = time.process_time() - start
    want, after = clustered(exact)
    about = {"source": "exact", "effort": None, "build_seconds": 0.0, "search_seconds": seconds, "recall": 1.0}
    rows = [{**case, **about, **after, "agreement": 1.0, "differing_samples": 0, **quality(want, gallery.person_ids)}]
    for source, build, search, efforts in indices(gallery.features, k1):
        for effort in efforts:
            start = time.process_time()
            lists, again = full_lists(gallery.features, search, effort)
            seconds = time.process_time() - start
            labels, after = clustered(lists)
            agreement = compare(labels, want)
            about = {"source": source, "effort": effort, "build_seconds": build, "search_seconds": seconds}
            about |= {"searched_again": again, "recall": recall(lists, exact)}
            rows.append({**case, **about, **after, **agreement, **quality(labels, gallery.person_ids)})
    return rows


def compare(labels: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """Adjusted Rand index against the exact labels, where every outlier is a cluster of its own; and how many samples
    are in another cluster than that which has most of theirs."""
    from sklearn.metrics import adjusted_rand_score

    single = [np.where(part < 0, len(part) + np.arange(len(part)), part) for part in (labels, want)]
    pairs, counts = np.unique(np.stack(single), axis=1, return_counts=True)
    order = np.lexsort((-counts, pairs[1]))
    first = np.unique(pairs[1][order], return_index=True)[1]
    return {
        "agreement": float(adjusted_rand_score(single[1], single[0])),
        "differing_samples": int(len(labels) - counts[order][first].sum()),
    }


def show(rows: list[dict]) -> None:
    names = ("difficulty", "source", "effort", "build_seconds", "search_seconds", "after_search_seconds", "recall")
    names += ("agreement", "differing_samples", "clusters", "outliers", "purity", "adjusted_rand_index")
    table = Table(*names)
    for row in rows:
        table.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names))
    Console(width=220).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--difficulties", nargs="+", default=["easy", "hard"])
    parser.add_argument("--images-per-identity", type=int, default=10)
    parser.add_argument("--k1", type=int, default=30)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    case = (options.images_per_identity, options.k1, options.k2)
    command = f"python -m benchmarks.approximate --num-samples {options.num_samples} --dim {options.dim}"
    command += f" --difficulties {' '.join(options.difficulties)}"
    about = {"command": command, "commit": measuring.commit(), "machine": measuring.machine()}
    about["versions"] = measuring.versions()
    rows = []
    for difficulty in options.difficulties:
        rows += measure(options.num_samples, options.dim, difficulty, *case)
        show(rows)
    options.results.write_text(json.dumps({**about, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
