"""k_reciprocal_encoding: softmax weights over the expanded k-reciprocal sets, in units of 2**-30; and its pieces."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits
from generators import (
    csr_from_dense,
    damaged_rows,
    duplicated_features,
    edited,
    gallery,
    grid_features,
    has_ties,
    random_lists,
    row_sums,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dmic
from dmic import ops, reference
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
    d = backend.size(d, min(d, 300))
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
    n, d = backend.size((n, d), (min(n, 250), min(d, 300)))
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
    features = gallery(backend.size(4096 + 32, 200), 16, seed=3).features
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


@pytest.mark.parametrize("make", [lambda n: gallery(n, 300, seed=6).features, lambda n: grid_features(n, 3, seed=6)])
def test_is_reproducible(backend, make):
    features = make(backend.size(331, 131))
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


# ---- the pieces: sets, dot products, weights -----------------------------------------------------------------------


def searched(features: np.ndarray, k1: int, k1_half: int) -> tuple[np.ndarray, np.ndarray, int]:
    return features, reference.knn_graph(features, k1)[0], k1_half


def scaled(scale: float) -> tuple[np.ndarray, np.ndarray, int]:
    features = gallery(173, 40, seed=5).features
    return (features.astype(np.float64) * scale).astype(np.float32), reference.knn_graph(features, 20)[0], 10


GALLERIES = {
    **{f"{n} x {d}, k1={k1}": (gallery(n, d, seed=n).features, k1, half_in_range(k1)) for n, d, k1 in SHAPES},
    **{f"k1_half={k1_half}": (gallery(149, 12, seed=1).features, 24, k1_half) for k1_half in (0, 1, 23)},
    "duplicates": (duplicated_features(300, 24, copies=50, seed=4)[0], 10, 5),
    "equal rows": (np.full((70, 11), 0.3, np.float32), 9, 4),
    "weights that round to zero": (4 * gallery(173, 40, seed=5, noise=2.0).features, 20, 10),
}
INPUTS = {
    **{name: lambda arguments=arguments: searched(*arguments) for name, arguments in GALLERIES.items()},
    **{f"norms around {scale}": lambda scale=scale: scaled(scale) for scale in (1e-43, 1e-30, 1e-3, 5.0, 1e30, 3e38)},
    "any lists": lambda: (gallery(157, 9).features, random_lists(157, 12), 6),
    "no samples": lambda: (np.zeros((0, 7), np.float32), np.zeros((0, 5), np.int32), 2),
}


def random_pattern(num_rows: int, num_cols: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = csr_from_dense(np.random.default_rng(seed).random((num_rows, num_cols)) < share)
    return rows.row_ptr, rows.col_idx


def columns_between(pattern, low: int, high: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """What a pattern stores in columns [low, high), counted from `low`; and where it stores that."""
    row_ptr, col_idx = map(np.asarray, pattern)
    inside = (low <= col_idx) & (col_idx < high)
    return (np.concatenate([[0], inside.cumsum()])[row_ptr], col_idx[inside] - np.int32(low)), inside


@pytest.mark.parametrize("name", INPUTS)
def test_the_pieces_equal_the_reference_and_make_the_encoding(backend, name):
    features, idx, k1_half = INPUTS[name]()
    features = features[:, : backend.size(None, 300)]
    sets = backend.k_reciprocal_sets(idx, k1_half)
    want = tuple(map(torch.from_numpy, reference.k_reciprocal_sets(idx, k1_half)))
    assert_same_bits(sets, want)
    dots = backend.sampled_dots(features, features, *sets)
    assert_same_bits(dots, reference.sampled_dots(features, features, *(a.numpy() for a in sets)))
    weights = backend.k_reciprocal_weights(*sets, dots)
    assert_same_bits(weights, backend.k_reciprocal_encoding(features, idx, k1_half))
    assert_same_bits(weights, reference.k_reciprocal_weights(*(a.numpy() for a in (*sets, dots))).to("cpu"))


@pytest.mark.parametrize("lists", [random_lists(97, 20, seed=1), searched(gallery(97, 9).features, 20, 10)[1]])
def test_sets_of_any_rows_are_those_of_the_whole(backend, lists):
    row_ptr, col_idx = backend.k_reciprocal_sets(lists, 10)
    for begin, end in ((0, 97), (0, 0), (97, 97), (40, 40), (0, 1), (96, 97), (31, 32), (0, 64), (64, 97), (13, 90)):
        found = backend.k_reciprocal_sets(lists, 10, begin, end)
        members = slice(int(row_ptr[begin]), int(row_ptr[end]))
        assert_same_bits(found, (row_ptr[begin : end + 1] - row_ptr[begin], col_idx[members]))
        want = tuple(map(torch.from_numpy, reference.k_reciprocal_sets(lists, 10, begin, end)))
        assert_same_bits(found, want)


def test_only_rows_that_are_wanted_must_be_distinct(backend):
    lists = random_lists(90, 8)
    broken = edited(edited(lists, (20, 7), lists[20, 2]), (40, 0), lists[40, 5])
    assert len(backend.k_reciprocal_sets(broken, 4, 21, 40)[0]) == 20
    for begin, end, row in ((20, 40, 20), (21, 41, 40), (0, 90, 20)):
        run = lambda: backend.k_reciprocal_sets(broken, 4, begin, end)  # noqa: B023, E731
        assert_refused(run, "k_reciprocal_sets", "neighbor_idx", f"twice in row {row}")


@pytest.mark.parametrize("block", [1, 7, 64, 200])
def test_dots_of_blocks_put_together_are_the_whole(backend, block):
    features = gallery(103, 130).features
    pattern = random_pattern(103, 103, 0.1)
    whole = backend.sampled_dots(features, features, *pattern)
    together = torch.full_like(whole, torch.nan)
    for low in range(0, 103, block):
        part, at = columns_between(pattern, low, low + block)
        together[at] = backend.sampled_dots(features, features[low : low + block], *part)
    assert_same_bits(together, whole)
    row_ptr, col_idx = pattern
    for low in range(0, 103, max(block, 20)):
        ends = row_ptr[low : low + block + 1]
        part = ends - ends[0], col_idx[ends[0] : ends[-1]]
        assert_same_bits(backend.sampled_dots(features[low : low + block], features, *part), whole[ends[0] : ends[-1]])


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (5, 300, 3), (300, 5, 129), (67, 70, 2048), (9, 11, 0)])
def test_dots_of_any_pattern_equal_the_reference(backend, n, m, d):
    d = backend.size(d, min(d, 600))
    rows, others = gallery(n, max(d, 1), 1).features[:, :d], gallery(m, max(d, 1), 2).features[:, :d]
    for share in (0.0, 0.2, 1.0):
        pattern = random_pattern(n, m, share)
        got = backend.sampled_dots(rows, others, *pattern)
        assert got.dtype == torch.float64
        assert_same_bits(got, reference.sampled_dots(rows, others, *pattern))


def test_weights_may_have_other_columns_than_rows(backend):
    for n, m in ((3, 1000), (1000, 3), (40, 40)):
        pattern = random_pattern(n, m, 0.4)
        dots = np.random.default_rng(1).normal(0, 4, len(pattern[1]))
        got = backend.k_reciprocal_weights(*pattern, dots, m)
        assert got.shape == (n, m)
        got.validate()
        assert_same_bits(got, reference.k_reciprocal_weights(*pattern, dots, m).to("cpu"))
        assert np.array_equal(row_sums(got), np.where(np.diff(pattern[0]) > 0, ONE, 0))
    assert got.nnz < len(dots), "some weights must round to zero"


@pytest.mark.parametrize("largest", [0.0, 1.0, 1e300, 2.0**1022])
def test_weights_of_any_finite_dots(backend, largest):
    dots = np.array([largest, -largest, largest, -largest / 2, 0.0])
    pattern = np.array([0, 4, 5]), np.array([0, 3, 5, 6, 1], np.int32)
    got = backend.k_reciprocal_weights(*pattern, dots, 7)
    assert_same_bits(got, reference.k_reciprocal_weights(*pattern, dots, 7).to("cpu"))
    if largest > 1:
        assert got.values.tolist() == [ONE // 2, ONE // 2, ONE]


def test_the_pieces_are_reproducible(backend):
    features, idx, k1_half = searched(gallery(331, 60, seed=6).features, 25, 12)
    arrays = tuple(map(backend.put, (features, idx, *backend.k_reciprocal_sets(idx, k1_half))))
    dots = backend.put(backend.sampled_dots(features, features, *arrays[2:]))

    def run() -> tuple:
        sets = backend.k_reciprocal_sets(arrays[1], k1_half, 20, 300)
        products = backend.sampled_dots(arrays[0], arrays[0], *arrays[2:])
        return sets, products, backend.k_reciprocal_weights(*arrays[2:], dots)

    assert_reproducible(run, [arrays, dots], backend)


def test_the_pieces_take_strided_views_and_wider_integers(backend):
    features, idx, k1_half = searched(gallery(80, 24).features, 12, 6)
    sets = backend.k_reciprocal_sets(idx, k1_half)
    dots = backend.sampled_dots(features, features, *sets)
    wide = torch.from_numpy(np.repeat(features, 2, axis=1))
    lists = torch.from_numpy(idx)
    for variant in (lists.long(), lists.to(torch.int16), lists.T.contiguous().T, lists.repeat(1, 2)[:, :12]):
        assert_same_bits(backend.k_reciprocal_sets(variant, k1_half), sets)
    for rows, others in ((wide[:, ::2], features), (features, wide[:, ::2]), (wide[:, ::2].T.contiguous().T, features)):
        assert_same_bits(backend.sampled_dots(rows, others, *sets), dots)
    row_ptr, col_idx = (a.repeat_interleave(2)[::2] for a in sets)
    assert_same_bits(backend.sampled_dots(features.astype(np.float64), features, row_ptr.int(), col_idx.long()), dots)
    weights = backend.k_reciprocal_weights(row_ptr.int(), col_idx.long(), dots.repeat_interleave(2)[::2])
    assert_same_bits(weights, backend.k_reciprocal_encoding(features, idx, k1_half))


def test_the_pieces_give_back_the_kind_that_went_in(backend):
    features, idx, k1_half = searched(gallery(20, 4).features, 6, 3)
    for kind, make in ((np.ndarray, np.asarray), (torch.Tensor, lambda a: backend.put(torch.from_numpy(a)))):
        sets = ops.k_reciprocal_sets(make(idx), k1_half)
        dots = ops.sampled_dots(make(features), make(features), *sets)
        weights = ops.k_reciprocal_weights(*sets, dots)
        results = (*sets, dots, weights.row_ptr, weights.col_idx, weights.values)
        assert all(isinstance(a, kind) for a in results)
        assert kind is np.ndarray or {a.device.type for a in results} == {backend.device}


PATTERN = random_pattern(32, 32, 0.3)
DOTS = reference.sampled_dots(FEATURES, FEATURES, *PATTERN)


@pytest.mark.parametrize(
    ("neighbor_idx", "k1_half", "begin", "end", "parts"),
    [
        (LISTS, -1, 0, 32, ["k1_half", "-1"]),
        (LISTS, 8, 0, 32, ["k1_half", "8"]),
        (LISTS, 2.5, 0, 32, ["k1_half", "2.5"]),
        (LISTS, 4, -1, 32, ["begin=-1"]),
        (LISTS, 4, 5, 4, ["begin=5", "end=4"]),
        (LISTS, 4, 0, 33, ["end=33", "N=32"]),
        (LISTS, 4, 0.5, 32, ["begin", "0.5"]),
        (LISTS, 4, 0, "a", ["end", "'a'"]),
        (LISTS[0], 4, 0, 8, ["neighbor_idx", "[8]"]),
        (LISTS[0, 0], 4, 0, None, ["neighbor_idx", "[]"]),
        (LISTS.astype(np.float32), 4, 0, 32, ["neighbor_idx", "float32"]),
        (edited(WIDE_LISTS, (30, 7), -1), 4, 0, 8, ["neighbor_idx", "-1"]),
        (edited(WIDE_LISTS, (30, 7), 32), 4, 0, 8, ["neighbor_idx", "32", "row 30"]),
        (edited(WIDE_LISTS, (30, 7), LISTS[30, 2]), 4, 8, 32, ["neighbor_idx", f"{LISTS[30, 2]}", "row 30"]),
    ],
)
def test_bad_arguments_of_sets_are_named(neighbor_idx, k1_half, begin, end, parts):
    assert_refused(lambda: ops.k_reciprocal_sets(neighbor_idx, k1_half, begin, end), "k_reciprocal_sets", *parts)


@pytest.mark.parametrize(
    ("rows", "others", "parts"),
    [
        (FEATURES[0], FEATURES, ["rows", "[6]"]),
        (FEATURES, FEATURES[0], ["others", "[6]"]),
        (FEATURES.astype(np.int32), FEATURES, ["rows", "int32"]),
        (FEATURES, FEATURES > 0, ["others", "bool"]),
        (FEATURES, FEATURES[:, :5], ["others", "6", "[32, 5]"]),
        (FEATURES[:31], FEATURES, ["row_ptr", "31", "[33]"]),
        (FEATURES, FEATURES[:30], ["col_idx", "[0, 30)"]),
        (FEATURES, 1e40 * FEATURES.astype(np.float64), ["others", "float32"]),
    ],
)
def test_bad_arguments_of_dots_are_named(rows, others, parts):
    assert_refused(lambda: ops.sampled_dots(rows, others, *PATTERN), "sampled_dots", *parts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pieces_refuse_what_is_not_finite(backend, value):
    wrong = edited(FEATURES, (17, 4), value)
    for name, rows, others in (("rows", wrong, FEATURES), ("others", FEATURES, wrong)):
        run = lambda: backend.sampled_dots(rows, others, *PATTERN)  # noqa: B023, E731
        assert_refused(run, "sampled_dots", name, "finite", str(value), "row 17")
        unchecked = backend.sampled_dots(rows, others, *PATTERN, check_finite=False).numpy()
        row, col = np.repeat(np.arange(32), np.diff(PATTERN[0])), PATTERN[1]
        met = (row if name == "rows" else col) == 17
        assert np.isfinite(unchecked).tolist() == (~met).tolist()
        assert_same_bits(unchecked[~met], DOTS[~met])
    at = PATTERN[0][17]
    run = lambda: backend.k_reciprocal_weights(*PATTERN, edited(DOTS, [at, at + 9], value))  # noqa: E731
    assert_refused(run, "k_reciprocal_weights", "dots", "finite", str(value), "row 17")


@pytest.mark.parametrize("value", [2.0**1023, -(2.0**1023), np.finfo(np.float64).max])
def test_dots_that_overflow_when_doubled_are_refused(backend, value):
    run = lambda: backend.k_reciprocal_weights(*PATTERN, edited(DOTS, -1, value))  # noqa: E731
    assert_refused(run, "k_reciprocal_weights", "dots", "2^1023")


@pytest.mark.parametrize(
    ("dots", "num_cols", "parts"),
    [
        (DOTS.astype(np.float32), None, ["dots", "float32"]),
        (DOTS[:-1], None, ["dots", f"{len(DOTS) - 1}"]),
        (DOTS[None], None, ["dots", f"[1, {len(DOTS)}]"]),
        (DOTS, 31, ["col_idx", "31"]),
        (DOTS, -1, ["num_cols", "-1"]),
        (DOTS, "all", ["num_cols", "'all'"]),
    ],
)
def test_bad_arguments_of_weights_are_named(dots, num_cols, parts):
    assert_refused(lambda: ops.k_reciprocal_weights(*PATTERN, dots, num_cols), "k_reciprocal_weights", *parts)


def test_a_broken_pattern_is_refused(backend):
    features = backend.put(FEATURES)
    broken = [pair for pair in damaged_rows(dmic.Csr(*PATTERN, DOTS, 32)) if pair[0].values is DOTS]
    for damaged, parts in broken:
        pattern = backend.put(damaged.row_ptr), backend.put(damaged.col_idx)
        run = lambda a=pattern: backend.raw.sampled_dots(features, features, *a)  # noqa: E731
        assert_refused(run, "sampled_dots", *parts)
        if damaged.col_idx.max() < 32:  # weights know no last column
            run = lambda a=pattern: backend.raw.k_reciprocal_weights(*a, backend.put(DOTS))  # noqa: E731
            assert_refused(run, "k_reciprocal_weights", *parts)
    assert len(broken) == 11


def test_the_raw_pieces_check_their_arguments_too(backend):
    features, lists, dots, *pattern = map(backend.put, (FEATURES, LISTS, DOTS, *PATTERN))
    for args in ((lists.long(), 4, 0, 8), (lists, 8, 0, 8), (lists, 4, 8, 33)):
        assert_refused(lambda args=args: backend.raw.k_reciprocal_sets(*args), "k_reciprocal_sets")
    for args in ((features.double(), features), (features, features.half()), (features[:4], features)):
        assert_refused(lambda args=args: backend.raw.sampled_dots(*args, *pattern), "sampled_dots")
    assert_refused(lambda: backend.raw.k_reciprocal_weights(*pattern, dots.float()), "k_reciprocal_weights")


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck_of_the_pieces(backend):
    features, lists, dots, row_ptr, col_idx = map(backend.put, (FEATURES, LISTS, DOTS, *PATTERN))
    for args in ((lists, 4, 0, 32), (lists, 4, 5, 5), (lists[:, :5], 2, 3, 9)):
        torch.library.opcheck(torch.ops.dmic.k_reciprocal_sets, args)
    for args in (
        (features, features, row_ptr, col_idx),
        (features, features, row_ptr, col_idx, False),
        (features[:0], features, row_ptr[:1], col_idx[:0]),
    ):
        torch.library.opcheck(torch.ops.dmic.sampled_dots, args)
    for args in ((row_ptr, col_idx, dots), (row_ptr[:1], col_idx[:0], dots[:0])):
        torch.library.opcheck(torch.ops.dmic.k_reciprocal_weights, args)


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_the_pieces_compile(backend, dynamic_shapes):
    features, lists = backend.put(FEATURES), backend.put(LISTS)

    def doubled_weights(x, idx):
        row_ptr, col_idx = torch.ops.dmic.k_reciprocal_sets(idx, 4, 0, 32)
        dots = torch.ops.dmic.sampled_dots(x, x, row_ptr, col_idx)
        return torch.ops.dmic.k_reciprocal_weights(row_ptr, col_idx, dots)[2] * 2

    compiled = torch.compile(doubled_weights, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(features, lists), doubled_weights(features, lists))


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), st.floats(0, 1), st.integers(0, 10**6))
def test_pieces_of_any_small_pattern_equal_the_reference(n, m, d, share, seed):
    random = np.random.default_rng(seed)
    rows, others = (random.normal(0, 1 + seed % 7, (size, d)).astype(np.float32) for size in (n, m))
    pattern = random_pattern(n, m, share, seed)
    dots = ops.sampled_dots(rows, others, *pattern)
    assert_same_bits(dots, reference.sampled_dots(rows, others, *pattern))
    got = ops.k_reciprocal_weights(*pattern, dots, m)
    assert_same_bits(got, reference.k_reciprocal_weights(*pattern, dots, m))
    assert np.array_equal(row_sums(got), np.where(np.diff(pattern[0]) > 0, ONE, 0))
