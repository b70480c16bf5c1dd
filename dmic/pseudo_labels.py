"""From features and ids to pseudo labels: the five ops in a row, as a function and as a scikit-learn estimator."""

from __future__ import annotations

import difflib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import directions
from . import process_group as ranks
from ._arrays import ANY_IDS, check_device, dtype_name, like, to_integer, to_tensor
from .block_memory import GPU_SCRATCH_BYTES, MemoryEstimate, Search, block_memory, block_sizes, format_bytes, give_back
from .constants import NOISE
from .csr import Csr
from .feature_rows import FeatureRows
from .out_of_memory import is_out_of_memory

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ID_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)

NOISE_EPS = 0.8  # the distance from which on pairs of unstructured features are common
PAIR_BYTES = 24  # one pair while it is found and laid out in both directions
GPU_PAIR_BYTES = 44  # the same, and as sort keys before it is taken apart
ENTRY_BYTES = 8  # one stored entry of a Csr: int32 column, int32 or float32 value

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False, repr=False)
class PseudoLabels:
    """What a clustering found.

    Attributes:
        labels: int64 [N]; clusters are numbered from 0 by their smallest core sample, NOISE (-1) is outside them all.
        core_mask: bool [N]; samples with at least min_samples samples, themselves included, within eps.
        num_clusters: number of clusters.
        num_outliers: number of samples labelled NOISE.
        seconds: wall time of every stage that ran, in order.
        num_redone: samples whose neighbours the tensor cores of a GPU could not be proved to have found all, and that
            were compared with every sample exactly. What the search cost, not what it is worth: the result is exact.
    """

    labels: Any
    core_mask: Any
    num_clusters: int
    num_outliers: int
    seconds: dict[str, float]
    num_redone: int = 0

    def cluster_sizes(self) -> Any:
        """Number of samples in each cluster, int64 [num_clusters], outliers left out."""
        labels = to_tensor(self.labels, "PseudoLabels: labels")
        return like(self.labels)(torch.bincount(labels[labels != NOISE]))

    def __repr__(self) -> str:
        counts = f"num_samples={len(self.labels)}, num_clusters={self.num_clusters}, num_outliers={self.num_outliers}"
        return f"PseudoLabels({counts}, seconds={sum(self.seconds.values()):.3f})"


def estimate_memory(
    num_samples: int,
    num_features: int,
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    copy_features: bool = False,
    device: Any = "cpu",
) -> MemoryEstimate:
    """Memory that `pseudo_labels` needs beyond the features.

    How many entries the encodings and distances hold depends on the data. The figures assumed here, per row and at
    most N, are generous for features of similar norms, with identities or without: 2 k1 for an encoding; k1 k2 after
    expansion; for the distances k1 / s, where s = 2 (1 - eps) / (2 - eps) is the overlap that eps stands for. Above
    eps = 0.8, where noise-like features overlap by as much, all rows that share a column are assumed to be that near.
    A gallery with hubs, samples that are the nearest of very many, can have more pairs within eps than that; the
    `max_memory` of `pseudo_labels` is kept there too, by an error when they are counted.

    Args:
        num_samples: N.
        num_features: d.
        k1, k2, eps: as in `pseudo_labels`.
        copy_features: whether the features must first be copied, because they are not contiguous float32.
        device: where the features are; a GPU keeps other scratch memory than the threads of a CPU do.
    """
    k1, k2, eps = check_search("estimate_memory", k1, k2, eps)
    n, on_gpu = num_samples, torch.device(device).type == "cuda"
    features = 4 * n * num_features if copy_features or (on_gpu and num_features % 8) else 0
    neighbors = 4 * n * k1
    candidates = n * (ENTRY_BYTES * (2 * k1 + 32) + 40)
    searched = directions.scratch_bytes(n, num_features)
    if searched:
        candidates += 4 * n * (directions.most(num_features) + 1 + k1)
    workers = torch.get_num_threads() * (7_000_000 + 2_000 * num_features + 12 * n)
    if on_gpu:
        candidates = n * (ENTRY_BYTES * max(256, 3 * k1 + 64) + 2 * num_features + 64)
        workers, searched = GPU_SCRATCH_BYTES + 16 * n, 0
    encoding_length = 2 * k1
    expanded_length = encoding_length if k2 == 1 else max(encoding_length, k1 * k2)
    overlap = 2 * (1 - eps) / (2 - eps)
    distance_length = math.ceil(k1 / overlap) if eps <= NOISE_EPS else expanded_length**2
    lengths = (encoding_length, expanded_length, distance_length)
    encoding, expanded, distance = (ENTRY_BYTES * n * min(n, length) for length in lengths)
    stages = {
        "knn_graph": features + max(2 * neighbors + candidates, searched) + workers,
        # on a CPU the sets, a dot product for each of their members, and the rows before and after they are laid out
        "k_reciprocal_encoding": features + neighbors + (6 if on_gpu else 7) * encoding // 2 + workers,
        "invariant_expansion": neighbors + encoding + 2 * expanded + workers,
        # rows, inverted lists, and what the allocator still keeps of the stage before
        "jaccard_distance": 3 * expanded + (3 if on_gpu else 2) * distance + workers,
        "dbscan": distance + 32 * n,
    }
    if k2 == 1:
        del stages["invariant_expansion"]
    return MemoryEstimate(stages)


def pseudo_labels(
    features: Any = None,
    *,
    camera_ids: Any = None,
    modality_ids: Any = None,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    max_memory: int | None = None,
    progress: Progress | None = None,
    neighbor_idx: Any = None,
    encoding: Csr | None = None,
    distance: Csr | None = None,
    process_group: Any = None,
    folder: str | Path | None = None,
    device: Any = None,
) -> PseudoLabels:
    """Cluster a gallery: exact neighbours, k-reciprocal encoding, invariant expansion, Jaccard distance, DBSCAN.

    Without ids this is the classic pipeline; with camera ids the expansion is camera-invariant, with modality ids
    modality-invariant, with both modality-camera-invariant (MIE of DMIC, arXiv 2412.08231). Memory is linear in N.

    Each step accepts the result of the step before, which is then not computed; what a given step makes needless
    need not be given, so that `features` can be None once the neighbours and the encoding are known.

    Args:
        features: [N, d] float32, float16, bfloat16 or float64, on the CPU or a GPU; norms are arbitrary. Or the path of
            a `.npy` or `.safetensors` file (key `features`), which is read block by block and need not fit in memory.
        camera_ids: [N] integers >= 0, or None for one camera.
        modality_ids: [N] integers >= 0, or None for one modality. Any number of modalities, in any numbering.
        k1: size of the neighbour lists, the sample itself included; in [1, N].
        k2: how many of them the expansion averages; in [1, k1]; 1 leaves it out, and the ids without effect.
        eps: DBSCAN radius, a Jaccard distance in [0, 1].
        min_samples: neighbours within eps, the sample itself included, that make a core sample.
        max_memory: bytes beyond the features, of the GPU if that computes. If `estimate_memory` says more, the gallery
            is searched and joined in blocks, as large as fit; if not even small ones do, nothing is computed and
            ValueError is raised. If there are more pairs within eps than it allows, ValueError is raised while they are
            counted.
        progress: called as progress(stage, done, total), a few times a second, from the calling thread.
        neighbor_idx: [N, >= k1] integers in [0, N), nearest first, distinct in a row: the result of `knn_graph`, or a
            search of your own. Only the first k1 columns count.
        encoding: the result of `k_reciprocal_encoding`, not expanded yet. Neighbours are still needed unless k2 is 1.
        distance: the result of `jaccard_distance` with a max_distance of at least eps. Nothing else is needed.
        process_group: of torch.distributed, whose ranks all call this. Each gives its own rows of the gallery, features
            and ids, in the order of ranks, and gets the labels of these rows; numbers of clusters and outliers are of
            the whole. From a path each takes its share, and ids are then those of all rows. The labels are those of one
            process. It must send tensors on the CPU too: on GPUs, make it by init_process_group("cpu:gloo,cuda:nccl").
        folder: where neighbours, encoding and distances are kept as they are finished, and taken from if they are
            there, also by another number of ranks or for other settings, as far as these leave them as they are.
        device: where to compute, if not where the features are, block by block: features in a file, or in memory and
            too many for a GPU. None is where they are, and the CPU for a file.

    Returns:
        PseudoLabels with arrays of the kind of `features`, on its device (else of what is given in its place); of a
        file, tensors where they were computed.

    Raises:
        ValueError: in one line, before any work: an argument is out of range, has the wrong shape or dtype, holds NaN
            or infinity, or would be without effect, or the memory estimate exceeds `max_memory`.
        TypeError: an argument is not an array.
        MemoryError, torch.OutOfMemoryError: the memory of the machine or the GPU ran out; says how much is needed.
        ConnectionError: another rank was lost; says which, and in which stage.
    """
    name, settings = "pseudo_labels", (k1, k2, eps, min_samples)
    rows = features if isinstance(features, FeatureRows) else None
    from_file = isinstance(features, str | Path) or (rows is not None and not rows.in_memory)
    if from_file or any(given is not None for given in (process_group, folder, device)):
        stages = {"neighbor_idx": neighbor_idx, "encoding": encoding, "distance": distance}
        earlier = [argument for argument, given in stages.items() if given is not None]
        ids = camera_ids, modality_ids
        return _by_blocks(name, features, *ids, settings, process_group, folder, max_memory, progress, device, earlier)
    search = _check_settings(name, *settings)
    k1, k2, eps, min_samples = search.k1, search.k2, search.eps, search.min_samples
    with _explained_out_of_memory(name, None, k1, k2, eps):
        inputs = check_inputs(name, features, camera_ids, modality_ids, neighbor_idx, encoding, distance, k1, k2)
    if _needs_blocks(name, inputs, search, max_memory):
        del inputs  # ids that were copied to the device are once more
        return _by_blocks(name, features, camera_ids, modality_ids, settings, None, None, max_memory, progress)
    given = features if rows is None else rows.source
    back = like(next(array for array in (given, _values(distance), _values(encoding)) if array is not None))
    del features, rows, given, neighbor_idx, encoding, distance

    seconds: dict[str, float] = {}
    if inputs.num_samples == 0:
        labels, core_mask = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        return PseudoLabels(back(labels.to(inputs.device)), back(core_mask.to(inputs.device)), 0, 0, seconds)
    with _explained_out_of_memory(name, inputs, k1, k2, eps):
        distance, num_redone = sparse_distance(inputs, k1, k2, eps, progress, seconds, max_memory)
        with _timed(seconds, "dbscan", inputs.device):
            labels, core_mask = _ops().dbscan(distance, eps, min_samples, progress=progress)
        num_clusters, num_outliers = int(labels.max()) + 1, int((labels == NOISE).sum())
        return PseudoLabels(back(labels), back(core_mask), num_clusters, num_outliers, seconds, num_redone)


class JaccardDBSCAN:
    """`pseudo_labels` with the conventions of scikit-learn, which is not needed for it.

    Parameters are those of `pseudo_labels` and are checked by `fit`, as scikit-learn has it.

    Attributes (after `fit`):
        labels_: int64 [N]; -1 is noise.
        core_sample_indices_: int64 [number of core samples], ascending.
        components_: the features of the core samples, [number of core samples, d]; read from X when asked for.
        n_features_in_: d, or None after a fit without features.
        pseudo_labels_: the whole PseudoLabels, with the seconds of each stage.

    >>> import numpy as np
    >>> points = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0) + np.linspace(0, 0.1, 10)[:, None]
    >>> JaccardDBSCAN(k1=5, k2=2, eps=0.5).fit_predict(points)
    array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        k1: int = 30,
        k2: int = 6,
        eps: float = 0.6,
        min_samples: int = 4,
        max_memory: int | None = None,
        progress: Progress | None = None,
    ):
        self.k1 = k1
        self.k2 = k2
        self.eps = eps
        self.min_samples = min_samples
        self.max_memory = max_memory
        self.progress = progress

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        camera_ids: Any = None,
        modality_ids: Any = None,
        neighbor_idx: Any = None,
        encoding: Csr | None = None,
        distance: Csr | None = None,
    ) -> JaccardDBSCAN:
        """Cluster the features X [N, d]; y is there for scikit-learn's pipelines and ignored. See `pseudo_labels`."""
        result = pseudo_labels(
            X,
            camera_ids=camera_ids,
            modality_ids=modality_ids,
            neighbor_idx=neighbor_idx,
            encoding=encoding,
            distance=distance,
            **self.get_params(),
        )
        self._X = X
        self.n_features_in_ = None if X is None else to_tensor(X, "JaccardDBSCAN: X").shape[1]
        self.pseudo_labels_ = result
        self.labels_ = result.labels
        core_mask = to_tensor(result.core_mask, "JaccardDBSCAN: core_mask")
        self.core_sample_indices_ = like(result.core_mask)(core_mask.nonzero().flatten())
        return self

    def fit_predict(self, X: Any, y: Any = None, **inputs: Any) -> Any:
        """`fit`, and return `labels_`."""
        return self.fit(X, y, **inputs).labels_

    @property
    def components_(self) -> Any:
        if getattr(self, "_X", None) is None:
            raise AttributeError("JaccardDBSCAN: components_ exists after a fit with features")
        core_idx = to_tensor(self.core_sample_indices_, "JaccardDBSCAN: core_sample_indices_")
        return like(self._X)(to_tensor(self._X, "JaccardDBSCAN: X")[core_idx])

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters by name; `deep` is there for scikit-learn and changes nothing."""
        return {name: getattr(self, name) for name in _defaults(type(self))}

    def set_params(self, **params: Any) -> JaccardDBSCAN:
        """Change parameters by name. Raises ValueError for an unknown one and names the nearest known one."""
        known = self.get_params()
        for name in params:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"JaccardDBSCAN: there is no parameter {name!r}, did you mean {near!r}?")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = _defaults(type(self))
        changed = (f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name])
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass
class Inputs:
    """Checked inputs of the clustering, as tensors on one device; a stage clears what no later stage reads."""

    num_samples: int
    device: torch.device
    features: torch.Tensor | None
    camera_ids: torch.Tensor | None
    modality_ids: torch.Tensor | None
    neighbor_idx: torch.Tensor | None
    encoding: Csr | None
    distance: Csr | None


def check_search(name: str, k1: Any, k2: Any, eps: Any) -> tuple[int, int, float]:
    """The parameters of the distance as plain numbers; ValueError, in the name of the caller, if out of range."""
    k1, k2 = to_integer(k1, f"{name}: k1"), to_integer(k2, f"{name}: k2")
    if k1 < 1:
        raise ValueError(f"{name}: k1 must be in [1, N], got k1={k1}")
    if not 1 <= k2 <= k1:
        raise ValueError(f"{name}: k2 must be in [1, k1], got k2={k2} with k1={k1}")
    try:
        radius = float(eps)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: eps must be a number in [0, 1], got {eps!r}") from None
    if not 0 <= radius <= 1:
        raise ValueError(f"{name}: eps must be in [0, 1], got {eps}")
    return k1, k2, radius


def _check_settings(name: str, k1: Any, k2: Any, eps: Any, min_samples: Any) -> Search:
    k1, k2, eps = check_search(name, k1, k2, eps)
    min_samples = to_integer(min_samples, f"{name}: min_samples")
    if min_samples < 1:
        raise ValueError(f"{name}: min_samples must be at least 1, got {min_samples}")
    return Search(k1, k2, eps, min_samples)


def check_inputs(
    name: str,
    features: Any,
    camera_ids: Any,
    modality_ids: Any,
    neighbor_idx: Any,
    encoding: Csr | None,
    distance: Csr | None,
    k1: int,
    k2: int,
) -> Inputs:
    """Everything that can be wrong with the arrays, found before any work; see `pseudo_labels`."""
    if distance is not None:
        earlier = {"camera_ids": camera_ids, "modality_ids": modality_ids, "neighbor_idx": neighbor_idx}
        for argument, given in {**earlier, "encoding": encoding}.items():
            if given is not None:
                raise ValueError(f"{name}: {argument} has no effect when distance is given; leave one of them out")
        return _check_distance(name, features, distance)

    tensor = None if features is None else _check_features(name, features)
    rows = None if encoding is None else _check_csr(name, "encoding", encoding, torch.int32)
    if tensor is None and rows is None:
        raise ValueError(f"{name}: features are needed to compute the encoding, got None")
    if tensor is None and neighbor_idx is None and k2 > 1:
        raise ValueError(f"{name}: features or neighbor_idx are needed for an expansion with k2={k2}, got None")
    n, device = (rows.num_rows, rows.values.device) if tensor is None else (len(tensor), tensor.device)
    if rows is not None and rows.num_rows != n:
        raise ValueError(f"{name}: encoding must have one row per sample, got {rows.num_rows} rows with N={n}")
    if n and k1 > n:
        raise ValueError(f"{name}: k1 must be in [1, N], got k1={k1} with N={n}")
    return Inputs(
        num_samples=n,
        device=device,
        features=tensor,
        camera_ids=_check_ids(name, "camera_ids", camera_ids, n, device),
        modality_ids=_check_ids(name, "modality_ids", modality_ids, n, device),
        neighbor_idx=None if neighbor_idx is None else _check_neighbors(name, neighbor_idx, n, k1, device),
        encoding=None if rows is None else rows.to(device),
        distance=None,
    )


def sparse_distance(
    inputs: Inputs,
    k1: int,
    k2: int,
    max_distance: float,
    progress: Progress | None,
    seconds: dict[str, float],
    max_memory: int | None = None,
) -> tuple[Csr, int]:
    """The Jaccard distances up to `max_distance`, and the rows of the search that were redone. Takes its inputs apart:
    what is used up is freed at once."""
    num_redone = 0
    if inputs.distance is not None:
        return inputs.distance, num_redone
    ops, device = _ops(), inputs.device
    features, encoding, neighbor_idx = inputs.features, inputs.encoding, inputs.neighbor_idx
    inputs.features = inputs.encoding = inputs.neighbor_idx = None
    if features is not None:
        features = features.to(torch.float32).contiguous()
    if neighbor_idx is None and (encoding is None or k2 > 1):
        with _timed(seconds, "knn_graph", device):
            neighbor_idx, num_redone = ops.knn_graph_and_redone(features, k1, progress=progress)[::2]
    if encoding is None:
        k1_half = int(np.around(k1 / 2))  # half to even, as published
        with _timed(seconds, "k_reciprocal_encoding", device):
            encoding = ops.k_reciprocal_encoding(features, neighbor_idx, k1_half, progress=progress)
    del features
    if k2 > 1:
        with _timed(seconds, "invariant_expansion", device):
            encoding = ops.invariant_expansion(
                encoding, neighbor_idx, k2, inputs.camera_ids, inputs.modality_ids, progress=progress
            )
    del neighbor_idx
    max_pairs = None
    if max_memory is not None:  # what is left beside the rows, their inverted lists and the workers, for pairs
        on_gpu = device.type == "cuda"
        workers = GPU_SCRATCH_BYTES if on_gpu else torch.get_num_threads() * 20 * inputs.num_samples
        held = 2 * encoding.nbytes + 16 * inputs.num_samples + workers
        max_pairs = max(0, max_memory - held) // (GPU_PAIR_BYTES if on_gpu else PAIR_BYTES)
    with _timed(seconds, "jaccard_distance", device):
        distance = ops.jaccard_distance(encoding, max_distance, max_pairs=max_pairs, progress=progress)
    return distance, num_redone


def search_two_sides(
    features: torch.Tensor,
    sides: tuple[torch.Tensor, torch.Tensor],
    k1: int,
    k1_both: int,
    k2: int,
    eps: float,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `neighbor_idx` of three clusterings, of two sides alone and of both, from one search.

    See `blockwise.knn_graph_of_two`; k1_both, k2 and eps are those of both, and errors are those of `pseudo_labels`.
    """
    from .blockwise import knn_graph_of_two  # loads the compiled ops

    name = "pseudo_labels"
    with _explained_out_of_memory(name, None, k1_both, k2, eps):
        inputs = check_inputs(name, features, None, None, None, None, None, k1_both, k2)
    needed = two_sides_memory(*features.shape, k1, k1_both, features.device)
    with _explained_out_of_memory(name, inputs, k1_both, k2, eps, needed):
        return knn_graph_of_two(features, sides, k1, k1_both, progress)


def two_sides_memory(num_samples: int, num_features: int, k1: int, k1_both: int, device: Any = "cpu") -> MemoryEstimate:
    """What `search_two_sides` needs beyond the features, which it copies unless one side follows the other."""
    longest = min(num_samples, max(k1, k1_both))
    searched = estimate_memory(num_samples, num_features, k1=longest, k2=1, copy_features=True, device=device)
    lists = num_samples * (4 * k1 + 8 * k1_both)  # of each side, and so far of both
    return MemoryEstimate({"knn_graph": searched.stages["knn_graph"] + lists})


def needs_copy(features: torch.Tensor) -> bool:
    """Whether the ops, which read contiguous float32, need a copy of the features."""
    return features.dtype != torch.float32 or not features.is_contiguous()


def _estimate(inputs: Inputs, k1: int, k2: int, eps: float) -> MemoryEstimate:
    features = inputs.features
    copied = features is not None and needs_copy(features)
    num_features = 0 if features is None else features.shape[1]
    return estimate_memory(
        inputs.num_samples, num_features, k1=k1, k2=k2, eps=eps, copy_features=copied, device=inputs.device
    )


def _needs_blocks(name: str, inputs: Inputs, search: Search, max_memory: int | None) -> bool:
    """Whether the whole at once needs more than max_memory, and blocks do not; ValueError if they do too."""
    if max_memory is None:
        return False
    max_memory = to_integer(max_memory, f"{name}: max_memory")
    if inputs.distance is not None:
        return False
    k1, k2, eps = search.k1, search.k2, search.eps
    estimate = _estimate(inputs, k1, k2, eps)
    if estimate.peak_bytes <= max_memory:
        return False
    n, d = inputs.num_samples, 0 if inputs.features is None else inputs.features.shape[1]
    alone = inputs.features is not None and inputs.neighbor_idx is None and inputs.encoding is None
    least = min(max(block_memory(n, n, 1, d, search, rows, device=inputs.device).values()) for rows in block_sizes(n))
    if alone and least <= max_memory:
        return True
    raise ValueError(
        f"{name}: about {estimate} is needed beyond the features, max_memory allows {format_bytes(max_memory)}; "
        f"raise it or lower k1={k1}, k2={k2} or eps={eps}"
    )


def _by_blocks(
    name, features, camera_ids, modality_ids, settings, group, folder, max_memory, progress, device=None, earlier=()
) -> PseudoLabels:
    """The same of a gallery in a file, or of the rows of this rank, which may be FeatureRows whose name and first row
    are those that errors say; what is wrong on one rank is an error on all."""
    from . import distributed  # loads the compiled ops
    from .stage_files import StageFiles

    ranks.check_backend(name, group)  # a group that cannot send is of no use to say so
    watch = ranks.Watch(group)
    with watch.guard():
        watch.enter("the arguments")
        problem, files, marks = None, None, {"folder": folder is not None}
        try:
            search = _check_settings(name, *settings)
            with _explained_out_of_memory(name, None, search.k1, search.k2, search.eps):
                if earlier:
                    raise ValueError(
                        f"{name}: {earlier[0]} cannot be given with a path, a process_group, a folder or a device"
                    )
                if device is not None:
                    device = check_device(f"{name}: device", device)
                if folder is not None:
                    if not isinstance(folder, str | PathLike):
                        raise TypeError(f"{name}: folder must be a path, got {folder!r}")
                    files = StageFiles(Path(folder))
                if features is None:
                    raise ValueError(f"{name}: features are needed, got None")
                rows = FeatureRows.of(name, features, device)
                n = rows.shape[0]
                camera = _check_ids(name, "camera_ids", camera_ids, n, rows.device)
                modality = _check_ids(name, "modality_ids", modality_ids, n, rows.device)
                marks["file of features"] = not rows.in_memory
                if not rows.in_memory:
                    if group is not None:
                        marks |= distributed.gallery_marks(rows, camera_ids=camera, modality_ids=modality)
                    begin, end = ranks.share(n, group)
                    rows = rows.part(begin, end)
                    camera, modality = (ids if ids is None else ids[begin:end] for ids in (camera, modality))
                max_memory = None if max_memory is None else to_integer(max_memory, f"{name}: max_memory")
        except (ValueError, TypeError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            if group is None:
                raise
            problem = str(error)
        ranks.agree(name, marks, group, problem)
    if rows.in_memory:
        where, back = rows.source.device, like(rows.source if isinstance(features, FeatureRows) else features)
    else:
        where, back = rows.device, like(torch.empty(0))
    part = distributed.cluster(name, rows, camera, modality, search, group, max_memory, progress, files)
    labels, core_mask = (back(found.to(where)) for found in (part.labels, part.core_mask))
    return PseudoLabels(labels, core_mask, part.num_clusters, part.num_outliers, part.seconds)


@contextmanager
def _explained_out_of_memory(
    name: str, inputs: Inputs | None, k1: int, k2: int, eps: float, estimate: MemoryEstimate | None = None
) -> Iterator[None]:
    """Says how much memory is needed, by default for a clustering, and how much there is, where memory ran out; None:
    inputs are not known yet."""
    needed = None if inputs is None else (estimate or _estimate(inputs, k1, k2, eps), inputs.device)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if needed is None:
            kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else MemoryError
            raise kind(f"{name}: out of memory; the arguments were being checked") from error
        estimate, device = needed
        on_gpu = device.type == "cuda"
        kind = torch.OutOfMemoryError if on_gpu else MemoryError
        free = f", {format_bytes(torch.cuda.mem_get_info(device)[0])} are free on {device}" if on_gpu else ""
        advice = "move the features to the CPU, or " if on_gpu else ""
        raise kind(
            f"{name}: out of memory; about {estimate} is needed beyond the features{free}; "
            f"{advice}lower k1={k1}, k2={k2} or eps={eps}"
        ) from error


def _check_distance(name: str, features: Any, distance: Csr) -> Inputs:
    rows = _check_csr(name, "distance", distance, torch.float32)
    if features is not None:
        shape = to_tensor(features, f"{name}: features").shape
        if len(shape) != 2 or shape[0] != rows.num_rows:
            got = f"{rows.num_rows} rows with features of shape {tuple(shape)}"
            raise ValueError(f"{name}: distance must have one row per sample, got {got}")
    if rows.nnz and not bool((rows.values >= 0).all()):
        raise ValueError(f"{name}: distance must not hold negative values or NaN, got {float(rows.values.min())}")
    return Inputs(rows.num_rows, rows.values.device, None, None, None, None, None, rows)


def _check_features(name: str, features: Any) -> torch.Tensor:
    if isinstance(features, FeatureRows):
        name, features = features.name, features.source
    tensor = to_tensor(features, f"{name}: features")
    if tensor.dim() != 2:
        raise ValueError(f"{name}: features must have shape [N, d], got {tuple(tensor.shape)}")
    if tensor.dtype not in FEATURE_DTYPES:
        allowed = ", ".join(dtype_name(t) for t in FEATURE_DTYPES)
        raise ValueError(f"{name}: features must be one of {allowed}, got {dtype_name(tensor.dtype)}")
    if tensor.numel():
        low, high = (float(bound) for bound in torch.aminmax(tensor))  # NaN wins both; no temporary the size of it
        largest = torch.finfo(torch.float32).max
        if not (math.isfinite(low) and math.isfinite(high)):
            row = next(i for i, values in enumerate(tensor) if not bool(values.isfinite().all()))
            value = float(tensor[row][~tensor[row].isfinite()][0])
            raise ValueError(f"{name}: features must be finite, got {value} in row {row}")
        if max(-low, high) > largest:
            value = low if -low > high else high
            row = next(i for i, values in enumerate(tensor) if bool((values == value).any()))
            raise ValueError(f"{name}: features must fit float32, got {value} in row {row}")
    return tensor


def _check_ids(name: str, argument: str, ids: Any, n: int, device: torch.device) -> torch.Tensor | None:
    if ids is None:
        return None
    tensor = to_tensor(ids, f"{name}: {argument}", f"integers ({ANY_IDS})")
    if tensor.dim() != 1 or len(tensor) != n:
        raise ValueError(f"{name}: {argument} must have shape [N], got {tuple(tensor.shape)} with N={n}")
    if n and tensor.dtype not in ID_DTYPES:
        raise ValueError(f"{name}: {argument} must be integers, got {dtype_name(tensor.dtype)} ({ANY_IDS})")
    signed = tensor.to(torch.int64)
    lowest = int(signed.min()) if n else 0
    if lowest < 0:
        got = lowest + 2**64 if tensor.dtype == torch.uint64 else lowest
        raise ValueError(f"{name}: {argument} must be in [0, 2**63), got {got}")
    return signed.to(device)


def _check_neighbors(name: str, neighbor_idx: Any, n: int, k1: int, device: torch.device) -> torch.Tensor:
    tensor = to_tensor(neighbor_idx, f"{name}: neighbor_idx")
    if tensor.dim() != 2 or len(tensor) != n or (n and tensor.shape[1] < k1):
        got = f"{tuple(tensor.shape)} with N={n} and k1={k1}"
        raise ValueError(f"{name}: neighbor_idx must have shape [N, k1 or more], got {got}")
    if n and tensor.dtype not in ID_DTYPES:
        raise ValueError(f"{name}: neighbor_idx must be integers, got {dtype_name(tensor.dtype)}")
    tensor = tensor[:, :k1]
    if tensor.numel():
        low, high = (int(bound) for bound in torch.aminmax(tensor.to(torch.int64)))
        if low < 0 or high >= n:
            raise ValueError(f"{name}: neighbor_idx must be in [0, N), got {low if low < 0 else high} with N={n}")
    return tensor.to(device, torch.int32).contiguous()


def _check_csr(name: str, argument: str, rows: Any, dtype: torch.dtype) -> Csr:
    """A square Csr from outside, as tensors on its own device."""
    if not isinstance(rows, Csr):
        raise TypeError(f"{name}: {argument} must be a Csr, got {type(rows).__name__}")
    values = to_tensor(rows.validate(f"{name}: {argument}").values, f"{name}: {argument}")
    if rows.num_rows != rows.num_cols:
        raise ValueError(f"{name}: {argument} must be square, got shape {rows.shape}")
    if values.dtype != dtype:
        raise ValueError(f"{name}: {argument} must hold {dtype_name(dtype)} values, got {dtype_name(values.dtype)}")
    return rows.to(values.device)


def _values(rows: Csr | None) -> Any:
    return None if rows is None else rows.values


def _defaults(estimator: type) -> dict[str, Any]:
    parameters = inspect.signature(estimator.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _ops() -> Any:
    """The compiled ops, loaded on first use: `dmic doctor` must run when the library does not load."""
    from . import ops

    return ops


@contextmanager
def _timed(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    give_back()
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = time.perf_counter() - start
