import warnings

import numpy as np
import pytest
import torch

from dmic._arrays import like, to_tensor

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


class OnlyDlpack:
    """An array of some other library: nothing but the protocol, and a namespace to come back through."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self):
        class Namespace:
            from_dlpack = OnlyDlpack

        return Namespace


class OnlyArray:
    """Something with `__array__`, as a data frame column."""

    def __array__(self, dtype=None, copy=None):
        return VALUES


def test_a_tensor_is_itself_without_its_gradient():
    tensor = torch.ones(3, requires_grad=True)
    got = to_tensor(tensor, "features")
    assert got.data_ptr() == tensor.data_ptr()
    assert not got.requires_grad


def readonly(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array", [VALUES, VALUES.T, VALUES[::2, 1:], readonly(VALUES), np.float16(VALUES), np.int64(VALUES) > 3]
)
def test_numpy_memory_is_shared_silently(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = to_tensor(array, "features")
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.data_ptr() == array.ctypes.data


def test_a_memory_mapped_file_is_not_read(tmp_path):
    np.save(tmp_path / "features.npy", VALUES)
    array = np.load(tmp_path / "features.npy", mmap_mode="r")
    tensor = to_tensor(array, "features")
    assert tensor.data_ptr() == array.ctypes.data
    del array  # the tensor keeps the mapping alive
    assert np.array_equal(tensor.numpy(), VALUES)


@pytest.mark.parametrize(
    "array",
    [
        VALUES[::-1],
        VALUES[:, ::-1],
        VALUES.astype(">f4"),
        readonly(VALUES.astype(">f8"))[::-1],
        np.zeros(3, dtype=[("flag", "i1"), ("value", "<f4")])["value"],  # a stride of 5 bytes
    ],
)
def test_what_torch_cannot_express_is_copied(array):
    assert np.array_equal(to_tensor(array, "features").numpy(), array)


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensor = to_tensor(VALUES.astype(ml_dtypes.bfloat16), "features")
    assert tensor.dtype == torch.bfloat16
    assert np.array_equal(tensor.float().numpy(), VALUES)


def test_dlpack_shares_memory_and_comes_back_as_its_own_kind():
    array = OnlyDlpack(torch.from_numpy(VALUES))
    tensor = to_tensor(array, "features")
    assert tensor.data_ptr() == VALUES.ctypes.data
    back = like(array)(tensor)
    assert isinstance(back, OnlyDlpack)
    assert back.tensor is tensor


@pytest.mark.parametrize("array", [[[0, 1], [2, 3]], ((0.5, 1), (2, 3)), OnlyArray()])
def test_numbers_of_python_and_other_arrays_go_through_numpy(array):
    assert np.array_equal(to_tensor(array, "features").numpy(), np.asarray(array))
    assert isinstance(like(array)(torch.zeros(3)), np.ndarray)


def test_results_are_of_the_same_kind():
    result = torch.arange(3)
    assert like(torch.zeros(1))(result) is result
    assert isinstance(like(np.zeros(1))(result), np.ndarray)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        ("abc", TypeError, "must be an array, got str"),
        (None, TypeError, "must be an array, got NoneType"),
        (object(), TypeError, "must be an array, got object"),
        (np.array(["a"]), ValueError, "must hold real numbers or booleans, got dtype <U1"),
        (np.array([{}]), ValueError, "must hold real numbers or booleans, got dtype object"),
        (np.ones(2, complex), ValueError, "must hold real numbers or booleans, got dtype complex128"),
        (np.ones(2, np.longdouble), ValueError, r"must hold real numbers or booleans, got dtype (float128|longdouble)"),
        (np.ma.masked_equal([1, 2], 2), ValueError, "must not be a masked array; .*"),
        ([[1, 2], [3]], ValueError, r"cannot be read as an array of numbers, got list \(.*\)"),
        (["a", "b"], ValueError, "must hold real numbers or booleans, got dtype <U1"),
        (torch.eye(2).to_sparse(), ValueError, "must be a dense tensor, got layout torch.sparse_coo"),
    ],
)
def test_anything_else_is_named(array, error, message):
    with pytest.raises(error, match=f"^knn_graph: features {message}$") as raised:
        to_tensor(array, "knn_graph: features")
    assert "\n" not in str(raised.value)
