"""`dmic cluster`: pseudo labels for a file of features."""

from __future__ import annotations

import argparse
import re
import zipfile
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import process_group
from .._arrays import ANY_IDS, dtype_name, to_tensor
from .._version import __version__
from ..block_memory import (
    LIBRARY_BYTES,
    RANK_LIBRARY_BYTES,
    MemoryEstimate,
    Search,
    block_memory,
    choose_block_rows,
    expected_memory,
    format_bytes,
    on_gpu,
)
from ..constants import NOISE
from ..feature_rows import OPENERS, FeatureRows
from ..npz import check_output, write_npz
from ..progress import show_progress
from ..pseudo_labels import PseudoLabels, check_search, estimate_memory, needs_copy, pseudo_labels
from . import common

INTEGERS = f"integers ({ANY_IDS})"
KEYS = {"features": "real numbers", "camera_ids": INTEGERS, "modality_ids": INTEGERS}  # and what they must hold
WORDS = {"camera_ids": ("camera", "cameras"), "modality_ids": ("modality", "modalities")}
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {unit[0]: size for unit, size in UNITS.items() if len(unit) == 2}
UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dmic cluster`."""
    parser.description = "Cluster the features in FILE and write labels, core_mask and the settings to OUT.npz."
    parser.add_argument("file", type=Path, metavar="FILE", help=f".npz or .safetensors with {', '.join(KEYS)}; or .npy")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.npz", help="written only if all goes well"
    )
    parser.add_argument("--camera-ids", type=Path, metavar="IDS.npy", help="[N] integers >= 0, if FILE holds none")
    parser.add_argument(
        "--modality-ids", type=Path, metavar="IDS.npy", help="the same; any number of modalities, in any numbering"
    )
    parser.add_argument("--k1", type=int, default=30, help="neighbours searched, itself included (default: 30)")
    parser.add_argument("--k2", type=int, default=6, help="neighbours that the expansion averages (default: 6)")
    parser.add_argument("--eps", type=float, default=0.6, help="DBSCAN radius in [0, 1] (default: 0.6)")
    parser.add_argument("--min-samples", type=int, default=4, help="neighbours of a core sample (default: 4)")
    parser.add_argument("--max-memory", type=parse_bytes, metavar="SIZE", help="such as 4GB: work in blocks that fit")
    common.add_device(parser)
    parser.add_argument("--resume", type=Path, metavar="DIR", help="keep finished stages there, and go on from them")
    common.add_timeout(parser, 30)


def run(options: argparse.Namespace) -> int:
    """Cluster, write, and print what was found; under torchrun rank 0 does the latter two."""
    try:
        with common.joined(options) as (device, group):
            watch = process_group.Watch(group)
            with watch.guard():
                return _run(options, device, watch)
    except (ConnectionError, KeyboardInterrupt) as stop:
        if options.resume is None:
            raise
        advice = f"the same command goes on from what is in {options.resume}"
        raise type(stop)(f"{stop}; {advice}" if str(stop) else advice) from stop


def _run(options: argparse.Namespace, device: str, watch: process_group.Watch) -> int:
    group = watch.group
    first = process_group.rank(group) == 0
    check_output(options.out, options.file)
    gallery = load_gallery(options.file, options.camera_ids, options.modality_ids)
    search = {"k1": options.k1, "k2": options.k2, "eps": options.eps}
    settings = {**search, "min_samples": options.min_samples}
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    check_search("pseudo_labels", **search)

    if gallery.unused_keys and first:
        print(f"not used: {', '.join(gallery.unused_keys)} (known keys are {', '.join(KEYS)})")
    num_samples, num_features = gallery.features.shape
    copied = needs_copy(gallery.features)
    estimate = estimate_memory(num_samples, num_features, **search, copy_features=copied, device=device)
    limit = options.max_memory
    in_blocks = group is not None or options.resume is not None or (limit is not None and estimate.peak_bytes > limit)
    needed = f"about {estimate}"
    if in_blocks:
        ranks = process_group.size(group)
        case = num_samples, -(-num_samples // ranks), ranks, num_features, Search(**settings)
        block_rows = choose_block_rows("pseudo_labels", *case, limit, device)
        most = MemoryEstimate(block_memory(*case, block_rows, device=device))
        about = f"about {expected_memory(*case, block_rows, device)}, at most {most}, in blocks of {block_rows} rows"
        libraries = LIBRARY_BYTES if ranks == 1 else RANK_LIBRARY_BYTES
        needed = about if on_gpu(device) else f"{about}, and some {format_bytes(libraries)} of libraries"
    if first:
        counts = "".join(f", {_counted(name, given)}" for name, given in ids.items() if given is not None)
        print(f"{num_samples} samples x {num_features} features ({dtype_name(gallery.features.dtype)}){counts}")
        memory = "GPU memory" if on_gpu(device) else "memory"
        print(f"{memory} {'beyond the features' if group is None else 'of a rank beyond the features'}: {needed}")
    shared = ids
    if not in_blocks:
        features = FeatureRows.of(str(options.file), _moved(gallery.features, device))
    elif options.file.suffix in OPENERS:
        features = options.file  # every rank reads its own share
    else:
        features = FeatureRows.of(str(options.file), gallery.features)
        if group is not None:
            from ..distributed import gallery_marks  # loads the compiled ops

            process_group.agree(str(options.file), gallery_marks(features, **ids), group)
            begin, end = process_group.share(num_samples, group)
            features = features.part(begin, end)
            shared = {name: None if given is None else given[begin:end] for name, given in ids.items()}
    rows = {"process_group": group, "folder": options.resume, "device": device} if in_blocks else {}
    with show_progress() if first else nullcontext() as progress:
        result = pseudo_labels(features, **shared, **settings, **rows, max_memory=limit, progress=progress)
    if group is not None:
        watch.enter("the labels of all ranks")
        parts = result.labels, result.core_mask
        labels, core_mask = (process_group.all_gather_rows(part, group) for part in parts)
        result = replace(result, labels=labels, core_mask=core_mask)
    if not first:
        return 0
    result = replace(result, labels=result.labels.cpu(), core_mask=result.core_mask.cpu())
    arrays = {"labels": result.labels.numpy(), "core_mask": result.core_mask.numpy()}
    write_npz(options.out, **arrays, **settings, dmic_version=__version__)
    _print_result(result, ids)
    print(f"wrote {options.out}")
    return 0


def _moved(features: torch.Tensor, device: str) -> torch.Tensor:
    try:
        return features.to(device)
    except torch.OutOfMemoryError as error:
        needed = format_bytes(features.nbytes)
        raise MemoryError(
            f"the features, {needed}, do not fit {device}; give --max-memory, with which they go there in blocks"
        ) from error


@dataclass(frozen=True)
class Gallery:
    """What a file holds: features [N, d] and ids [N] or None; tensors that may map the file."""

    features: Any
    camera_ids: Any
    modality_ids: Any
    unused_keys: tuple[str, ...]


def load_gallery(path: Path, camera_path: Path | None = None, modality_path: Path | None = None) -> Gallery:
    """Read features and ids. `.npy` and `.safetensors` are memory-mapped; nothing is ever unpickled.

    Raises:
        ValueError: in one line that names the file: it cannot be opened, has an unknown extension, is no such file, has
            no `features`, or ids are given twice.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: the extension must be one of {', '.join(READERS)}, got {path.suffix or 'none'}")
    arrays = _read(path)
    for name, ids_path in (("camera_ids", camera_path), ("modality_ids", modality_path)):
        if ids_path is None:
            continue
        if name in arrays:
            raise ValueError(f"{path}: holds {name} already, leave out --{name.replace('_', '-')}")
        if ids_path.suffix != ".npy":
            raise ValueError(f"{ids_path}: the extension must be .npy, got {ids_path.suffix or 'none'}")
        arrays[name] = _read(ids_path)["features"]
    if "features" not in arrays:
        raise ValueError(f"{path}: there is no key 'features', only {', '.join(sorted(arrays)) or 'an empty file'}")
    tensors = {
        name: to_tensor(arrays[name], f"{path}: {name}", wanted) for name, wanted in KEYS.items() if name in arrays
    }
    if tensors["features"].dim() != 2:
        raise ValueError(f"{path}: features must have shape [N, d], got {tuple(tensors['features'].shape)}")
    unused = tuple(sorted(set(arrays) - set(KEYS)))
    return Gallery(tensors["features"], tensors.get("camera_ids"), tensors.get("modality_ids"), unused)


def parse_bytes(text: str) -> int:
    """`4GB`, which is `4G`, `512 MiB` or plain bytes; decimal and binary units."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"must be a size such as 4GB or 512MiB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        return READERS[path.suffix](path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file ({error})") from error


# Readers return arrays by name; a key that is not ours is named (None), not read.


def _read_npy(path: Path) -> dict[str, Any]:
    return {"features": np.lib.format.open_memmap(path, mode="r")}


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path):  # np.load would take any file that it knows, whatever the extension
        pass
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] if name in KEYS else None for name in file.files}
    for name, array in arrays.items():
        if isinstance(array, bytes):  # what numpy makes of a member that is no array
            raise ValueError(f"{name} is not an array")
    return arrays


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) if name in KEYS else None for name in file.keys()}  # noqa: SIM118


READERS = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}


def _print_result(result: PseudoLabels, ids: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, text in summarize(result, ids):
        table.add_row(name, text)
    Console().print(table)


def summarize(result: PseudoLabels, ids: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table after a clustering; `ids` maps `camera_ids` and `modality_ids` to [N] integers or None."""
    labels = np.asarray(result.labels)
    num_samples = len(labels)
    share = f" ({100 * result.num_outliers / num_samples:.1f} %)" if num_samples else ""
    rows = [("clusters", f"{result.num_clusters}"), ("outliers", f"{result.num_outliers}{share}")]
    if result.num_clusters:
        sizes = np.asarray(result.cluster_sizes())
        rows.append(("cluster size", f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}"))
        rows += _size_rows(sizes)
        for name, (_, many) in WORDS.items():
            if ids[name] is not None:
                rows.append((f"{many} per cluster", _ids_per_cluster(labels, np.asarray(ids[name]))))
    rows += [(stage, f"{seconds:.2f} s") for stage, seconds in result.seconds.items()]
    return rows


def _size_rows(sizes: np.ndarray) -> list[tuple[str, str]]:
    """Clusters by size in powers of two."""
    exponents, counts = np.unique(np.log2(sizes).astype(int), return_counts=True)
    return [
        (f"  {2**low} to {2 ** (low + 1) - 1} samples" if low else "  1 sample", f"{count}")
        for low, count in zip(exponents.tolist(), counts.tolist(), strict=True)
    ]


def _counted(name: str, ids: torch.Tensor) -> str:
    """`6 cameras`, `1 modality`: how many different ids there are."""
    number, (one, many) = len(ids.to(torch.int64).unique()), WORDS[name]  # not every integer has a `unique`
    return f"{number} {one if number == 1 else many}"


def _ids_per_cluster(labels: np.ndarray, ids: np.ndarray) -> str:
    inside = labels != NOISE
    pairs = np.unique(np.stack([labels[inside], ids[inside].astype(np.int64)]), axis=1)
    numbers, clusters = np.unique(np.bincount(pairs[0]), return_counts=True)
    counts = ", ".join(f"with {n}: {c}" for n, c in zip(numbers.tolist(), clusters.tolist(), strict=True))
    return f"{np.average(numbers, weights=clusters):.2f} on average (clusters {counts})"
