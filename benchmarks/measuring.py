"""What every benchmark reports beside the times: memory, machine, versions, commit, and whether labels agree."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import warnings
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "faiss-cpu")
OPENBLAS_SWITCHES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
SIMD_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def warn_about_openblas() -> None:
    """These switches slow numpy's products down or speed them up: a baseline measured with them is another baseline."""
    for name in OPENBLAS_SWITCHES:
        if name in os.environ:
            warnings.warn(f"{name}={os.environ[name]} is set and changes the baseline; unset it", stacklevel=2)


def current_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return _kilobytes("/proc/self/status", "VmRSS")


def peak_bytes() -> int:
    """Highest resident memory of this process since it started or since `reset_peak` (Linux)."""
    return _kilobytes("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    """Let `peak_bytes` start again from the current memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def trim() -> int:
    """Give back memory kept from earlier calls, which would be used again unseen; what is left (Linux with glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    return current_bytes()


def available_bytes() -> int:
    """Memory that can be had without swapping (Linux)."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def _kilobytes(path: str, field: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path} has no {field}")


def compare_labels(labels: np.ndarray, want: np.ndarray) -> dict[str, object]:
    """How far two clusterings agree; `differing_samples` is counted after the best matching of the clusters."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, confusion_matrix

    labels, want = np.asarray(labels), np.asarray(want)
    counts = confusion_matrix(want, labels)
    classes = np.unique(np.concatenate([want, labels]))
    noise = classes == -1
    matched = counts[noise][:, noise].sum()  # noise matches noise and nothing else
    inner = counts[~noise][:, ~noise]
    matched += inner[linear_sum_assignment(inner, maximize=True)].sum()
    return {
        "equal": bool(np.array_equal(labels, want)),
        "equal_up_to_renumbering": bool(matched == len(want)),
        "differing_samples": int(len(want) - matched),
        "adjusted_rand_index": float(adjusted_rand_score(want, labels)),
    }


def spread(seconds: list[float]) -> dict[str, object]:
    """Median, extremes and every repeat, to the microsecond."""
    repeats = [round(value, 6) for value in seconds]
    return {"median": round(float(np.median(seconds)), 6), "min": min(repeats), "max": max(repeats), "repeats": repeats}


def commit() -> str | None:
    """The last commit of what is measured, with `-dirty` if tracked files differ from it; None outside a git checkout.
    Results and documentation are not measured: writing and committing them changes nothing here."""

    def git(*arguments: str) -> str | None:
        measured = ("--", ".", ":!benchmarks/results", ":!docs")
        ended = subprocess.run(["git", *arguments, *measured], cwd=ROOT, capture_output=True, text=True)
        return ended.stdout.strip() if ended.returncode == 0 else None

    last = git("log", "-1", "--format=%H")
    return last and last + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


def machine() -> dict[str, object]:
    """The processor and what a run may use of it. No host name."""
    model, flags = platform.processor(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "simd": [flag for flag in SIMD_FLAGS if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "dmic": importlib.import_module("dmic").__version__}
    return found | {package: importlib.metadata.version(package) for package in PACKAGES}
