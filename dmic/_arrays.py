"""Arrays in and out: any common array becomes a torch tensor on its own device; results return as the same kind."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

ANY_IDS = "numpy.unique(ids, return_inverse=True)[1] numbers any ids"  # what errors advise


def to_tensor(array: Any, argument: str, wanted: str = "real numbers or booleans") -> torch.Tensor:
    """View `array` as a torch tensor; its memory is shared wherever torch can express the layout.

    Args:
        array: a torch tensor (gradients are cut), a numpy array (also read-only or memory-mapped; negative strides and
            foreign byte order are copied; `ml_dtypes.bfloat16` is understood), an object with `__dlpack__`,
            `__cuda_array_interface__` or `__array__`, or nested lists or tuples of numbers.
        argument: how the error calls it, such as `"knn_graph: features"`.
        wanted: what it must hold, for the error where it holds text or objects.

    Returns:
        A dense tensor on the array's own device. It may alias read-only memory: callers must not write to it.

    Raises:
        TypeError: the object is not an array.
        ValueError: an array of something other than real numbers or booleans, a masked array, or a sparse tensor.
    """
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided:
            raise ValueError(f"{argument} must be a dense tensor, got layout {array.layout}")
        return array.detach()
    if isinstance(array, np.ndarray):
        return _from_numpy(array, argument, wanted)
    try:
        if hasattr(array, "__dlpack__"):
            return torch.from_dlpack(array)
        if hasattr(array, "__cuda_array_interface__"):
            return torch.as_tensor(array, device="cuda")
        converted = np.asarray(array) if hasattr(array, "__array__") or isinstance(array, (list, tuple)) else None
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{argument} cannot be read as an array of numbers, got {_kind(array)} ({reason})") from error
    if converted is None:
        raise TypeError(f"{argument} must be an array, got {_kind(array)}")
    return _from_numpy(converted, argument, wanted)


def like(array: Any) -> Callable[[torch.Tensor], Any]:
    """The way back: a function that turns a result tensor into the kind of array that `array` is.

    Torch gives torch; numpy, lists and everything read through `__array__` give numpy; other libraries get their own
    arrays through DLPack. Libraries that cannot import DLPack receive the torch tensor itself.
    """
    if isinstance(array, torch.Tensor):
        return lambda tensor: tensor
    if isinstance(array, np.ndarray) or not (
        hasattr(array, "__dlpack__") or hasattr(array, "__cuda_array_interface__")
    ):
        return lambda tensor: tensor.cpu().numpy()
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__().from_dlpack
    root = sys.modules[type(array).__module__.partition(".")[0]]
    return getattr(root, "from_dlpack", lambda tensor: tensor)


class _Writable:
    """The same memory without the read-only flag: torch warns about read-only arrays, and we never write."""

    def __init__(self, array: np.ndarray):
        self.array = array  # keeps the memory alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _from_numpy(array: np.ndarray, argument: str, wanted: str) -> torch.Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{argument} must not be a masked array; fill or drop the masked entries first")
    if array.dtype.name == "bfloat16":  # ml_dtypes; numpy itself has no such type
        return _from_numpy(array.view(np.int16), argument, wanted).view(torch.bfloat16)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise ValueError(f"{argument} must hold {wanted}, got dtype {array.dtype}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy(order="C")
    return torch.from_numpy(np.asarray(array if array.flags.writeable else _Writable(array)))


def check_device(argument: str, device: Any) -> torch.device:
    """The device that is meant, if it is there; ValueError that begins with the name of the argument if it is not."""
    try:
        kind = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{argument} must be cpu, cuda or cuda:NUMBER, got {device!r}") from None
    if kind.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument} must be cpu, cuda or cuda:NUMBER, got {device!r}")
    found = torch.cuda.device_count()
    if kind.type == "cuda" and (kind.index or 0) >= found:
        raise ValueError(
            f"{argument} {device}: there {'is' if found == 1 else 'are'} {found} GPU(s); `dmic doctor` says more"
        )
    return kind


def to_integer(value: Any, argument: str) -> int:
    """`value` as an int that fits int64, or ValueError naming `argument`, such as `"knn_graph: k1"`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{argument} must be an integer, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{argument} must fit 64 bits, got {number}")
    return number


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` rather than `torch.float32`: the same word for every array library."""
    return str(dtype).removeprefix("torch.")


def _kind(array: Any) -> str:
    module, name = type(array).__module__, type(array).__qualname__
    return name if module == "builtins" else f"{module}.{name}"
