"""Sparse rows: the encodings and distances that the clustering ops exchange."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ._arrays import dtype_name, like, to_tensor

ONE = 1 << 30  # the fixed-point value of probability 1


@dataclass(frozen=True, eq=False, repr=False)
class Csr:
    """A sparse matrix in compressed rows; its arrays are all torch, all numpy, or all of another array library.

    Attributes:
        row_ptr: int64 [N + 1]; row i is stored at positions row_ptr[i] to row_ptr[i + 1].
        col_idx: int32 [nnz], strictly ascending inside a row.
        values: [nnz]; int32 in units of 2**-30 for an encoding, float32 for a distance.
        num_cols: number of columns.

    Building one checks nothing; `validate` does. Entries that are not stored mean 0 in an encoding, 1 in a distance.
    """

    row_ptr: Any
    col_idx: Any
    values: Any
    num_cols: int

    @property
    def num_rows(self) -> int:
        return self.row_ptr.shape[0] - 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_cols

    @property
    def nnz(self) -> int:
        return self.col_idx.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held by the three arrays."""
        return self.row_ptr.nbytes + self.col_idx.nbytes + self.values.nbytes

    def __repr__(self) -> str:
        kind = type(self.values).__module__.partition(".")[0]
        device = f", device={self.values.device}" if isinstance(self.values, torch.Tensor) else ""
        return f"Csr(shape={self.shape}, nnz={self.nnz}, values={dtype_name(self.values.dtype)}, arrays={kind}{device})"

    def validate(self, argument: str = "Csr") -> Csr:
        """Check the structure, in O(N + nnz) on the arrays' own device; returns self.

        Raises:
            ValueError: in one line that starts with `argument`: an array that is not one-dimensional, a row_ptr that is
                not int64, does not start at 0, falls, or does not end at nnz; a col_idx that is not int32, leaves
                [0, num_cols) or does not strictly ascend inside a row; values of another length or device.
        """
        row_ptr, col_idx, values = self._tensors(argument)
        for name, tensor in (("row_ptr", row_ptr), ("col_idx", col_idx), ("values", values)):
            if tensor.dim() != 1:
                raise ValueError(f"{argument}: {name} must have one dimension, got shape {tuple(tensor.shape)}")
        if not row_ptr.device == col_idx.device == values.device:
            devices = f"{row_ptr.device}, {col_idx.device} and {values.device}"
            raise ValueError(f"{argument}: row_ptr, col_idx and values must be on one device, got {devices}")
        if row_ptr.dtype != torch.int64 or col_idx.dtype != torch.int32:
            got = f"{dtype_name(row_ptr.dtype)} and {dtype_name(col_idx.dtype)}"
            raise ValueError(f"{argument}: row_ptr must be int64 and col_idx int32, got {got}")
        nnz = len(col_idx)
        if len(values) != nnz:
            raise ValueError(f"{argument}: values must be as long as col_idx, got {len(values)} and {nnz}")
        if len(row_ptr) == 0 or row_ptr[0] != 0 or row_ptr[-1] != nnz:
            got = f"{int(row_ptr[0])} to {int(row_ptr[-1])}" if len(row_ptr) else "no entries"
            raise ValueError(f"{argument}: row_ptr must run from 0 to nnz={nnz}, got {got}")
        falls = (row_ptr[1:] < row_ptr[:-1]).nonzero()
        if len(falls):
            raise ValueError(f"{argument}: row_ptr must not fall, got a negative length of row {int(falls[0])}")
        if nnz == 0:
            return self
        low, high = (int(bound) for bound in torch.aminmax(col_idx))
        if low < 0 or high >= self.num_cols:
            got = low if low < 0 else high
            raise ValueError(f"{argument}: col_idx must be in [0, {self.num_cols}), got {got}")
        row_start = torch.zeros(nnz + 1, dtype=torch.bool, device=col_idx.device)
        row_start[row_ptr] = True
        unsorted = ((col_idx[1:] <= col_idx[:-1]) & ~row_start[1:nnz]).nonzero()
        if len(unsorted):
            at = int(unsorted[0]) + 1
            row = int(torch.searchsorted(row_ptr, at, right=True)) - 1
            got = f"{int(col_idx[at])} after {int(col_idx[at - 1])} in row {row}"
            raise ValueError(f"{argument}: col_idx must strictly ascend inside a row, got {got}")
        return self

    def to(self, device: torch.device | str) -> Csr:
        """The same rows as torch tensors on `device`; nothing is copied if they are there already."""
        return Csr(*(tensor.to(device) for tensor in self._tensors()), self.num_cols)

    def numpy(self) -> Csr:
        """The same rows as numpy arrays in host memory."""
        return Csr(*(tensor.cpu().numpy() for tensor in self._tensors()), self.num_cols)

    def to_float(self) -> Csr:
        """Probabilities of an encoding, float64: exact, so every non-empty row sums to 1; distances are left alone."""
        values = to_tensor(self.values, "Csr: values")
        if values.is_floating_point():
            return self
        return Csr(self.row_ptr, self.col_idx, like(self.values)(values.double() / ONE), self.num_cols)

    def to_dense(self, fill_value: float = 0) -> Any:
        """The full [num_rows, num_cols] array, of the kind and dtype of `values`; other entries are `fill_value`.

        Raises:
            ValueError: a fractional `fill_value` for integer values.
        """
        row_ptr, col_idx, values = self._tensors()
        if not values.is_floating_point() and fill_value != int(fill_value):
            raise ValueError(f"Csr.to_dense: fill_value must be an integer for integer values, got {fill_value}")
        dense = torch.full(self.shape, fill_value, dtype=values.dtype, device=values.device)
        dense[_row_idx(row_ptr), col_idx.long()] = values
        return like(self.values)(dense)

    def to_torch(self) -> torch.Tensor:
        """A torch.sparse_csr tensor on the same device; torch wants one index type, so columns become int64."""
        row_ptr, col_idx, values = self._tensors()
        return torch.sparse_csr_tensor(row_ptr, col_idx.long(), values, size=self.shape, check_invariants=True)

    def to_scipy(self) -> Any:
        """A scipy.sparse.csr_array in host memory. Stored zeros (the diagonal of a distance) stay stored."""
        sparse = _import("scipy.sparse", "Csr.to_scipy")
        rows = self.numpy()
        return sparse.csr_array((rows.values, rows.col_idx, rows.row_ptr), shape=self.shape)

    def to_cupy(self) -> Any:
        """A cupyx.scipy.sparse.csr_matrix on the GPU; cupy has no integer values, so an encoding comes `to_float`.

        Raises:
            ValueError: 2**31 or more entries, which cupy's int32 row pointers cannot address.
        """
        sparse, cupy = _import("cupyx.scipy.sparse", "Csr.to_cupy"), _import("cupy", "Csr.to_cupy")
        if self.nnz >= 1 << 31:
            raise ValueError(f"Csr.to_cupy: nnz must be below 2**31, got {self.nnz}")
        device = to_tensor(self.values, "Csr: values").device
        rows = self.to_float().to(device if device.type == "cuda" else "cuda")
        arrays = tuple(cupy.from_dlpack(a) for a in (rows.values, rows.col_idx, rows.row_ptr.int()))
        return sparse.csr_matrix(arrays, shape=self.shape)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> Csr:
        """From a two-dimensional torch.sparse_csr tensor, as torch tensors on its device.

        Columns may come in any order. Raises ValueError for another layout or rank, and for a column stored twice.
        """
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.sparse_csr or tensor.dim() != 2:
            got = (
                f"{tensor.layout} of rank {tensor.dim()}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            )
            raise ValueError(f"Csr.from_torch: tensor must be sparse_csr of rank 2 (see to_sparse_csr), got {got}")
        arrays = (tensor.crow_indices(), tensor.col_indices(), tensor.values().detach())
        return cls._from_unsorted(*arrays, tensor.shape[1], "Csr.from_torch")

    @classmethod
    def from_scipy(cls, matrix: Any) -> Csr:
        """From a scipy.sparse CSR matrix or array, as numpy arrays.

        Columns may come in any order. Raises ValueError for another format, and for a column stored twice.
        """
        if getattr(matrix, "format", None) != "csr" or len(matrix.shape) != 2:
            got = getattr(matrix, "format", type(matrix).__name__)
            raise ValueError(f"Csr.from_scipy: matrix must be two-dimensional in csr format (see tocsr), got {got}")
        arrays = (to_tensor(a, "Csr.from_scipy: matrix") for a in (matrix.indptr, matrix.indices, matrix.data))
        return cls._from_unsorted(*arrays, matrix.shape[1], "Csr.from_scipy").numpy()

    @classmethod
    def from_cupy(cls, matrix: Any) -> Csr:
        """From a cupyx.scipy.sparse.csr_matrix, as cupy arrays on its GPU.

        Columns may come in any order. Raises ValueError for another format, and for a column stored twice.
        """
        if getattr(matrix, "format", None) != "csr":
            got = getattr(matrix, "format", type(matrix).__name__)
            raise ValueError(f"Csr.from_cupy: matrix must be in csr format (see tocsr), got {got}")
        arrays = (to_tensor(a, "Csr.from_cupy: matrix") for a in (matrix.indptr, matrix.indices, matrix.data))
        rows, back = cls._from_unsorted(*arrays, matrix.shape[1], "Csr.from_cupy"), like(matrix.data)
        return cls(back(rows.row_ptr), back(rows.col_idx), back(rows.values), rows.num_cols)

    @classmethod
    def _from_unsorted(cls, row_ptr, col_idx, values, num_cols: int, argument: str) -> Csr:
        """Sort the columns of every row; validation then finds whatever else is wrong, duplicates included."""
        if num_cols >= 1 << 31:
            raise ValueError(f"{argument}: the number of columns must be below 2**31, got {num_cols}")
        row_ptr = row_ptr.long()
        key = _row_idx(row_ptr) * num_cols + col_idx.long()
        if len(key) > 1 and not bool((key[1:] > key[:-1]).all()):
            order = torch.argsort(key)
            col_idx, values = col_idx[order], values[order]
        return cls(row_ptr, col_idx.int(), values, num_cols).validate(argument)

    def _tensors(self, argument: str = "Csr") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        names = ("row_ptr", "col_idx", "values")
        return tuple(to_tensor(getattr(self, name), f"{argument}: {name}") for name in names)


def _row_idx(row_ptr: torch.Tensor) -> torch.Tensor:
    """The row of every stored entry, int64 [nnz]."""
    return torch.repeat_interleave(torch.arange(len(row_ptr) - 1, device=row_ptr.device), row_ptr.diff())


def _import(module: str, caller: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("cupyx", "cupy")
        raise ImportError(f"{caller} needs {package}, which is not installed") from error
