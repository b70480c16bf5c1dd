"""What `dmic doctor` finds: versions, the compiled library, the GPU, and what to do about whatever is missing."""

from __future__ import annotations

import importlib
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._version import __version__

REBUILD = "pip install --no-build-isolation . (in a checkout of dmic)"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        found: what is there.
        ok: False if something is missing; `advice` then says what to do.
        advice: empty if there is nothing to do.
        essential: whether clustering on the CPU is impossible without it.
    """

    subject: str
    found: str
    ok: bool = True
    advice: str = ""
    essential: bool = False


def diagnose() -> list[Finding]:
    """Look at everything; never raises for what it finds. The last findings are real clusterings on every device."""
    library, info = _library()
    return [
        Finding("dmic", __version__),
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _torch(info),
        _torchvision(),
        Finding("numpy", np.__version__),
        library,
        *_kernels(info),
        _gpu(info),
        *_compilers(),
        *_clusterings(info),
    ]


def cpu_works(findings: list[Finding]) -> bool:
    """Whether clustering on the CPU works, whatever else is missing."""
    return all(finding.ok for finding in findings if finding.essential)


def _library() -> tuple[Finding, dict[str, Any]]:
    try:
        info = importlib.import_module("._native", __package__).build_info()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        found = f"does not load ({_first_line(error.__cause__ or error)})"
        return Finding("compiled library", found, False, f"build it: {REBUILD}", essential=True), {}
    parts = (info.get("version"), info.get("compiler"))
    return Finding("compiled library", ", ".join(str(part) for part in parts if part), essential=True), info


def _torch(info: dict[str, Any]) -> Finding:
    target = info.get("torch_target")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    threads = torch.get_num_threads()
    found = f"{torch.__version__} ({build}), {threads} thread{'s' * (threads != 1)}"
    if target and _numbers(torch.__version__) < _numbers(str(target)):
        return Finding("torch", found, False, f"the library needs torch {target} or later: pip install -U torch", True)
    return Finding("torch", found, essential=True)


def _torchvision() -> Finding:
    try:
        return Finding("torchvision", importlib.import_module("torchvision").__version__)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        advice = "training needs it, clustering does not; install the release that belongs to this torch"
        return Finding("torchvision", f"does not load ({_first_line(error)})", False, advice)


def _kernels(info: dict[str, Any]) -> Iterator[Finding]:
    if not info:
        return
    used, compiled = info.get("simd_used"), info.get("simd_compiled") or []
    found = f"{used} in use, compiled for {', '.join(compiled) or 'nothing'}"
    if compiled and used != compiled[-1]:
        yield Finding("SIMD", found, False, f"the CPU lacks {compiled[-1]}; results are the same bits, only slower")
    else:
        yield Finding("SIMD", found)
    if info.get("cuda"):
        architectures = ", ".join(str(a) for a in info.get("cuda_architectures") or [])
        yield Finding("CUDA kernels", f"{architectures} (CUDA {info.get('cuda_version')})")
    else:
        advice = f"for a GPU, {'' if _nvcc() else 'install the CUDA toolkit (nvcc), then '}{REBUILD}"
        yield Finding("CUDA kernels", "not compiled", False, advice)


def _gpu(info: dict[str, Any]) -> Finding:
    if not torch.version.cuda:
        return Finding("GPU", "not visible to this torch", False, "for a GPU, install a CUDA build of torch")
    if not torch.cuda.is_available():
        return Finding("GPU", "none", False, "if the machine has one, check its driver with nvidia-smi")
    device = torch.cuda.get_device_properties(0)
    found = f"{torch.cuda.device_count()} x {device.name} (sm_{device.major}{device.minor})"
    if not info.get("cuda"):
        return Finding("GPU", found, False, f"unused: the library has no CUDA kernels; {REBUILD} where nvcc is found")
    return Finding("GPU", found)


def _compilers() -> Iterator[Finding]:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler:
        yield Finding("C++ compiler", compiler)
    else:
        yield Finding("C++ compiler", "none", False, "needed only to build dmic; install g++ 11 or clang 14 or later")
    if nvcc := _nvcc():
        yield Finding("nvcc", nvcc)
    else:
        yield Finding("nvcc", "none", False, "needed only to build the CUDA kernels; install the CUDA toolkit")


def _nvcc() -> str | None:
    return shutil.which("nvcc") or next((str(p) for p in Path("/usr/local").glob("cuda/bin/nvcc")), None)


def _clusterings(info: dict[str, Any]) -> Iterator[Finding]:
    yield _clustering("CPU", torch.device("cpu"))
    if info.get("cuda") and torch.cuda.is_available():
        yield _clustering("GPU", torch.device("cuda"))


def _clustering(name: str, device: torch.device) -> Finding:
    """Two groups of five in the plane, far apart: small enough to know the labels."""
    subject, essential = f"clustering on the {name}", device.type == "cpu"
    angles = np.concatenate([np.linspace(0.0, 0.1, 5), np.linspace(1.5, 1.6, 5)])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    expected = [0] * 5 + [1] * 5
    advice = f"rebuild the library: {REBUILD}"
    start = time.perf_counter()
    try:
        from .pseudo_labels import pseudo_labels

        labels = pseudo_labels(torch.from_numpy(points).to(device), k1=5, k2=2).labels.tolist()
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError, AssertionError) as error:
        return Finding(subject, f"failed ({_first_line(error)})", False, advice, essential)
    if labels != expected:
        return Finding(subject, f"wrong labels {labels}, expected {expected}", False, advice, essential)
    return Finding(subject, f"works ({1e3 * (time.perf_counter() - start):.1f} ms)", essential=essential)


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 14) of "2.14.1+cu130": what a minimum version compares."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
