"""What `gpu_check` needs of a device: a GPU, or the CUDA emulator in its place, so that the same code runs on both."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


class Gpu:
    """The first GPU. Times are those of CUDA events, memory is what torch's allocator handed out."""

    name = "cuda"
    sizes: Sequence[int] = (4_120, 12_936, 34_167, 126_441, 1_000_000)
    dims: Sequence[int] = (2048, 512)
    searches: Sequence[tuple[int, int]] = ((40, 32), (30, 6))  # k1, k2
    published_sizes: Sequence[int] = (4_120, 12_936, 34_167)  # for which N x N arrays fit
    sparse_sizes: Sequence[int] = (4_120,)
    repeats = 7
    baseline_operations = 2e14  # of one search that is no more than a comparison; fewer rows are searched beyond it
    tests: Sequence[str] = ("tests/ops", "tests/test_cuda.py", "-k", "(cuda and not test_cuda) or on_cuda")
    seconds: Mapping[str, int] = {"build": 95, "tests": 85, "sanitizer": 95, "kernels": 90, "pipeline": 85}

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        cached = 2 * getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        self.flushed = torch.empty(cached, dtype=torch.int8, device=self.device)

    def prepare(self) -> None:
        """Before the first op."""

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def run_timed(self, function: Callable[[], Any]) -> tuple[Any, float]:
        """Result and seconds on the current stream, from an empty second-level cache."""
        self.flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = function()
        end.record()
        self.synchronize()
        return result, start.elapsed_time(end) / 1e3

    def reset_peak(self) -> None:
        """Let `peak_bytes` count from here."""
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.bytes_before = torch.cuda.memory_allocated(self.device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self.bytes_before

    def describe(self) -> dict[str, object]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "architecture": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": self._driver(),
            "cuda": torch.version.cuda,
        }

    @staticmethod
    def _driver() -> str | None:
        tool = shutil.which("nvidia-smi")
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        done = tool and subprocess.run(command, capture_output=True, text=True)
        return (done.stdout.strip() or None) if done and done.returncode == 0 else None

    @staticmethod
    def missing() -> str | None:
        """Why nothing can be measured here, or None."""
        if not torch.version.cuda:
            return f"torch {torch.__version__} has no CUDA"
        return None if torch.cuda.is_available() else "torch finds no GPU; nvidia-smi says whether there is a driver"

    @staticmethod
    def build_command() -> list[str]:
        return [sys.executable, "setup.py", "build_ext", "--inplace"]

    @staticmethod
    def sanitizer() -> list[str] | None:
        beside_nvcc = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve().parent / "compute-sanitizer"
        found = shutil.which("compute-sanitizer") or (str(beside_nvcc) if beside_nvcc.exists() else None)
        return [found] if found else None

    @staticmethod
    def sparse_library() -> tuple[Any, Any, Callable[[Any], torch.Tensor]] | None:
        """cupy, its sparse matrices, and how an array becomes a tensor; None without cupy."""
        try:
            import cupy
            import cupyx.scipy.sparse
        except ImportError:
            return None
        return cupy, cupyx.scipy.sparse, torch.from_dlpack


class StandIn(Gpu):
    """The emulator, at sizes that take it no time. Nothing that it measures means anything."""

    name = "emulated"
    sizes = (60, 97)
    dims = (16, 9)
    searches = ((6, 3), (5, 2))
    published_sizes = (60,)
    sparse_sizes = (60,)
    repeats = 2
    baseline_operations = 2 * 97 * 97 * 9  # fewer than 97 x 97 x 16 takes, so that a part of the rows is searched
    tests = (
        "tests/ops/test_round_features.py",
        "tests/test_cuda.py",
        "-k",
        "(cpu and not test_cuda and not opcheck and not compiles) or on_cpu",
    )
    seconds = dict.fromkeys(Gpu.seconds, 300)  # the emulator may have to be built first, by a busy machine

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def prepare(self) -> None:
        use_emulator()

    def synchronize(self) -> None:
        pass

    def run_timed(self, function: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        result = function()
        return result, time.perf_counter() - start

    def reset_peak(self) -> None:
        from . import measuring

        measuring.reset_peak()
        self.bytes_before = measuring.current_bytes()

    def peak_bytes(self) -> int:
        from . import measuring

        return measuring.peak_bytes() - self.bytes_before

    def describe(self) -> dict[str, object]:
        return {"device": "the CUDA emulator on a CPU; nothing here is a measurement"}

    @staticmethod
    def missing() -> str | None:
        return None

    @staticmethod
    def build_command() -> list[str]:
        return [sys.executable, "setup.py", "build_ext", "--help"]

    @staticmethod
    def sanitizer() -> list[str] | None:
        return [sys.executable, str(ROOT / "tests" / "fake_compute_sanitizer.py")]

    @staticmethod
    def sparse_library() -> tuple[Any, Any, Callable[[Any], torch.Tensor]] | None:
        """scipy has the interface that cupy copies."""
        import numpy
        import scipy.sparse

        return numpy, scipy.sparse, torch.from_numpy


def use_emulator() -> None:
    """From here on the public ops run the CUDA kernels in the emulator, on CPU tensors."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cuda_emulator")]
    import kernel_checks

    from dmic import _native, ops

    _native.OPS = kernel_checks.plain_emulator().ops
    duplicates = torch.ones(200, 8)  # more than a list holds: rows without a certificate, which the CPU does not have
    if ops.knn_graph_and_redone(duplicates, 3)[2] == 0:
        raise RuntimeError("the public ops do not run in the emulator")


DEVICES = {device.name: device for device in (Gpu, StandIn)}
