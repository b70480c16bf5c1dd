"""jaccard_distance: J of all pairs within a distance, from integer overlaps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import oracles
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits
from generators import (
    csr_from_dense,
    damaged_encodings,
    duplicated_features,
    edited,
    gallery,
    random_encoding_rows,
    some_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import dmic
from dmic import Csr, reference
from dmic.csr import ONE


@cache
def expanded(n: int, k1: int, k2: int, noise: float = 0.7) -> Csr:
    """The modality-camera-invariant encoding of a gallery, by the reference."""
    data = gallery(n, 24, seed=n, noise=noise)
    idx = reference.knn_graph(data.features, k1)[0]
    encoding = reference.k_reciprocal_encoding(data.features, idx, min(k1 - 1, int(np.around(k1 / 2))))
    return reference.invariant_expansion(encoding, idx, k2, data.camera_ids, data.modality_ids)


def within(distance: Csr, max_distance: float) -> Csr:
    """What a user gets by comparing the stored distances."""
    rows = distance.numpy()
    keep = rows.values <= np.float32(max_distance)
    row_ptr = np.concatenate([[0], np.cumsum(keep)])[rows.row_ptr]
    return Csr(row_ptr, rows.col_idx[keep], rows.values[keep], rows.num_cols).to("cpu")


CASES = [(1, 1, 1, 0.7), (2, 2, 2, 0.7), (61, 61, 20, 0.7), (131, 20, 6, 0.7), (193, 40, 32, 0.7), (149, 30, 18, 3.0)]
EMULATED_CASES = {  # with rows as long for their number
    (193, 40, 32, 0.7): (90, 40, 32, 0.7),
    (149, 30, 18, 3.0): (80, 30, 18, 3.0),
    (401, 30, 6, 0.7): (150, 30, 6, 0.7),
    (401, 40, 32, 0.7): (90, 40, 32, 0.7),
    (257, 40, 32, 0.7): (90, 40, 32, 0.7),
    (257, 40, 32, 3.0): (80, 40, 32, 3.0),
}


def cut(encoding: Csr, at: int) -> tuple[Csr, Csr]:
    """Rows before and from there on."""
    return some_rows(encoding, slice(0, at)), some_rows(encoding, slice(at, encoding.num_rows))


def expanded_for(backend, case: tuple) -> Csr:
    return expanded(*backend.size(case, EMULATED_CASES.get(case, case)))


@pytest.mark.parametrize("max_distance", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(backend, case, max_distance):
    encoding = expanded_for(backend, case)
    got = backend.jaccard_distance(encoding, max_distance)
    assert_same_bits(got, reference.jaccard_distance(encoding, max_distance).to("cpu"))


@pytest.mark.parametrize("case", [(401, 30, 6, 0.7), (401, 40, 32, 0.7), (257, 40, 32, 3.0)])
def test_agrees_with_dense_float64_sums(backend, case):
    encoding = expanded_for(backend, case)
    want, overlap = oracles.jaccard_distance(encoding.to_float().to_dense())
    got = backend.jaccard_distance(encoding, 1.0)
    assert np.array_equal(got.to_dense(fill_value=2) != 2, overlap > 0), "exactly the pairs that overlap are stored"
    # Every float64 overlap is exact (30-bit fractions); the formula in float64 costs a few 2**-53, then one rounding.
    error = np.abs(got.to_dense(fill_value=1).numpy() - want)
    assert (error <= oracles.FLOAT32_ROUNDING * want + 8 * 2.0**-53).all()


@pytest.mark.parametrize("case", [(401, 30, 6, 0.7), (401, 40, 32, 0.7), (257, 40, 32, 3.0), (61, 61, 20, 0.7)])
def test_a_smaller_radius_gives_exactly_the_pairs_that_compare_as_near(backend, case):
    """At every distance that occurs, just below it and just above it: bounds that prune must never be off by one."""
    encoding = expanded_for(backend, case)
    everything = backend.jaccard_distance(encoding, 1.0)
    occurring = np.unique(everything.values.numpy())
    some = occurring[np.linspace(0, len(occurring) - 1, backend.size(12, 5)).astype(int)]
    for value in some:
        for radius in (np.nextafter(value, np.float32(-1)), value, np.nextafter(value, np.float32(2))):
            if 0 <= radius <= 1:
                got = backend.jaccard_distance(encoding, float(radius))
                assert_same_bits(got, within(everything, radius), f"max_distance={radius!r}")


def test_the_radius_is_rounded_to_float32(backend):
    encoding = expanded(131, 20, 6)
    everything = backend.jaccard_distance(encoding, 1.0)
    value = float(everything.values[everything.values > 0.3].min())
    for radius in (value - 1e-12, value, value + 1e-12):
        assert_same_bits(backend.jaccard_distance(encoding, radius), within(everything, value))


@pytest.mark.parametrize("case", CASES)
def test_is_symmetric_with_a_zero_diagonal(backend, case):
    distance = backend.jaccard_distance(expanded_for(backend, case), 0.8)
    dense = distance.to_dense(fill_value=9)
    assert torch.equal(dense, dense.T)
    assert (dense.diagonal() == 0).all()
    distance.validate()


def test_long_rows_and_crowded_columns(backend):
    """Rows that fill two thirds of the columns: every pair overlaps, and none is near."""
    n = backend.size(300, 90)
    dense = random_encoding_rows(n, n, 2 * n // 3, seed=1)
    encoding = csr_from_dense(dense)
    everything = backend.jaccard_distance(encoding, 1.0)
    assert everything.nnz == n * n, "every pair must overlap"
    overlap = np.stack([np.minimum(row, dense).sum(1, dtype=np.int64) for row in dense])
    want = np.vectorize(reference.jaccard)(overlap).astype(np.float32)
    assert_same_bits(everything.to_dense(), want)
    for radius in (0.3, 0.5, 0.7, 0.9):
        assert_same_bits(backend.jaccard_distance(encoding, radius), within(everything, radius))


def test_one_column_in_all_rows_and_equal_weights(backend):
    """All mass bounds tie: column 0 holds half of every row, three other columns the rest."""
    n = 211
    dense = np.zeros((n, n), np.int32)
    dense[:, 0] = ONE // 2
    rng = np.random.default_rng(2)
    for row in dense:
        row[1 + rng.choice(20, 4, replace=False)] = ONE // 8
    encoding = csr_from_dense(dense)
    everything = backend.jaccard_distance(encoding, 1.0)
    assert len(everything.values.unique()) == 5, "overlaps of 4 to 8 eighths"
    for radius in everything.values.unique().tolist():
        assert_same_bits(backend.jaccard_distance(encoding, radius), within(everything, radius))
    assert_same_bits(everything, reference.jaccard_distance(encoding, 1.0).to("cpu"))


def test_equal_rows_are_at_distance_zero_and_the_only_ones_within_zero(backend):
    dense = random_encoding_rows(120, 120, 6, seed=3)
    dense[::4] = dense[0]
    distance = backend.jaccard_distance(csr_from_dense(dense), 0.0)
    equal = (dense[:, None] == dense[None]).all(2)
    assert np.array_equal(distance.to_dense(fill_value=1) == 0, equal)
    assert (distance.values == 0).all()
    assert distance.nnz == equal.sum()


def test_one_unit_of_difference_is_not_zero(backend):
    dense = np.zeros((2, 2), np.int32)
    dense[0] = ONE // 2, ONE // 2
    dense[1] = ONE // 2 + 1, ONE // 2 - 1
    assert backend.jaccard_distance(csr_from_dense(dense), 0.0).nnz == 2
    distance = backend.jaccard_distance(csr_from_dense(dense), 1e-8).to_dense()
    assert_same_bits(distance[0, 1], reference.jaccard(ONE - 1))
    assert distance[0, 1] > 0


def test_one_unit_of_overlap_is_stored_with_distance_one(backend):
    dense = np.array([[ONE - 1, 1, 0], [0, 1, ONE - 1], [0, 0, ONE]], np.int32)
    distance = backend.jaccard_distance(csr_from_dense(dense), 1.0)
    near = float(reference.jaccard(ONE - 1))
    assert np.array_equal(distance.to_dense(fill_value=7), [[0, 1, 7], [1, 0, near], [7, near, 0]])


def test_rows_without_common_columns_are_not_stored(backend):
    distance = backend.jaccard_distance(csr_from_dense(np.eye(50, dtype=np.int32) * ONE), 1.0)
    assert np.array_equal(distance.row_ptr, np.arange(51))
    assert np.array_equal(distance.col_idx, np.arange(50))


def test_empty_rows_have_no_distances_not_even_to_themselves(backend):
    features, _ = duplicated_features(200, 16, copies=50, seed=4)
    idx = reference.knn_graph(features, 10)[0]
    encoding = reference.k_reciprocal_encoding(features, idx, 5)
    empty = np.flatnonzero(np.diff(encoding.row_ptr) == 0)
    assert len(empty) == 40, "the copies beyond k1 must have empty rows"
    distance = backend.jaccard_distance(encoding, 1.0)
    assert_same_bits(distance, reference.jaccard_distance(encoding, 1.0).to("cpu"))
    assert np.array_equal(np.flatnonzero(np.diff(distance.row_ptr) == 0), empty)


@pytest.mark.parametrize("max_distance", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("case", [(131, 20, 6, 0.7), (131, 20, 6, 3.0), (193, 40, 32, 0.7)])
def test_parts_joined_with_themselves_and_each_other_are_the_whole(backend, case, max_distance):
    """Rows of two parts one after the other, as a machine has them; columns are samples of the whole gallery."""
    encoding = expanded_for(backend, case)
    whole = backend.jaccard_distance(encoding, max_distance)
    n = encoding.num_rows
    parts = [slice(0, 17), slice(17, 17), slice(17, 62), slice(62, n)]
    dense, stored = torch.full((n, n), 9.0), 0
    for place, rows in enumerate(parts):
        alone = backend.jaccard_distance(some_rows(encoding, rows), max_distance)
        dense[rows, rows] = alone.to_dense(fill_value=9)
        stored += alone.nnz
        for others in parts[:place]:
            split, size = rows.stop - rows.start, rows.stop - rows.start + others.stop - others.start
            partners = some_rows(encoding, others)
            pairs = backend.jaccard_distance(some_rows(encoding, rows), max_distance, partners=partners)
            assert pairs.shape == (size, size)
            both = pairs.validate().to_dense(fill_value=9)
            assert torch.equal(both, both.T)
            assert (both[:split, :split] == 9).all()
            assert (both[split:, split:] == 9).all()
            dense[rows, others], dense[others, rows] = both[:split, split:], both[split:, :split]
            stored += pairs.nnz
    assert_same_bits(dense, whole.to_dense(fill_value=9))
    assert stored == whole.nnz


@pytest.mark.parametrize("max_distance", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_partners_equal_the_reference(backend, case, max_distance):
    encoding = expanded_for(backend, case)
    n = encoding.num_rows
    for split in sorted({0, 1, n // 3 + 1, max(1, n - 1), n}):
        rows, partners = cut(encoding, split)
        got = backend.jaccard_distance(rows, max_distance, partners=partners)
        want = reference.jaccard_distance(rows, max_distance, partners)
        assert_same_bits(got, want.to("cpu"), f"the first {split} rows and the others")
        if split in (0, n):
            assert (got.shape, got.nnz) == ((n, n), 0), "one side has no rows"


@pytest.mark.parametrize("split", [None, 3, 8])
@pytest.mark.parametrize("num_cols", [5, 70_001])
def test_fewer_and_more_columns_than_rows(backend, num_cols, split):
    dense = random_encoding_rows(8, num_cols, 4, seed=8)
    dense[4], dense[1] = 0, dense[6]
    dense[2] = dense[5] = ONE * (np.arange(num_cols) == num_cols - 1)
    encoding = csr_from_dense(dense)
    for max_distance in (0.0, 0.7, 1.0):
        rows, partners = (encoding, None) if split is None else cut(encoding, split)
        got = backend.jaccard_distance(rows, max_distance, partners=partners)
        assert_same_bits(got, reference.jaccard_distance(rows, max_distance, partners).to("cpu"))
        assert (got.to_dense(fill_value=9)[2, 5] == 0) == (split != 8)


def test_partners_of_long_rows_and_crowded_columns(backend):
    dense = random_encoding_rows(40, 200, 120, seed=1)
    encoding = csr_from_dense(dense)
    everything = backend.jaccard_distance(encoding, 1.0).to_dense(fill_value=9)
    for split in (1, 15, 39):
        want = everything.clone()
        want[:split, :split] = want[split:, split:] = 9
        for radius in (0.3, 0.45, 0.5, 1.0):
            rows, partners = cut(encoding, split)
            got = backend.jaccard_distance(rows, radius, partners=partners).to_dense(fill_value=9)
            assert_same_bits(got, torch.where(want <= radius, want, 9.0), f"split={split}, max_distance={radius}")


@pytest.mark.parametrize("side", [slice(0, 25), slice(25, 60)])
def test_a_side_of_empty_rows_has_no_pairs(backend, side):
    dense = edited(expanded(61, 61, 20).to_dense(), side, 0)
    rows, partners = cut(csr_from_dense(dense[:60]), 25)
    got = backend.jaccard_distance(rows, 1.0, partners=partners)
    assert (got.shape, got.nnz) == ((60, 60), 0)


@pytest.mark.parametrize("alone", [True, False])
def test_no_rows_have_no_pairs(backend, alone):
    empty = csr_from_dense(np.zeros((0, 9), np.int32))
    got = backend.jaccard_distance(empty, 1.0, partners=None if alone else empty)
    assert (got.shape, got.nnz) == ((0, 0), 0)


def test_rows_as_their_own_partners_have_every_pair_twice_and_the_diagonal(backend):
    encoding = expanded(61, 61, 20)
    n, once = encoding.num_rows, backend.jaccard_distance(encoding, 0.8).to_dense(fill_value=9)
    both = backend.jaccard_distance(encoding, 0.8, partners=encoding).to_dense(fill_value=9)
    assert_same_bits(both[:n, n:], once)
    assert_same_bits(both[n:, :n], once)


@pytest.mark.parametrize("max_distance", [0.6, 1.0])
def test_partners_are_reproducible(backend, max_distance):
    whole = expanded(131, 20, 6)
    rows, partners = (some_rows(whole, part).to(backend.device) for part in (slice(20, 60), slice(60, 120)))
    run = lambda: backend.jaccard_distance(rows, max_distance, partners=partners)  # noqa: E731
    assert_reproducible(run, [rows, partners], backend)


@pytest.mark.parametrize("max_distance", [0.6, 1.0])
@pytest.mark.parametrize("case", [(257, 40, 32, 0.7), (257, 40, 32, 3.0)])
def test_is_reproducible(backend, case, max_distance):
    encoding = expanded_for(backend, case).to(backend.device)
    assert_reproducible(lambda: backend.jaccard_distance(encoding, max_distance), [encoding], backend)


def test_more_rows_than_any_block(backend):
    """4096 + 32 rows in groups of 8 with equal encodings, 3 columns each."""
    n = 4096 + 32
    group = np.random.default_rng(5).permutation(n) // 8
    columns = np.sort((group[:, None] * 8 + [0, 3, 5]), axis=1).astype(np.int32)
    values = np.tile(np.array([ONE // 2, ONE // 4, ONE // 4], np.int32), n)
    distance = backend.jaccard_distance(Csr(3 * np.arange(n + 1), columns.ravel(), values, n), 0.6)
    assert np.array_equal(distance.row_ptr, 8 * np.arange(n + 1))
    assert np.array_equal(group[distance.col_idx].reshape(n, 8), np.repeat(group, 8).reshape(n, 8))
    assert (distance.values == 0).all()


def test_strided_arrays_equal_their_copies(backend):
    encoding = expanded(131, 20, 6).to("cpu")
    strided = Csr(*(torch.stack([a, a], 1)[:, 0] for a in (encoding.row_ptr, encoding.col_idx, encoding.values)), 131)
    assert not strided.values.is_contiguous()
    assert_same_bits(backend.jaccard_distance(strided, 0.6), backend.jaccard_distance(encoding, 0.6))


def test_results_come_back_as_the_kind_that_went_in(backend):
    encoding = expanded(61, 61, 20)
    for rows, kind in ((encoding, np.ndarray), (encoding.to("cpu"), torch.Tensor)):
        got = dmic.jaccard_distance(rows, 0.5)
        assert all(isinstance(a, kind) for a in (got.row_ptr, got.col_idx, got.values))
    assert dmic.jaccard_distance(encoding.to(backend.device), 0.5).values.device.type == backend.device


def test_no_samples_have_no_distances(backend):
    empty = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), 0)
    got = backend.jaccard_distance(empty, 0.6)
    assert (got.shape, got.nnz, got.values.dtype) == ((0, 0), 0, torch.float32)


@pytest.mark.parametrize("max_distance", [0.0, 1.0])
def test_only_empty_rows_have_no_distances(backend, max_distance):
    empty = Csr(np.zeros(8, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), 7)
    got = backend.jaccard_distance(empty, max_distance)
    assert (got.shape, got.nnz) == ((7, 7), 0)


ENCODING = expanded(32, 8, 3)


@pytest.mark.parametrize(("encoding", "parts"), damaged_encodings(ENCODING))
def test_bad_encodings_are_refused(encoding, parts):
    assert_refused(lambda: dmic.jaccard_distance(encoding, 0.6), "jaccard_distance", *parts)


@pytest.mark.parametrize("max_distance", [-0.1, 1.1, np.nan, np.inf, -np.inf])
def test_a_radius_out_of_range_is_refused(max_distance):
    run = lambda: dmic.jaccard_distance(ENCODING, max_distance)  # noqa: E731
    assert_refused(run, "jaccard_distance", "max_distance", str(max_distance))


@pytest.mark.parametrize("max_distance", [None, [0.5]])
def test_a_radius_that_is_no_number_is_refused(max_distance):
    with pytest.raises((TypeError, ValueError), match="jaccard_distance: max_distance"):
        dmic.jaccard_distance(ENCODING, max_distance)


PART = some_rows(ENCODING, slice(0, 20))


def test_partners_with_other_columns_are_refused(backend):
    run = lambda: backend.jaccard_distance(ENCODING, 0.5, partners=replace(PART, num_cols=33))  # noqa: E731
    assert_refused(run, "jaccard_distance", "partners must have as many columns as encoding", "33 and 32")


def test_partners_that_are_no_csr_are_refused(backend):
    with pytest.raises(TypeError, match=r"^jaccard_distance: partners must be a dmic\.Csr, got int$"):
        backend.jaccard_distance(ENCODING, 0.5, partners=3)


@pytest.mark.parametrize(("partners", "parts"), damaged_encodings(ENCODING))
def test_damaged_partners_are_refused(backend, partners, parts):
    run = lambda: backend.jaccard_distance(ENCODING, 0.5, partners=partners)  # noqa: E731
    assert_refused(run, "jaccard_distance", "partners", *parts)


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
    assert_refused(lambda: backend.jaccard_distance(rows, 0.5), "jaccard_distance", *parts)


def test_something_else_than_a_csr_is_a_type_error():
    with pytest.raises(TypeError, match=r"jaccard_distance: encoding must be a .*Csr, got ndarray"):
        dmic.jaccard_distance(ENCODING.to_dense(), 0.6)


def test_the_raw_op_checks_its_arguments_too(backend):
    row_ptr, col_idx, values = (backend.put(a) for a in (ENCODING.row_ptr, ENCODING.col_idx, ENCODING.values))
    for args in ((row_ptr.int(), col_idx, values, 0.5), (row_ptr, col_idx, values.float(), 0.5)):
        assert_refused(lambda args=args: backend.raw.jaccard_distance(*args), "jaccard_distance")
    ints, floats = (row_ptr, col_idx, values), (row_ptr, col_idx, values.float())
    others = ((*ints, -2), (*ints, 2**31), (row_ptr, None, values), (None, col_idx, None), floats)
    for args in ((2.0,), *((0.5, -1, *partners) for partners in others)):
        assert_refused(
            lambda args=args: backend.raw.jaccard_distance(row_ptr, col_idx, values, *args), "jaccard_distance"
        )


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck(backend):
    parts = tuple(backend.put(a) for a in (ENCODING.row_ptr, ENCODING.col_idx, ENCODING.values))
    for max_distance in (0.5, 1.0):
        torch.library.opcheck(torch.ops.dmic.jaccard_distance, (*parts, max_distance))
        torch.library.opcheck(torch.ops.dmic.jaccard_distance, (*parts, max_distance, -1, *parts, 40))


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_compiles(backend, dynamic_shapes):
    parts = tuple(backend.put(a) for a in (ENCODING.row_ptr, ENCODING.col_idx, ENCODING.values))

    def similarities(row_ptr, col_idx, values):
        row_ptr, _, distances = torch.ops.dmic.jaccard_distance(row_ptr, col_idx, values, 0.7)
        return row_ptr, 1 - distances

    compiled = torch.compile(similarities, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(*parts), similarities(*parts))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 10**6), st.floats(0, 1, width=32), st.data())
def test_any_small_encoding_equals_the_reference_and_is_symmetric(n, seed, max_distance, data):
    dense = random_encoding_rows(n, n, data.draw(st.integers(1, n)), seed)
    dense[np.random.default_rng(seed).random(n) < data.draw(st.sampled_from([0.0, 0.3]))] = 0
    encoding = csr_from_dense(dense)
    got = dmic.jaccard_distance(encoding, max_distance)
    assert_same_bits(got, reference.jaccard_distance(encoding, max_distance))
    full = got.to_dense(fill_value=3)
    assert np.array_equal(full, full.T)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 90), st.integers(0, 10**6), st.floats(0, 1, width=32), st.data())
def test_any_partners_equal_the_reference(n, num_cols, seed, max_distance, data):
    dense = random_encoding_rows(n, num_cols, data.draw(st.integers(1, num_cols)), seed)
    dense[np.random.default_rng(seed).random(n) < data.draw(st.sampled_from([0.0, 0.3]))] = 0
    encoding, split = csr_from_dense(dense), data.draw(st.integers(0, n))
    rows, partners = cut(encoding, split)
    got = dmic.jaccard_distance(rows, max_distance, partners=partners)
    assert_same_bits(got, reference.jaccard_distance(rows, max_distance, partners))


@settings(max_examples=20)
@given(st.integers(2, 60), st.integers(0, 10**6), st.floats(0, 1, width=32))
def test_permuting_the_samples_permutes_the_result(n, seed, max_distance):
    dense = random_encoding_rows(n, n, 7, seed)
    order = np.random.default_rng(seed).permutation(n)
    first = dmic.jaccard_distance(csr_from_dense(dense), max_distance).to_dense(fill_value=3)
    second = dmic.jaccard_distance(csr_from_dense(dense[np.ix_(order, order)]), max_distance).to_dense(fill_value=3)
    assert_same_bits(second, first[np.ix_(order, order)])


def test_max_pairs_stops_at_one_more_and_allows_as_many():
    encoding = csr_from_dense(ONE * np.repeat(np.eye(6, dtype=np.int32)[:1], 6, axis=0))  # six equal rows: 15 pairs
    assert dmic.jaccard_distance(encoding, 0.5, max_pairs=15).nnz == 36
    with pytest.raises(
        ValueError, match=r"^jaccard_distance: more than max_pairs=14 pairs are within max_distance=0\.5"
    ):
        dmic.jaccard_distance(encoding, 0.5, max_pairs=14)
    rows, partners = cut(encoding, 2)
    assert dmic.jaccard_distance(rows, 0.5, partners=partners, max_pairs=8).nnz == 16
    with pytest.raises(ValueError, match=r"^jaccard_distance: more than max_pairs=7 pairs"):
        dmic.jaccard_distance(rows, 0.5, partners=partners, max_pairs=7)
    with pytest.raises(ValueError, match="max_pairs must not be negative, got -1"):
        dmic.jaccard_distance(encoding, 0.5, max_pairs=-1)
