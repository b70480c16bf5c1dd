"""invariant_expansion: nested means over samples, cameras and modalities, in units of 2**-30."""

from __future__ import annotations

from functools import cache

import numpy as np
import oracles
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits
from generators import (
    csr_from_dense,
    damaged_encodings,
    edited,
    gallery,
    has_ties,
    random_encoding_rows,
    random_lists,
    row_sums,
    some_rows,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dmic
from dmic import Csr, reference
from dmic.csr import ONE

VARIANTS = ["plain", "camera", "modality", "modality_camera"]


def ids_of(variant: str, camera_ids, modality_ids) -> dict[str, np.ndarray]:
    both = {"camera": camera_ids, "modality": modality_ids}
    return {f"{name}_ids": ids for name, ids in both.items() if name in variant.split("_")}


@cache
def case(n: int, d: int, k1: int, noise: float = 0.7):
    """gallery, neighbour lists and encoding, by the reference"""
    data = gallery(n, d, seed=n, noise=noise)
    idx = reference.knn_graph(data.features, k1)[0]
    return data, idx, reference.k_reciprocal_encoding(data.features, idx, min(k1 - 1, int(np.around(k1 / 2))))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("n", "k1", "k2"), [(1, 1, 1), (2, 2, 2), (61, 61, 61), (131, 20, 6), (257, 40, 32), (257, 40, 40)]
)
def test_equals_the_reference(backend, variant, n, k1, k2):
    data, idx, encoding = case(n, 24, k1)
    ids = ids_of(variant, data.camera_ids, data.modality_ids)
    got = backend.invariant_expansion(encoding, idx, k2, **ids)
    assert_same_bits(got, reference.invariant_expansion(encoding, idx, k2, **ids).to("cpu"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("n", "k1", "k2", "noise"), [(307, 30, 6, 0.7), (307, 38, 18, 2.0), (211, 40, 32, 0.5)])
def test_agrees_with_literal_nested_means(backend, variant, n, k1, k2, noise):
    data, idx, encoding = case(n, 16, k1, noise)
    ids = ids_of(variant, data.camera_ids, data.modality_ids)
    got = backend.invariant_expansion(encoding, idx, k2, **ids).to_float().to_dense().numpy()
    want = oracles.invariant_expansion(encoding.to_float().to_dense(), idx, k2, **ids)
    # A weight floor(2**32 / share) is at most share / 2**32 too small, relatively, and so is the sum they are divided
    # by; one share is at most (k2 / 3)**3. Then every value is rounded down, and the largest takes the rest.
    relative = 2 * max(k2, (k2 / 3) ** 3) * 2.0**-32
    error = np.abs(got - want)
    largest = got == got.max(1, keepdims=True)
    nnz = (got > 0).sum(1, keepdims=True)
    assert (error[~largest] <= (oracles.UNIT + relative * want)[~largest]).all()
    assert (error <= nnz * oracles.UNIT + relative).all()


def test_the_four_variants_differ(backend):
    data, idx, encoding = case(257, 24, 40)
    results = [
        backend.invariant_expansion(encoding, idx, 32, **ids_of(variant, data.camera_ids, data.modality_ids))
        for variant in VARIANTS
    ]
    dense = [result.to_dense() for result in results]
    assert not any(torch.equal(a, b) for i, a in enumerate(dense) for b in dense[:i])


def test_cameras_and_modalities_weigh_the_same_whatever_their_size(backend):
    """Four neighbours: three of camera 0, one of camera 1; then camera 1 alone is infrared."""
    encoding = csr_from_dense(np.eye(4, dtype=np.int32) * ONE)
    idx = np.tile(np.arange(4), (4, 1))
    camera_ids = np.array([0, 0, 0, 1])
    got = backend.invariant_expansion(encoding, idx, 4, camera_ids=camera_ids).to_float().to_dense()
    assert np.allclose(got[0], [1 / 6, 1 / 6, 1 / 6, 1 / 2], rtol=0, atol=4 * oracles.UNIT)
    ids = {"camera_ids": np.array([0, 1, 1, 2]), "modality_ids": np.array([0, 0, 0, 1])}
    got = backend.invariant_expansion(encoding, idx, 4, **ids).to_float().to_dense()
    assert np.allclose(got[0], [1 / 4, 1 / 8, 1 / 8, 1 / 2], rtol=0, atol=4 * oracles.UNIT)


def test_one_camera_and_one_modality_are_the_plain_expansion(backend):
    _, idx, encoding = case(131, 24, 20)
    plain = backend.invariant_expansion(encoding, idx, 9)
    for value in (0, 5, 2**40):
        ids = np.full(131, value)
        for given_ids in ({"camera_ids": ids}, {"modality_ids": ids}, {"camera_ids": ids, "modality_ids": ids}):
            assert_same_bits(backend.invariant_expansion(encoding, idx, 9, **given_ids), plain)


def test_ids_are_names_and_may_have_gaps(backend):
    data, idx, encoding = case(131, 24, 20)
    want = backend.invariant_expansion(encoding, idx, 20, data.camera_ids, data.modality_ids)
    renamed = np.array([7, 0, 10**12, 3, 2**62, 11])[data.camera_ids], np.array([9, 2**33])[data.modality_ids]
    assert_same_bits(backend.invariant_expansion(encoding, idx, 20, *renamed), want)


def test_the_same_camera_number_in_two_modalities_is_two_cameras(backend):
    data, idx, encoding = case(131, 24, 20)
    shared_number = data.camera_ids % 2
    split = shared_number + 2 * data.modality_ids
    assert_same_bits(
        backend.invariant_expansion(encoding, idx, 20, shared_number, data.modality_ids),
        backend.invariant_expansion(encoding, idx, 20, split, data.modality_ids),
    )


def test_k2_of_one_leaves_the_encoding_as_it_is_and_shares_no_memory(backend):
    data, idx, encoding = case(131, 24, 20)
    encoding = encoding.to(backend.device)
    got = dmic.invariant_expansion(encoding, backend.put(idx), 1, data.camera_ids, data.modality_ids)
    assert_same_bits(got, encoding)
    for field in ("row_ptr", "col_idx", "values"):
        assert getattr(got, field).data_ptr() != getattr(encoding, field).data_ptr(), field


def test_only_the_first_k2_columns_count(backend):
    _, idx, encoding = case(131, 24, 20)
    want = backend.invariant_expansion(encoding, idx[:, :7], 7)
    assert_same_bits(backend.invariant_expansion(encoding, idx, 7), want)


@pytest.mark.parametrize("variant", VARIANTS)
def test_members_with_an_empty_row_do_not_count(backend, variant):
    data = gallery(97, 8, seed=3)
    dense = random_encoding_rows(97, 97, 9, seed=3)
    dense[np.random.default_rng(3).random(97) < 0.5] = 0
    encoding, idx = csr_from_dense(dense), random_lists(97, 4, seed=3)
    ids = ids_of(variant, data.camera_ids, data.modality_ids)
    got = backend.invariant_expansion(encoding, idx, 4, **ids)
    assert_same_bits(got, reference.invariant_expansion(encoding, idx, 4, **ids).to("cpu"))
    filled = dense.any(1)[idx].sum(1)
    assert set(filled) == {0, 1, 2, 3, 4}, "every number of filled members must occur"
    assert np.array_equal(row_sums(got) == 0, filled == 0)
    want = oracles.invariant_expansion(dense / ONE, idx, 4, **ids)
    assert np.allclose(got.to_float().to_dense(), want, rtol=0, atol=40 * oracles.UNIT)


def test_rows_that_fill_up_completely(backend):
    n = backend.size(193, 97)
    encoding, idx = csr_from_dense(random_encoding_rows(n, n, n // 2, seed=4)), random_lists(n, n, seed=4)
    got = backend.invariant_expansion(encoding, idx, 64)
    assert got.nnz == n * n, "every column must occur in every row"
    assert_same_bits(got, reference.invariant_expansion(encoding, idx, 64).to("cpu"))


def test_columns_far_apart(backend):
    """Rows of one value each, spread over 4096 + 32 columns."""
    n = 4096 + 32
    columns = np.random.default_rng(5).permutation(n)
    encoding = Csr(np.arange(n + 1), columns.astype(np.int32), np.full(n, ONE, np.int32), n)
    idx = random_lists(n, 3, seed=5)
    got = backend.invariant_expansion(encoding, idx, 3)
    assert_same_bits(got, reference.invariant_expansion(encoding, idx, 3).to("cpu"))
    assert np.array_equal(got.col_idx.reshape(n, 3), np.sort(columns[idx], axis=1))


def test_shares_that_round_to_zero_are_not_stored(backend):
    """One unit of weight, divided by three samples, is less than half a unit."""
    dense = np.zeros((3, 3), np.int32)
    dense[:, 0] = ONE
    dense[0, :2] = ONE - 1, 1
    got = backend.invariant_expansion(csr_from_dense(dense), np.tile(np.arange(3), (3, 1)), 3)
    assert np.array_equal(got.col_idx, [0, 0, 0])
    assert np.array_equal(got.values, [ONE] * 3)


PARTS = [slice(0, 17), slice(17, 17), slice(17, 102), slice(102, 131)]


def part_of(lists: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """The samples that some rows need, and the lists of these rows as positions among them."""
    samples = np.unique(lists[rows])
    return samples, np.searchsorted(samples, lists[rows]).astype(np.int32)


@pytest.mark.parametrize("k2", [2, 9, 20])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_put_together_are_the_whole(backend, variant, k2):
    """Each part has the rows of the encoding that it needs and no others; columns are samples of the whole gallery."""
    data, idx, encoding = case(131, 24, 20)
    ids = ids_of(variant, data.camera_ids, data.modality_ids)
    whole = backend.invariant_expansion(encoding, idx, k2, **ids)
    parts = []
    for rows in PARTS:
        samples, lists = part_of(idx, rows)
        own = {name: array[samples] for name, array in ids.items()}
        parts.append(backend.invariant_expansion(some_rows(encoding, samples), lists, k2, **own))
        assert parts[-1].shape == (len(lists), 131)
    assert len({part_of(idx, rows)[0].size for rows in PARTS}) == len(PARTS), "encodings of several sizes"
    assert_same_bits(torch.cat([part.to_dense() for part in parts]), whole.to_dense())


def test_k2_of_one_takes_the_rows_that_the_lists_of_a_part_begin_with(backend):
    _, idx, encoding = case(131, 24, 20)
    samples, lists = part_of(idx, slice(17, 102))
    got = backend.invariant_expansion(some_rows(encoding, samples), lists, 1)
    assert_same_bits(got, some_rows(encoding, idx[17:102, 0]).to("cpu"))


def test_one_sample_in_several_lists_and_none_in_others(backend):
    """More lists than rows, all about the same few."""
    encoding = csr_from_dense(random_encoding_rows(9, 9, 4, seed=6))
    lists = random_lists(7, 5, seed=6, num_lists=100)
    got = backend.invariant_expansion(encoding, lists, 4)
    assert got.shape == (100, 9)
    assert_same_bits(got, reference.invariant_expansion(encoding, lists, 4).to("cpu"))


@pytest.mark.parametrize("num_cols", [5, 8, 70_001])
def test_fewer_and_more_columns_than_rows(backend, num_cols):
    """Also as many lists as rows, which then are not what the lists are of."""
    dense = random_encoding_rows(8, num_cols, 3, seed=8)
    dense[3], dense[4] = 0, ONE * (np.arange(num_cols) == num_cols - 1)
    encoding = csr_from_dense(dense)
    for num_lists in (3, 8):
        lists = random_lists(8, 6, seed=8, num_lists=num_lists)
        for k2 in (2, 6):
            got = backend.invariant_expansion(encoding, lists, k2)
            assert_same_bits(got, reference.invariant_expansion(encoding, lists, k2).to("cpu"))
    assert got.col_idx.max() == num_cols - 1


@pytest.mark.parametrize("k2", [1, 4])
def test_a_part_without_samples_has_an_empty_expansion(backend, k2):
    _, idx, encoding = case(131, 24, 20)
    for rows in (some_rows(encoding, slice(0, 40)), some_rows(encoding, slice(0, 0))):
        got = backend.invariant_expansion(rows, idx[:0], k2)
        assert_same_bits(got, some_rows(encoding, slice(0, 0)).to("cpu"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_is_reproducible(backend, variant):
    data, idx, encoding = case(257, 24, 40)
    encoding, idx = encoding.to(backend.device), backend.put(idx)
    ids = [backend.put(a) for a in ids_of(variant, data.camera_ids, data.modality_ids).values()]
    names = ids_of(variant, 0, 0)
    assert_reproducible(
        lambda: backend.invariant_expansion(encoding, idx, 32, **dict(zip(names, ids, strict=True))),
        [encoding, idx, *ids],
        backend,
    )


def test_a_part_is_reproducible(backend):
    _, idx, encoding = case(257, 24, 40)
    samples, lists = part_of(idx, slice(30, 130))
    rows, lists = some_rows(encoding, samples).to(backend.device), backend.put(lists)
    assert_reproducible(lambda: backend.invariant_expansion(rows, lists, 32), [rows, lists], backend)


def test_strided_views_and_other_integers_equal_their_copies(backend):
    data, idx, encoding = case(131, 24, 20)
    want = backend.invariant_expansion(encoding, idx, 6, data.camera_ids, data.modality_ids)
    lists, tensors = torch.from_numpy(idx), encoding.to("cpu")
    strided = Csr(*(torch.stack([a, a], 1)[:, 0] for a in (tensors.row_ptr, tensors.col_idx, tensors.values)), 131)
    assert not strided.values.is_contiguous()
    cameras, modalities = torch.from_numpy(data.camera_ids), torch.from_numpy(data.modality_ids)
    for args in (
        (strided, lists, 6, cameras, modalities),
        (tensors, lists.T.contiguous().T, 6, cameras.int(), modalities.to(torch.uint8)),
        (tensors, lists.long()[:, :6], 6, torch.stack([cameras, cameras], 1)[:, 0], modalities.to(torch.int8)),
    ):
        assert_same_bits(backend.invariant_expansion(*args), want)


def test_results_come_back_as_the_kind_that_went_in(backend):
    _, idx, encoding = case(131, 24, 20)
    for rows, kind in ((encoding, np.ndarray), (encoding.to("cpu"), torch.Tensor)):
        got = dmic.invariant_expansion(rows, idx, 3)
        assert all(isinstance(a, kind) for a in (got.row_ptr, got.col_idx, got.values))
    assert dmic.invariant_expansion(encoding.to(backend.device), idx, 3).values.device.type == backend.device


@pytest.mark.parametrize("k2", [1, 3])
def test_no_samples_have_an_empty_expansion(backend, k2):
    empty = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), 0)
    ids = np.zeros(0, np.int64)
    got = backend.invariant_expansion(empty, np.zeros((0, 5), np.int32), k2, ids, ids)
    assert_same_bits(got, empty.to("cpu"))


DATA, LISTS, ENCODING = case(32, 6, 8)


@pytest.mark.parametrize(("encoding", "parts"), damaged_encodings(ENCODING))
def test_bad_encodings_are_refused(encoding, parts):
    assert_refused(lambda: dmic.invariant_expansion(encoding, LISTS, 3), "invariant_expansion", *parts)


CAMERAS = DATA.camera_ids


@pytest.mark.parametrize(
    ("neighbor_idx", "k2", "ids", "parts"),
    [
        (edited(LISTS, (7, 2), LISTS[7, 1]), 3, {}, ["neighbor_idx", "distinct", "row 7"]),
        (LISTS, 0, {}, ["k2", "0"]),
        (LISTS, -1, {}, ["k2", "-1"]),
        (LISTS, 9, {}, ["k2", "9", "8"]),
        (LISTS, 2.5, {}, ["k2", "2.5"]),
        (LISTS[0], 3, {}, ["neighbor_idx", "[8]"]),
        (LISTS.astype(np.float64), 3, {}, ["neighbor_idx", "float64"]),
        (edited(LISTS, (9, 2), 32), 3, {}, ["neighbor_idx", "32", "9"]),
        (edited(LISTS, (9, 2), -1), 3, {}, ["neighbor_idx", "-1"]),
        (LISTS, 3, {"camera_ids": CAMERAS[:31]}, ["camera_ids", "31"]),
        (LISTS, 3, {"camera_ids": CAMERAS[:, None]}, ["camera_ids", "[32, 1]"]),
        (LISTS, 3, {"camera_ids": CAMERAS.astype(np.float32)}, ["camera_ids", "float32"]),
        (LISTS, 3, {"camera_ids": edited(CAMERAS, 8, -2)}, ["camera_ids", "-2"]),
        (LISTS, 3, {"modality_ids": edited(CAMERAS, 8, -1)}, ["modality_ids", "-1"]),
        (LISTS, 3, {"modality_ids": CAMERAS[:5]}, ["modality_ids", "5"]),
        (LISTS, 1, {"modality_ids": CAMERAS[:5]}, ["modality_ids", "5"]),
        (LISTS[:9], 3, {"modality_ids": CAMERAS[:9]}, ["modality_ids", "one id per sample (32)", "9"]),
        (LISTS[:9], 9, {}, ["k2", "9", "8"]),
        (edited(LISTS[:9], (8, 7), 32), 3, {}, ["neighbor_idx", "32", "row 8", "N=32"]),
    ],
)
def test_bad_arguments_are_named(neighbor_idx, k2, ids, parts):
    run = lambda: dmic.invariant_expansion(ENCODING, neighbor_idx, k2, **ids)  # noqa: E731
    assert_refused(run, "invariant_expansion", *parts)


PART = some_rows(ENCODING, slice(0, 20))


@pytest.mark.parametrize(
    ("num_cols", "parts"),
    [
        (int(PART.col_idx.max()), ["col_idx", f"[0, {PART.col_idx.max()})", "row"]),
        (0, ["col_idx", "[0, 0)"]),
        (-1, ["num_cols", "-1"]),
        (2**31, ["num_cols", str(2**31)]),
        (32.0, ["num_cols", "32.0"]),
    ],
)
def test_a_wrong_number_of_columns_is_refused(backend, num_cols, parts):
    rows = Csr(PART.row_ptr, PART.col_idx, PART.values, num_cols)
    lists = random_lists(20, 4)
    assert_refused(lambda: backend.invariant_expansion(rows, lists, 3), "invariant_expansion", *parts)


def test_a_row_that_a_part_does_not_have_is_refused(backend):
    """One of the gallery, but not of these 20."""
    lists = edited(random_lists(20, 4), (7, 1), 25)
    assert_refused(lambda: backend.invariant_expansion(PART, lists, 3), "invariant_expansion", "25", "row 7", "N=20")


def test_something_else_than_a_csr_is_a_type_error():
    with pytest.raises(TypeError, match=r"invariant_expansion: encoding must be a .*Csr, got ndarray"):
        dmic.invariant_expansion(ENCODING.to_dense(), LISTS, 3)


def test_the_raw_op_checks_its_arguments_too(backend):
    parts = tuple(backend.put(a) for a in (ENCODING.row_ptr, ENCODING.col_idx, ENCODING.values))
    lists, ids = backend.put(LISTS), backend.put(CAMERAS)
    for args in (
        (lists.long(), 3),
        (lists, 9),
        (lists, 3, ids.int()),
        (lists, 3, ids, ids[:3]),
        (lists, 3, ids, ids, -2),
        (lists, 3, ids, ids, 2**31),
    ):
        assert_refused(lambda args=args: backend.raw.invariant_expansion(*parts, *args), "invariant_expansion")


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck(backend):
    parts = tuple(backend.put(a) for a in (ENCODING.row_ptr, ENCODING.col_idx, ENCODING.values))
    lists, cameras, modalities = (backend.put(a) for a in (LISTS, DATA.camera_ids, DATA.modality_ids))
    for args in (
        (lists, 3),
        (lists, 1),
        (lists, 3, cameras, modalities),
        (lists[:, ::2], 2, None, modalities),
        (lists[:7], 3, cameras, None, 40),
    ):
        torch.library.opcheck(torch.ops.dmic.invariant_expansion, (*parts, *args))


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_compiles(backend, dynamic_shapes):
    parts = tuple(backend.put(a) for a in (ENCODING.row_ptr, ENCODING.col_idx, ENCODING.values))

    def doubled_weights(row_ptr, col_idx, values, idx, cameras):
        row_ptr, _, values = torch.ops.dmic.invariant_expansion(row_ptr, col_idx, values, idx, 4, cameras)
        return row_ptr, values * 2

    compiled = torch.compile(doubled_weights, fullgraph=True, backend="aot_eager")
    args = (*parts, backend.put(LISTS), backend.put(CAMERAS))
    assert_same_bits(compiled(*args), doubled_weights(*args))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_any_small_encoding_equals_the_reference_and_rows_sum_to_one(n, seed, data):
    k1 = data.draw(st.integers(1, n))
    k2 = data.draw(st.integers(1, k1))
    rng = np.random.default_rng(seed)
    dense = random_encoding_rows(n, n, data.draw(st.integers(1, n)), seed)
    dense[rng.random(n) < data.draw(st.sampled_from([0.0, 0.3]))] = 0
    encoding, idx = csr_from_dense(dense), random_lists(n, k1, seed)
    ids = ids_of(data.draw(st.sampled_from(VARIANTS)), rng.integers(0, 9, n), rng.integers(0, 3, n))
    got = dmic.invariant_expansion(encoding, idx, k2, **ids)
    assert_same_bits(got, reference.invariant_expansion(encoding, idx, k2, **ids))
    assert set(row_sums(got).tolist()) <= {0, ONE}


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(1, 90), st.integers(0, 10**6), st.data())
def test_any_part_equals_the_reference(n, num_lists, num_cols, seed, data):
    k1 = data.draw(st.integers(1, n))
    k2 = data.draw(st.integers(1, k1))
    rng = np.random.default_rng(seed)
    encoding = csr_from_dense(random_encoding_rows(n, num_cols, data.draw(st.integers(1, num_cols)), seed))
    lists = random_lists(n, k1, seed, num_lists + 1)[:num_lists]
    ids = ids_of(data.draw(st.sampled_from(VARIANTS)), rng.integers(0, 9, n), rng.integers(0, 3, n))
    got = dmic.invariant_expansion(encoding, lists, k2, **ids)
    assert_same_bits(got, reference.invariant_expansion(encoding, lists, k2, **ids))


@settings(max_examples=20)
@given(st.integers(4, 60), st.integers(0, 10**6), st.sampled_from(VARIANTS))
def test_permuting_the_samples_permutes_the_result(n, seed, variant):
    data = gallery(n, 9, seed)
    assume(not has_ties(data.features))
    order = np.random.default_rng(seed).permutation(n)
    k1, k2 = max(2, n // 3), max(2, n // 4)

    def expand(features, camera_ids, modality_ids):
        idx = dmic.knn_graph(features, k1)[0]
        encoding = dmic.k_reciprocal_encoding(features, idx, k1 // 2)
        return dmic.invariant_expansion(encoding, idx, k2, **ids_of(variant, camera_ids, modality_ids)).to_dense()

    first = expand(data.features, data.camera_ids, data.modality_ids)
    second = expand(data.features[order], data.camera_ids[order], data.modality_ids[order])
    want = first[np.ix_(order, order)]
    assert_same_bits(np.sort(second, axis=1), np.sort(want, axis=1))
    ranked = np.sort(want, axis=1)
    tied = ranked[:, -1] - ranked[:, -2] < (want > 0).sum(1)  # the rest went to the lowest of several columns
    assert_same_bits(second[~tied], want[~tied])
