"""Rows of features from memory and from files: parts of parts, and every file that is none."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmic import feature_rows
from dmic.feature_rows import FeatureRows

VALUES = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(params=["memory", ".npy", ".safetensors"])
def given(request, tmp_path):
    """What `FeatureRows.of` takes for some values."""

    def give(values: torch.Tensor):
        if request.param == "memory":
            return values
        path = tmp_path / f"features{request.param}"
        if request.param == ".npy" and values.dtype == torch.bfloat16:
            pytest.skip("numpy has no bfloat16")
        elif request.param == ".npy":
            np.save(path, values.numpy())
        else:
            save_file({"before": torch.ones(7), "features": values}, path, metadata={"by": "a test"})
        return path

    return give


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_of_a_part_has_its_rows_and_names_them_by_the_whole(given, dtype, monkeypatch):
    monkeypatch.setattr(feature_rows, "PIECE_BYTES", 1)  # a row at a time
    values = VALUES.to(dtype).clone()
    part = FeatureRows.of("test", given(values)).part(5, 15).part(2, 9)
    assert part.shape == (7, 3)
    assert torch.equal(part.read(1, 5), values[8:12].float())
    assert part.read(3, 3).shape == (0, 3)
    out = torch.empty(4, 3)
    assert part.read(1, 5, out) is out
    assert torch.equal(out, values[8:12].float())
    values[10, 1] = torch.inf
    part = FeatureRows.of("test", given(values)).part(5, 15).part(2, 9)
    with pytest.raises(ValueError, match=r"features must be finite in float32, got inf at row 10, column 1$"):
        part.read(1, 5)
    assert torch.equal(part.read(0, 3), values[7:10].float())


def test_rows_without_columns_are_empty(given):
    for dtype in (torch.float32, torch.float64):
        rows = FeatureRows.of("test", given(torch.empty(4, 0, dtype=dtype)))
        assert rows.read(1, 4).shape == (3, 0)
        assert rows.read(1, 4).dtype == torch.float32


def test_rows_of_memory_are_side_by_side_and_views_where_they_can_be():
    assert FeatureRows.of("test", VALUES).read(2, 5).data_ptr() == VALUES[2].data_ptr()
    turned = FeatureRows.of("test", VALUES.T.contiguous().T).read(2, 5)
    assert turned.is_contiguous()
    assert torch.equal(turned, VALUES[2:5])


def test_a_device_is_taken_over_unless_another_is_given(tmp_path):
    np.save(tmp_path / "features.npy", VALUES.numpy())
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for source in (VALUES, tmp_path / "features.npy"):
        assert FeatureRows.of("test", source).device == cpu
        rows = FeatureRows.of("test", source, gpu)
        assert rows.device == FeatureRows.of("test", rows).device == gpu
        assert FeatureRows.of("test", rows, cpu).device == rows.on_host().device == cpu


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (torch.ones(3, dtype=torch.float32), "float32 of shape (3,)"),
        (torch.ones(3, 2, dtype=torch.int64), "int64 of shape (3, 2)"),
    ],
)
def test_other_arrays_are_refused(values, got):
    with pytest.raises(ValueError) as found:
        FeatureRows.of("test", values)
    assert str(found.value) == f"test: features must be floating point [N, d], got {got}"


def npy(values: np.ndarray, cut: int = 0):
    def write(path):
        np.save(path, values)
        path.write_bytes(path.read_bytes()[: -cut or None])

    return ".npy", write


def safetensors(header: object, length: int | None = None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    data = struct.pack("<Q", len(text) if length is None else length) + text + bytes(24)
    return ".safetensors", lambda path: path.write_bytes(data)


def entry(shape=(3, 2), dtype="F32", begin=0):
    return {"features": {"dtype": dtype, "shape": shape, "data_offsets": [begin, 24]}, "__metadata__": {"a": "b"}}


ONES = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (npy(ONES[0]), "features must have shape [N, d], got (2,)"),
        (npy(ONES.astype(">f4")), "features must be float32, float16 or float64, got >f4"),
        (npy(ONES.astype(bool)), "features must be float32, float16 or float64, got bool"),
        (
            npy(np.asfortranarray(ONES)),
            "features must be stored in rows (C order); save numpy.ascontiguousarray of them",
        ),
        (npy(ONES, 1), "not a readable .npy file ("),
        ((".npy", lambda path: path.write_bytes(b"no array")), "not a readable .npy file ("),
        ((".npy", lambda path: None), "No such file or directory"),
        ((".safetensors", lambda path: None), "No such file or directory"),
        ((".safetensors", lambda path: path.mkdir()), "Is a directory"),
        ((".safetensors", lambda path: path.write_bytes(b"short")), "not a readable .safetensors file ("),
        (safetensors(entry(), 10**15), "not a readable .safetensors file (a header of 1000000000000000 bytes)"),
        (safetensors(b"{"), "not a readable .safetensors file ("),
        (safetensors(b"5"), "not a readable .safetensors file (a header that is no table)"),
        (safetensors({"b": 1, "a": 2, "__metadata__": {}}), "there is no key 'features', only a, b"),
        (safetensors({"__metadata__": {}}), "there is no key 'features', only nothing"),
        (safetensors(entry(dtype="I32")), "features must be one of F32, F16, BF16, F64, got I32"),
        (safetensors(entry((3, 2, 1))), "features must have shape [N, d], got (3, 2, 1)"),
        (safetensors(entry((3, 3))), "bytes, too few for features of shape (3, 3); it is truncated"),
        (safetensors(entry(begin=1)), "bytes, too few for features of shape (3, 2); it is truncated"),
        (
            (".bin", lambda path: None),
            "to read features block by block the extension must be one of .npy, .safetensors",
        ),
    ],
)
def test_a_file_that_holds_no_features_is_named(tmp_path, kind, said):
    suffix, write = kind
    path = tmp_path / f"features{suffix}"
    write(path)
    with pytest.raises(ValueError) as found:
        FeatureRows.of("test", path)
    assert str(found.value).startswith(f"{path}: ")
    assert said in str(found.value)


def test_a_file_that_just_holds_them_is_read(tmp_path):
    suffix, write = safetensors(entry())
    write(tmp_path / f"features{suffix}")
    assert torch.equal(FeatureRows.of("test", tmp_path / f"features{suffix}").read(0, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path, dtype):
    path = tmp_path / "features.npy"
    np.save(path, VALUES.to(dtype).numpy())
    rows = FeatureRows.of("test", path).part(10, 20)
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(rows.read(0, 9), VALUES[10:19])
    with pytest.raises(ValueError, match=r"features\.npy: ends before row 20; it is truncated$"):
        rows.read(0, 10)
