"""The command `dmic`: cluster a file of features, run the demo, look at the installation."""

from __future__ import annotations

import argparse
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ._arrays import dtype_name, to_tensor
from ._version import __version__
from .constants import NOISE
from .pseudo_labels import PseudoLabels, check_search, estimate_memory, needs_copy, pseudo_labels

KEYS = ("features", "camera_ids", "modality_ids")
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}

NOT_HEALTHY = 1
USAGE_ERROR = 2
INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 installation not healthy, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        options = _parser(with_demo=command == "demo").parse_args(arguments)
        return options.run(options)
    except KeyboardInterrupt:
        print("dmic: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"dmic {command}: error: {_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except ImportError as error:
        print(f"dmic {command}: error: {_one_line(error)}; `dmic doctor` says more", file=sys.stderr)
        return NOT_HEALTHY


class _Parser(argparse.ArgumentParser):
    """Errors in one line; `-h` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\n")


def _parser(with_demo: bool) -> argparse.ArgumentParser:
    parser = _Parser(prog="dmic", description="Who is who in an unlabeled gallery of visible and infrared images.")
    parser.add_argument("--version", action="version", version=f"dmic {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_cluster(commands)
    demo = commands.add_parser("demo", help="train on the embedded gallery and retrieve across modalities")
    if with_demo:  # the training modules load only for this command
        from . import demo as demo_module

        demo_module.add_arguments(demo)
        demo.set_defaults(run=demo_module.run)
    doctor = commands.add_parser("doctor", help="what is installed, what is missing, and what to do about it")
    doctor.set_defaults(run=_run_doctor)
    return parser


# ---------------------------------------------------------------------------------------------------- dmic doctor


def _run_doctor(options: argparse.Namespace) -> int:
    from .doctor import cpu_works, diagnose

    findings = diagnose()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.ok else "!!" if finding.essential else "--"
        print(f"{mark}  {finding.subject:<{width}}  {finding.found}")
        if finding.advice:
            print(f"    {'':<{width}}  -> {finding.advice}")
    return 0 if cpu_works(findings) else NOT_HEALTHY


# --------------------------------------------------------------------------------------------------- dmic cluster


def _add_cluster(commands: Any) -> None:
    parser = commands.add_parser(
        "cluster",
        help="pseudo labels for a file of features",
        description="Cluster the features in FILE and write labels, core_mask and the settings to OUT.npz.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=f".npz or .safetensors with {', '.join(KEYS)}; or .npy")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.npz", help="written only if all goes well"
    )
    parser.add_argument("--camera-ids", type=Path, metavar="IDS.npy", help="[N] integers, if FILE holds none")
    parser.add_argument("--modality-ids", type=Path, metavar="IDS.npy", help="[N] integers: 0 visible, 1 infrared")
    parser.add_argument("--k1", type=int, default=30, help="neighbours searched, itself included (default: 30)")
    parser.add_argument("--k2", type=int, default=6, help="neighbours that the expansion averages (default: 6)")
    parser.add_argument("--eps", type=float, default=0.6, help="DBSCAN radius in [0, 1] (default: 0.6)")
    parser.add_argument("--min-samples", type=int, default=4, help="neighbours of a core sample (default: 4)")
    parser.add_argument("--max-memory", type=parse_bytes, metavar="SIZE", help="such as 4GB: refuse to start above it")
    parser.set_defaults(run=_run_cluster)


def _run_cluster(options: argparse.Namespace) -> int:
    _check_output(options.out, options.file)
    gallery = load_gallery(options.file, options.camera_ids, options.modality_ids)
    search = {"k1": options.k1, "k2": options.k2, "eps": options.eps}
    settings = {**search, "min_samples": options.min_samples}
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    check_search("pseudo_labels", **search)

    if gallery.unused_keys:
        print(f"not used: {', '.join(gallery.unused_keys)} (known keys are {', '.join(KEYS)})")
    num_samples, num_features = gallery.features.shape
    print(f"{num_samples} samples x {num_features} features ({dtype_name(gallery.features.dtype)})")
    copied = needs_copy(gallery.features)
    estimate = estimate_memory(num_samples, num_features, **search, copy_features=copied)
    print(f"memory beyond the features: about {estimate}")
    with _progress() as progress:
        result = pseudo_labels(gallery.features, **ids, **settings, max_memory=options.max_memory, progress=progress)
    arrays = {"labels": np.asarray(result.labels), "core_mask": np.asarray(result.core_mask)}
    _write_npz(options.out, **arrays, **settings, dmic_version=__version__)
    _print_result(result, ids)
    print(f"wrote {options.out}")
    return 0


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
    tensors = {name: to_tensor(arrays[name], f"{path}: {name}") for name in KEYS if name in arrays}
    if tensors["features"].dim() != 2:
        raise ValueError(f"{path}: features must have shape [N, d], got {tuple(tensors['features'].shape)}")
    unused = tuple(sorted(set(arrays) - set(KEYS)))
    return Gallery(tensors["features"], tensors.get("camera_ids"), tensors.get("modality_ids"), unused)


def parse_bytes(text: str) -> int:
    """`4GB`, `512 MiB` or plain bytes; decimal and binary units."""
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


def _check_output(out: Path, source: Path) -> None:
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the extension of the output must be .npz, got {out.suffix or 'none'}")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out}: would overwrite the features")


def _write_npz(path: Path, **arrays: Any) -> None:
    """All or nothing: readers see the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on a terminal; elsewhere a line for each quarter of a stage."""
    if not sys.stdout.isatty():
        seen: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            quarter = 4 * done // total if total else 4
            if quarter > seen.get(stage, 0):
                seen[stage] = quarter
                print(f"{stage}: {25 * quarter} %", flush=True)

        yield report
        return

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


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
        for name, word in (("camera_ids", "cameras"), ("modality_ids", "modalities")):
            if ids[name] is not None:
                rows.append((f"{word} per cluster", _ids_per_cluster(labels, np.asarray(ids[name]))))
    rows += [(stage, f"{seconds:.2f} s") for stage, seconds in result.seconds.items()]
    return rows


def _size_rows(sizes: np.ndarray) -> list[tuple[str, str]]:
    """Clusters by size in powers of two."""
    exponents, counts = np.unique(np.log2(sizes).astype(int), return_counts=True)
    return [
        (f"  {2**low} to {2 ** (low + 1) - 1} samples" if low else "  1 sample", f"{count}")
        for low, count in zip(exponents.tolist(), counts.tolist(), strict=True)
    ]


def _ids_per_cluster(labels: np.ndarray, ids: np.ndarray) -> str:
    inside = labels != NOISE
    pairs = np.unique(np.stack([labels[inside], ids[inside].astype(np.int64)]), axis=1)
    numbers, clusters = np.unique(np.bincount(pairs[0]), return_counts=True)
    counts = ", ".join(f"with {n}: {c}" for n, c in zip(numbers.tolist(), clusters.tolist(), strict=True))
    return f"{np.average(numbers, weights=clusters):.2f} on average (clusters {counts})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).removeprefix("pseudo_labels: ").split())
