"""k_reciprocal_encoding: softmax weights over the expanded k-reciprocal sets, in units of 2**-30."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits
from generators import duplicated_features, edited, gallery, grid_features, has_ties, random_lists, row_sums
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dmic
from dmic import reference
from dmic.csr import ONE

SHAPES = [  # N, d, k1
    (1, 3, 1),
    (2, 5, 2),
    (61, 2, 61),
    (97, 127, 15),
    (129, 129, 40),
    (67, 31, 65),
    (211, 7, 130),
    (263, 2048, 30),
]


def published_half(k1: int) -> int:
    return int(np.around(k1 / 2))


def half_in_range(k1: int) -> int:
    return min(published_half(k1), k1 - 1)


def test_the_published_half_rounds_to_even():
    assert [published_half(k1) for k1 in (15, 25, 30, 38, 40)] == [8, 12, 15, 19, 20]


@pytest.mark.parametrize(("n", "d", "k1"), SHAPES)
def test_equals_the_reference(backend, n, d, k1):
    features = gallery(n, d, seed=n).features
    idx = reference.knn_graph(features, k1)[0]
    got = backend.k_reciprocal_encoding(features, idx, half_in_range(k1))
    assert_same_bits(got, reference.k_reciprocal_encoding(features, idx, half_in_range(k1)).to("cpu"))


@pytest.mark.parametrize("k1_half", [0, 1, 7, 12, 23])
def test_every_half_size_equals_the_reference(backend, k1_half):
    features = gallery(149, 12, seed=1).features
    idx = reference.knn_graph(features, 24)[0]
    got = backend.k_reciprocal_encoding(features, idx, k1_half)
    assert_same_bits(got, reference.k_reciprocal_encoding(features, idx, k1_half).to("cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_every_dtype_equals_the_reference_on_the_same_numbers_in_float32(backend, dtype):
    features = torch.from_numpy(gallery(151, 67).features).to(dtype)
    plain = features.to(torch.float32).numpy()
    idx = reference.knn_graph(plain, 20)[0]
    want = reference.k_reciprocal_encoding(plain, idx, 10)
    assert_same_bits(backend.k_reciprocal_encoding(features, idx, 10), want.to("cpu"))


@pytest.mark.parametrize(("n", "d", "k1", "noise"), [(523, 64, 30, 0.7), (401, 2048, 40, 2.0), (307, 3, 25, 0.7)])
def test_agrees_with_dense_float64_sets_and_softmax(backend, n, d, k1, noise):
    features = gallery(n, d, seed=2, noise=noise).features
    idx = reference.knn_graph(features, k1)[0]
    encoding = backend.k_reciprocal_encoding(features, idx, published_half(k1))
    want = oracles.encoding(features, idx, published_half(k1))
    nnz = np.diff(encoding.row_ptr.numpy())[:, None]
    members = oracles.expanded_sets(idx, published_half(k1))
    got = encoding.to_float().to_dense().numpy()
    assert np.array_equal(got > 0, members), "no weight is so small that it rounds to zero here"
    assert (members.sum(1) > oracles.membership(idx, k1).sum(1)).any(), "some set must be larger than its list"
    error = np.abs(got - want)
    largest = got == got.max(1, keepdims=True)  # rounding down leaves less than one unit a member, which goes here
    assert (error[~largest] <= 2 * oracles.UNIT).all()
    assert (error <= (nnz + 1) * oracles.UNIT).all()


def test_rows_sum_to_exactly_one(backend):
    features = gallery(4096 + 32, 16, seed=3).features
    idx = backend.knn_graph(features, 30)[0]
    encoding = backend.k_reciprocal_encoding(features, idx, 15)
    assert (row_sums(encoding) == ONE).all()
    assert (encoding.values > 0).all()
    encoding.validate()


@pytest.mark.parametrize("seed", range(3))
def test_any_neighbor_lists_equal_the_reference_and_samples_without_reciprocal_neighbors_have_empty_rows(backend, seed):
    features = gallery(157, 9, seed).features
    idx = random_lists(157, 12, seed)
    encoding = backend.k_reciprocal_encoding(features, idx, 6)
    assert_same_bits(encoding, reference.k_reciprocal_encoding(features, idx, 6).to("cpu"))
    assert 10 < (row_sums(encoding) == 0).sum() < 147, "some rows must be empty, and some not"


def test_more_duplicates_than_k1_leave_empty_rows(backend):
    features, rows = duplicated_features(300, 24, copies=50, seed=4)
    idx = reference.knn_graph(features, 10)[0]
    encoding = backend.k_reciprocal_encoding(features, idx, 5)
    assert_same_bits(encoding, reference.k_reciprocal_encoding(features, idx, 5).to("cpu"))
    empty = np.flatnonzero(row_sums(encoding) == 0)
    assert np.array_equal(empty, rows[10:]), "the 40 copies that are missing from their own lists"


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_rows_share_their_weight_equally(backend, value):
    features = np.full((70, 11), value, np.float32)
    idx = backend.knn_graph(features, 9)[0]
    encoding = backend.k_reciprocal_encoding(features, idx, 4)
    share, rest = divmod(ONE, 9)
    assert np.array_equal(encoding.to_dense()[:9, :9], np.full((9, 9), share) + rest * np.eye(9, dtype=int)[0])
    assert encoding.nnz == 81, "samples 9 and later are in no list, not even their own"


@pytest.mark.parametrize("scale", [1e-43, 1e-30, 1e-3, 3.0, 5.0, 1e10, 1e30, 3e38])
def test_huge_and_tiny_norms(backend, scale):
    features = (gallery(173, 40, seed=5).features.astype(np.float64) * scale).astype(np.float32)
    idx = reference.knn_graph(gallery(173, 40, seed=5).features, 20)[0]
    encoding = backend.k_reciprocal_encoding(features, idx, 10)
    assert_same_bits(encoding, reference.k_reciprocal_encoding(features, idx, 10).to("cpu"))
    if scale >= 1e10:
        assert encoding.nnz == 173, "exp flushes everything but the largest"


def test_weights_that_round_to_zero_are_not_stored(backend):
    features = 4 * gallery(173, 40, seed=5, noise=2.0).features
    idx = reference.knn_graph(features, 20)[0]
    encoding = backend.k_reciprocal_encoding(features, idx, 10)
    assert encoding.nnz < oracles.expanded_sets(idx, 10).sum(), "some weights must round to zero"
    assert (encoding.values > 0).all()
    assert_same_bits(encoding, reference.k_reciprocal_encoding(features, idx, 10).to("cpu"))


@pytest.mark.parametrize("features", [gallery(331, 300, seed=6).features, grid_features(331, 3, seed=6)])
def test_is_reproducible(backend, features):
    features, idx = backend.put(features), backend.put(reference.knn_graph(features, 25)[0])
    assert_reproducible(lambda: backend.k_reciprocal_encoding(features, idx, 12), [features, idx], backend)


def test_strided_views_and_wider_integers_equal_their_copies(backend):
    wide = torch.from_numpy(gallery(120, 90, seed=7).features)
    for view in (wide[::2], wide[:, 10:60], wide[:90].T):
        plain = view.contiguous().numpy()
        idx = reference.knn_graph(plain, 12)[0]
        want = reference.k_reciprocal_encoding(plain, idx, 6).to("cpu")
        lists = torch.from_numpy(idx)
        for variant in (lists, lists.long(), lists.to(torch.int16), lists.T.contiguous().T, lists.repeat(1, 2)[:, :12]):
            assert_same_bits(backend.k_reciprocal_encoding(view, variant, 6), want)
    plain = wide.numpy()[::-1]
    got = dmic.k_reciprocal_encoding(plain, np.asfortranarray(reference.knn_graph(plain, 12)[0]), 6)
    assert_same_bits(got, reference.k_reciprocal_encoding(plain, reference.knn_graph(plain, 12)[0], 6))


def test_results_come_back_as_the_kind_that_went_in(backend):
    features = gallery(20, 4).features
    idx = reference.knn_graph(features, 6)[0]
    for array, kind in ((features, np.ndarray), (torch.from_numpy(features), torch.Tensor)):
        encoding = dmic.k_reciprocal_encoding(array, idx, 3)
        assert all(isinstance(a, kind) for a in (encoding.row_ptr, encoding.col_idx, encoding.values))
    assert dmic.k_reciprocal_encoding(backend.put(features), idx, 3).values.device.type == backend.device


def test_no_samples_have_an_empty_encoding(backend):
    encoding = backend.k_reciprocal_encoding(np.zeros((0, 7), np.float32), np.zeros((0, 5), np.int32), 2)
    assert (encoding.shape, encoding.nnz) == ((0, 0), 0)
    assert (encoding.row_ptr.dtype, encoding.col_idx.dtype, encoding.values.dtype) == (
        torch.int64,
        torch.int32,
        torch.int32,
    )


FEATURES = gallery(32, 6).features
LISTS = reference.knn_graph(FEATURES, 8)[0]


WIDE_LISTS = LISTS.astype(np.int64)


@pytest.mark.parametrize(
    ("features", "neighbor_idx", "k1_half", "parts"),
    [
        (FEATURES, LISTS, -1, ["k1_half", "-1"]),
        (FEATURES, LISTS, 8, ["k1_half", "8"]),
        (FEATURES, LISTS, 2.5, ["k1_half", "2.5"]),
        (FEATURES[0], LISTS, 4, ["features", "[6]"]),
        (FEATURES.astype(np.int32), LISTS, 4, ["features", "int32"]),
        (FEATURES, LISTS[:31], 4, ["neighbor_idx", "32", "31"]),
        (FEATURES, LISTS[0], 4, ["neighbor_idx", "[8]"]),
        (FEATURES, LISTS[:, :0], 0, ["k1_half", "0"]),
        (FEATURES, LISTS.astype(np.float32), 4, ["neighbor_idx", "float32"]),
        (FEATURES, LISTS > 0, 4, ["neighbor_idx", "bool"]),
        (FEATURES, edited(WIDE_LISTS, (30, 7), -1), 4, ["neighbor_idx", "-1"]),
        (FEATURES, edited(WIDE_LISTS, (30, 7), 32), 4, ["neighbor_idx", "32"]),
        (FEATURES, edited(WIDE_LISTS, (30, 7), 2**32 + 1), 4, ["neighbor_idx", str(2**32 + 1)]),
        (FEATURES, edited(WIDE_LISTS, (30, 7), LISTS[30, 2]), 4, ["neighbor_idx", f"{LISTS[30, 2]}", "row 30"]),
    ],
)
def test_bad_arguments_are_named(features, neighbor_idx, k1_half, parts):
    run = lambda: dmic.k_reciprocal_encoding(features, neighbor_idx, k1_half)  # noqa: E731
    assert_refused(run, "k_reciprocal_encoding", *parts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(backend, value):
    features = FEATURES.copy()
    features[17, 4] = value
    run = lambda: backend.k_reciprocal_encoding(features, LISTS, 4)  # noqa: E731
    assert_refused(run, "k_reciprocal_encoding", "features", "finite", str(value), "17")


def test_the_raw_op_checks_its_arguments_too(backend):
    features, lists = backend.put(FEATURES), backend.put(LISTS)
    for args in ((features.double(), lists, 4), (features, lists.long(), 4), (features, lists, 8)):
        assert_refused(lambda args=args: backend.raw.k_reciprocal_encoding(*args), "k_reciprocal_encoding")


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck(backend):
    features, lists = backend.put(FEATURES), backend.put(LISTS)
    for args in ((features, lists, 4), (features[:0], lists[:0], 4), (features[:, ::2], lists[:, :5], 2)):
        torch.library.opcheck(torch.ops.dmic.k_reciprocal_encoding, args)


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_compiles(backend, dynamic_shapes):
    features, lists = backend.put(FEATURES), backend.put(LISTS)

    def doubled_weights(x, idx):
        row_ptr, _, values = torch.ops.dmic.k_reciprocal_encoding(x, idx, 4)
        return row_ptr, values * 2

    compiled = torch.compile(doubled_weights, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(features, lists), doubled_weights(features, lists))


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(1, 8), st.integers(0, 10**6), st.data())
def test_any_small_gallery_equals_the_reference(n, d, seed, data):
    k1 = data.draw(st.integers(1, n))
    k1_half = data.draw(st.integers(0, k1 - 1))
    features = grid_features(n, d, seed) / 2
    idx = random_lists(n, k1, seed)
    got = dmic.k_reciprocal_encoding(features, idx, k1_half)
    assert_same_bits(got, reference.k_reciprocal_encoding(features, idx, k1_half))
    assert set(row_sums(got).tolist()) <= {0, ONE}


@settings(max_examples=20)
@given(st.integers(4, 80), st.integers(2, 40), st.integers(0, 10**6))
def test_permuting_the_samples_permutes_the_result(n, d, seed):
    features = gallery(n, d, seed).features
    assume(not has_ties(features))
    k1 = max(2, n // 3)
    order = np.random.default_rng(seed).permutation(n)
    first = dmic.k_reciprocal_encoding(features, dmic.knn_graph(features, k1)[0], k1 // 2)
    second = dmic.k_reciprocal_encoding(features[order], dmic.knn_graph(features[order], k1)[0], k1 // 2)
    assert_same_bits(second.to_dense(), first.to_dense()[np.ix_(order, order)])


def test_the_lowest_bad_row_is_named_whatever_thread_meets_it_first(threads):
    threads(2)
    features = np.random.default_rng(0).standard_normal((3000, 8), dtype=np.float32)
    lists = dmic.knn_graph(features, 10)[0]
    lists[[63, 64], 4] = lists[[63, 64], 5]  # the last row of one chunk and the first of the next
    for _ in range(20):
        with pytest.raises(ValueError, match=r"twice in row 63$"):
            dmic.k_reciprocal_encoding(features, lists, 5)
