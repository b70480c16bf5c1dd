import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import test_arrays
import torch
from compare import assert_same_bits

from dmic import Csr

ONE = 2**30


def example(kind=np) -> Csr:
    """[[0, 1/4, 3/4], [0, 0, 0], [1, 0, 0], [1/2, 0, 1/2]] as an encoding."""
    row_ptr, col_idx = np.array([0, 2, 2, 3, 5]), np.array([1, 2, 0, 0, 2], np.int32)
    values = np.array([ONE // 4, 3 * ONE // 4, ONE, ONE // 2, ONE // 2], np.int32)
    arrays = (row_ptr, col_idx, values)
    return Csr(*(arrays if kind is np else map(torch.from_numpy, arrays)), num_cols=3)


def example_distance() -> Csr:
    values = np.array([0.0, 0.25, 0.25, 0.0], np.float32)
    return Csr(np.array([0, 2, 4]), np.array([0, 1, 0, 1], np.int32), values, 2)


DENSE = np.array([[0, 0.25, 0.75], [0, 0, 0], [1, 0, 0], [0.5, 0, 0.5]])


@pytest.mark.parametrize("kind", [np, torch])
def test_sizes(kind):
    rows = example(kind)
    assert (rows.num_rows, rows.num_cols, rows.shape, rows.nnz) == (4, 3, (4, 3), 5)
    assert rows.nbytes == 5 * 8 + 5 * 4 + 5 * 4


def test_repr_is_one_short_line():
    assert repr(example()) == "Csr(shape=(4, 3), nnz=5, values=int32, arrays=numpy)"
    assert repr(example(torch)) == "Csr(shape=(4, 3), nnz=5, values=int32, arrays=torch, device=cpu)"


@pytest.mark.parametrize("kind", [np, torch])
def test_dense_encoding_keeps_its_integers_and_its_kind(kind):
    dense = example(kind).to_dense()
    assert type(dense) is type(example(kind).values)
    assert_same_bits(dense, (DENSE * ONE).astype(np.int32))


def test_dense_distance_is_filled_with_what_is_asked_for():
    rows = example_distance()
    rows = Csr(rows.row_ptr, rows.col_idx, rows.values, num_cols=3)
    assert_same_bits(rows.to_dense(fill_value=1), np.array([[0, 0.25, 1], [0.25, 0, 1]], np.float32))


def test_dense_refuses_a_fraction_between_integers():
    with pytest.raises(ValueError, match=r"^Csr.to_dense: fill_value must be an integer for integer values, got 0.5$"):
        example().to_dense(fill_value=0.5)


@pytest.mark.parametrize("kind", [np, torch])
def test_probabilities_are_exact(kind):
    rows = Csr(*(getattr(example(kind), f) for f in ("row_ptr", "col_idx")), example(kind).values - 1, num_cols=3)
    floats = rows.to_float()
    assert type(floats.values) is type(rows.values)
    assert_same_bits(floats.values, np.array([2**28 - 1, 3 * 2**28 - 1, 2**30 - 1, 2**29 - 1, 2**29 - 1]) / ONE)
    assert example_distance().to_float().values.dtype == np.float32


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", [np, torch])
def test_torch_sparse_and_back(kind):
    sparse = example(kind).to_float().to_torch()
    assert sparse.layout == torch.sparse_csr
    assert_same_bits(sparse.to_dense(), DENSE)
    back = Csr.from_torch(example(kind).to_torch())
    assert_same_bits(back, example())
    assert isinstance(back.values, torch.Tensor)
    assert not Csr.from_torch(sparse.requires_grad_()).values.requires_grad


@pytest.mark.parametrize("kind", [np, torch])
def test_scipy_and_back(kind):
    sparse = example(kind).to_scipy()
    assert sparse.format == "csr"
    assert_same_bits(sparse.toarray(), (DENSE * ONE).astype(np.int32))
    back = Csr.from_scipy(sparse)
    assert_same_bits(back, example())
    assert isinstance(back.values, np.ndarray)


def test_scipy_keeps_the_stored_zeros_of_a_distance():
    assert example_distance().to_scipy().nnz == 4


def test_unsorted_columns_are_sorted():
    expected = Csr(np.array([0, 3, 4]), np.array([0, 3, 4, 2], np.int32), np.array([1.0, 3.0, 4.0, 2.0]), 5)
    data, indices, indptr = np.array([4.0, 1.0, 3.0, 2.0]), np.array([4, 0, 3, 2]), np.array([0, 3, 4])
    assert_same_bits(Csr.from_scipy(scipy.sparse.csr_matrix((data, indices, indptr), shape=(2, 5))), expected)


def test_a_column_stored_twice_is_an_error():
    twice = scipy.sparse.csr_matrix((np.ones(4), np.array([4, 1, 4, 2]), np.array([0, 3, 4])), shape=(2, 5))
    message = r"^Csr.from_scipy: col_idx must strictly ascend inside a row, got 4 after 4 in row 0$"
    with pytest.raises(ValueError, match=message):
        Csr.from_scipy(twice)


@pytest.mark.parametrize(
    ("convert", "given", "message"),
    [
        (Csr.from_torch, torch.zeros(2, 2), "tensor must be sparse_csr of rank 2 .*, got torch.strided of rank 2"),
        (Csr.from_torch, np.zeros((2, 2)), "tensor must be sparse_csr of rank 2 .*, got ndarray"),
        (Csr.from_scipy, scipy.sparse.coo_matrix((2, 2)), "matrix must be two-dimensional in csr format .*, got coo"),
        (Csr.from_scipy, 5, "matrix must be two-dimensional in csr format .*, got int"),
        (Csr.from_scipy, SimpleNamespace(format="csr", shape=(3,)), "matrix must be two-dimensional .*, got csr"),
        (Csr.from_scipy, scipy.sparse.csr_matrix((1, 1 << 31)), r"the number of columns must be below 2\*\*31, .*"),
        (Csr.from_cupy, np.zeros(2), "matrix must be in csr format .*, got ndarray"),
    ],
)
def test_other_formats_are_refused(convert, given, message):
    with pytest.raises(ValueError, match=f"^Csr.{convert.__name__}: {message}$"):
        convert(given)


def test_cupy_arrays_come_back_as_their_own_kind():
    """No cupy here: an array library that has nothing but DLPack stands for it."""
    dlpack = test_arrays.OnlyDlpack
    matrix = SimpleNamespace(
        format="csr",
        shape=(2, 5),
        data=dlpack(torch.tensor([4.0, 1.0, 3.0, 2.0])),
        indices=dlpack(torch.tensor([4, 0, 3, 2], dtype=torch.int32)),
        indptr=dlpack(torch.tensor([0, 3, 4], dtype=torch.int32)),
    )
    rows = Csr.from_cupy(matrix)
    assert all(isinstance(array, dlpack) for array in (rows.row_ptr, rows.col_idx, rows.values))
    assert_same_bits(rows.numpy().to_dense(), np.array([[1, 0, 0, 3, 4], [0, 0, 2, 0, 0]], np.float32))


@pytest.mark.parametrize(("package", "method"), [("scipy.sparse", "to_scipy"), ("cupyx.scipy.sparse", "to_cupy")])
def test_a_missing_package_is_named(monkeypatch, package, method):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"^Csr.{method} needs (scipy|cupy), which is not installed$"):
        getattr(example(), method)()


def test_more_entries_than_cupy_addresses_are_refused(monkeypatch):
    for module in ("cupy", "cupyx.scipy.sparse"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    many = np.broadcast_to(np.int32(0), 1 << 31)
    with pytest.raises(ValueError, match=r"^Csr.to_cupy: nnz must be below 2\*\*31, got 2147483648$"):
        Csr(np.array([0, 1 << 31]), many, many, 1).to_cupy()


def test_numpy_and_device_conversions_share_memory():
    rows = example(torch)
    assert rows.numpy().values.ctypes.data == rows.values.data_ptr()
    assert rows.to("cpu").col_idx.data_ptr() == rows.col_idx.data_ptr()
    assert_same_bits(example().to("cpu"), example())


@pytest.mark.parametrize("kind", [np, torch])
def test_a_valid_matrix_passes_and_comes_back(kind):
    rows = example(kind)
    assert rows.validate() is rows
    empty = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), 0)
    assert empty.validate() is empty
    assert empty.to_dense().shape == (0, 0)


def broken(**arrays) -> Csr:
    good = example()
    fields = {name: getattr(good, name) for name in ("row_ptr", "col_idx", "values", "num_cols")}
    return Csr(**{**fields, **arrays})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (broken(row_ptr=np.zeros((2, 2), np.int64)), r"row_ptr must have one dimension, got shape \(2, 2\)"),
        (broken(row_ptr=np.array([0, 2, 2, 3, 5], np.int32)), "row_ptr must be int64 .*, got int32 and int32"),
        (broken(col_idx=np.array([1, 2, 0, 0, 2])), "row_ptr must be int64 and col_idx int32, got int64 and int64"),
        (broken(values=torch.ones(5, device="meta")), "row_ptr, .* must be on one device, got cpu, cpu and meta"),
        (broken(values=np.ones(4)), "values must be as long as col_idx, got 4 and 5"),
        (broken(row_ptr=np.array([1, 2, 2, 3, 5])), "row_ptr must run from 0 to nnz=5, got 1 to 5"),
        (broken(row_ptr=np.array([0, 2, 2, 3, 4])), "row_ptr must run from 0 to nnz=5, got 0 to 4"),
        (broken(row_ptr=np.zeros(0, np.int64)), "row_ptr must run from 0 to nnz=5, got no entries"),
        (broken(row_ptr=np.array([0, 3, 2, 3, 5])), "row_ptr must not fall, got a negative length of row 1"),
        (broken(row_ptr=np.array([0, 2, 2, 9, 5])), "row_ptr must not fall, got a negative length of row 3"),
        (broken(col_idx=np.array([1, 3, 0, 0, 2], np.int32)), r"col_idx must be in \[0, 3\), got 3"),
        (broken(col_idx=np.array([-1, 2, 0, 0, 2], np.int32)), r"col_idx must be in \[0, 3\), got -1"),
        (broken(col_idx=np.array([2, 1, 0, 0, 2], np.int32)), ".* must strictly ascend .*, got 1 after 2 in row 0"),
        (broken(col_idx=np.array([1, 2, 0, 2, 2], np.int32)), ".* must strictly ascend .*, got 2 after 2 in row 3"),
    ],
)  # fmt: skip
def test_a_broken_structure_is_named(rows, message):
    with pytest.raises(ValueError, match=f"^distance: {message}$"):
        rows.validate("distance")
