"""Loads the compiled library, which registers torch.ops.dmic.*, and says what it was built with."""

from __future__ import annotations

import atexit

import torch

from ._version import __version__

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "dmic: the compiled library is missing or does not load here "
        f"({error}); build it with `pip install --no-build-isolation .` in a checkout"
    ) from error


def build_info() -> dict:
    """What this build of dmic holds and what of it is in use, as plain values."""
    info = _C.build_info()
    version = info["cuda_version"]
    architectures = [f"sm_{a}" for a in info["cuda_architectures"].split(";") if a]
    return {
        "version": __version__,
        **info,
        "cuda": version > 0,
        "cuda_version": f"{version // 1000}.{version % 1000 // 10}" if version else None,
        "cuda_architectures": architectures,
        "threads": torch.get_num_threads(),
    }


OPS = None  # another library of the same ops; the tests put the one here that runs the CUDA kernels without a GPU


def call(progress, op, *arguments):
    """Run an op with progress reports and interrupts; an exception raised by the callback or by Ctrl-C propagates."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    device, name = arguments[0].device.type, op._schema.name
    if OPS is not None:
        op = getattr(OPS, name.partition("::")[2]).default
    if device == "cuda" and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
        stem = name.partition("::")[2]
        raise NotImplementedError(f"{stem}: this build has no CUDA kernel for it; move the arguments to the CPU")
    return _C.run(progress, op, arguments)


set_simd_level = _C.set_simd_level
atexit.register(_C.stop_polling)
