"""Pseudo labels of galleries larger than memory, and of ranks that hold a part each: around the stages of `blockwise`.

What is checked before the work, how large blocks may be, what is kept of finished stages, and who is named when a rank
is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import blockwise, process_group
from ._version import __version__
from .block_memory import MIN_BLOCK_ROWS, Search, choose_block_rows, give_back, most_pairs
from .blockwise import Ring
from .feature_rows import FeatureRows
from .out_of_memory import is_out_of_memory
from .process_group import Group, Watch, agree, digest
from .stage_files import StageFiles

Progress = Callable[[str, int, int], None]
MARKED_ROWS = 64  # by which ranks notice that their files differ
MIX = 0x5851F42D4C957F2D  # an odd number without a pattern in its bits


@dataclass(frozen=True)
class Part:
    """What a clustering found for the rows of this rank; see `PseudoLabels`."""

    labels: torch.Tensor
    core_mask: torch.Tensor
    num_clusters: int
    num_outliers: int
    seconds: dict[str, float]


def cluster(
    name: str,
    features: FeatureRows,
    camera_ids: torch.Tensor | None,
    modality_ids: torch.Tensor | None,
    search: Search,
    group: Group = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
    files: StageFiles | None = None,
) -> Part:
    """Labels of the rows of this rank.

    Args:
        name: of the caller, for errors.
        features: the rows of this rank [n, d]; the gallery is that of all ranks in their order.
        camera_ids, modality_ids: int64 [n] of the same rows, or None on every rank.
        search: the parameters, the same on every rank.
        group: the ranks.
        max_memory: bytes that this rank may use beyond the features, of its GPU if it computes on one.
        progress: called as in `pseudo_labels`.
        files: where finished stages are kept, or None.

    Raises:
        ValueError: on every rank, before any work, if one of them has bad input or another has other settings.
        MemoryError: the memory of the machine or the GPU ran out; says in which stage.
        ConnectionError: another rank was lost; says which, and what it was doing.
    """
    watch = Watch(group)
    with watch.guard():
        try:
            return _cluster(watch, name, features, camera_ids, modality_ids, search, group, max_memory, progress, files)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"{name}: out of memory in {watch.phase}; give a lower max_memory, with which blocks are smaller, "
                f"use more ranks, or lower k1={search.k1} or k2={search.k2}"
            ) from error


def _cluster(watch, name, features, camera_ids, modality_ids, search, group, max_memory, progress, files) -> Part:
    num_own, num_features = features.shape
    agree(name, {
        "version of dmic": __version__, "features": num_features, "device": features.device.type,
        "camera_ids": camera_ids is not None, "modality_ids": modality_ids is not None, **vars(search),
    }, group)  # fmt: skip
    counts = process_group.all_gather_rows(torch.tensor([num_own]), group)
    n = int(counts.sum())
    problem = None
    try:
        if n and search.k1 > n:
            raise ValueError(f"{name}: k1 must be in [1, N], got k1={search.k1} with N={n}")
        case = n, int(counts.max()), len(counts), num_features, search
        block_rows = choose_block_rows(name, *case, max_memory, features.device)
    except ValueError as error:
        problem, block_rows = str(error), MIN_BLOCK_ROWS
    agree(name, {}, group, problem)
    smallest = process_group.all_gather_rows(torch.tensor([block_rows]), group).min()  # the same cuts everywhere
    if n == 0:
        return Part(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool), 0, 0, {})
    ring = Ring.join(num_own, int(smallest), features.device, group)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(title: str) -> Iterator[None]:
        watch.enter(title)
        give_back()
        start = time.perf_counter()
        yield
        if features.device.type == "cuda":
            torch.cuda.synchronize(features.device)
        seconds[title] = time.perf_counter() - start

    if files is not None:
        with stage("the checksum of the features"):
            files.open(_fingerprint(features, camera_ids, modality_ids, ring), search, ring)
        watch.enter("the finished stages")
    distance = files.load_csr("jaccard_distance") if files else None
    if distance is None:
        encoding = files.load_csr("invariant_expansion") if files else None
        if encoding is None:
            lists = files.load("knn_graph") if files else None
            if lists is None:
                with stage("knn_graph"):
                    lists = blockwise.knn_graph(features, search.k1, ring, progress).idx
                if files:
                    files.save("knn_graph", lists)
            lists = process_group.all_gather_rows(lists, group)
            with stage("k_reciprocal_encoding"):
                k1_half = int(np.around(search.k1 / 2))  # half to even, as published
                encoding = blockwise.k_reciprocal_encoding(features, lists, k1_half, ring, progress)
            if search.k2 > 1:
                with stage("invariant_expansion"):
                    ids = [
                        None if given is None else process_group.all_gather_rows(given, group)
                        for given in (camera_ids, modality_ids)
                    ]
                    encoding = blockwise.invariant_expansion(encoding, lists, search.k2, *ids, ring, progress)
            del lists
            if files:
                files.save_csr("invariant_expansion", encoding)
        max_pairs = None
        if max_memory is not None:
            case = n, num_own, ring.size, ring.block_rows
            max_pairs = most_pairs(max_memory, encoding.nbytes, *case, features.device)
        with stage("jaccard_distance"):
            distance = blockwise.jaccard_distance(encoding, search.eps, ring, max_pairs, progress)
        del encoding
        if files:
            files.save_csr("jaccard_distance", distance)
    with stage("dbscan"):
        labels, core_mask, num_clusters = blockwise.dbscan(distance, search.eps, search.min_samples, ring, progress)
        outliers = process_group.all_gather_rows((labels < 0).sum()[None], group)
    return Part(labels, core_mask, num_clusters, int(outliers.sum()), seconds)


def gallery_marks(features: FeatureRows, **ids: torch.Tensor | None) -> dict[str, Any]:
    """What ranks that are given the same gallery must `agree` on: its shape and dtype, some rows, and all ids.

    Raises:
        ValueError: one of the rows cannot be read; see `FeatureRows.read`.
    """
    features, n = features.on_host(), features.shape[0]
    rows = [features.read(i, i + 1) for i in marked(n)]
    return {
        "number of samples": n,
        "dtype of features": str(features.dtype),
        "features, by a few rows": digest(torch.cat(rows)) if rows else None,
        **{name: None if given is None else digest(given) for name, given in ids.items()},
    }


def marked(n: int) -> list[int]:
    """The first of n rows, the last, and some between them."""
    return sorted({n * i // MARKED_ROWS for i in range(MARKED_ROWS)} | {n - 1}) if n else []


def _fingerprint(features: FeatureRows, camera_ids, modality_ids, ring: Ring) -> dict[str, Any]:
    """Of everything that a finished stage depends on beside settings: the same for any number of ranks."""
    totals = torch.zeros(1, 2, dtype=torch.int64)
    factors = torch.arange(1, features.shape[1] + 1) * MIX | 1
    for rows in ring.blocks(ring.own):
        begin, end = rows.begin - ring.own.begin, rows.end - ring.own.begin
        place = (torch.arange(rows.begin, rows.end) + 1) * 0x14057B7EF767814F | 1
        bits = features.on_host().read(begin, end).view(torch.int32)
        sums = torch.cat([(part * factors).sum(1) for part in bits.split(1024)])
        codes = torch.zeros_like(sums)
        for ids in (camera_ids, modality_ids):
            codes = (codes + (0 if ids is None else ids[begin:end].cpu() + 1)) * MIX
        totals += torch.stack([(place * (each ^ each >> 29)).sum() for each in (sums, codes)])
    totals = process_group.all_gather_rows(totals, ring.group).sum(0).tolist()
    found = {name: f"{total & (1 << 64) - 1:016x}" for name, total in zip(("features", "ids"), totals, strict=True)}
    return {**found, "num_samples": ring.num_samples, "num_features": features.shape[1]}
