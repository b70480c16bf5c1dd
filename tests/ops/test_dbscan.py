"""dbscan: the labels of scikit-learn on sparse distances."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits, assert_same_clusters
from generators import damaged_rows, edited, gallery, random_distance
from hypothesis import given, settings
from hypothesis import strategies as st

import dmic
from dmic import NOISE, Csr, reference


def stored(dense: np.ndarray, diagonal: bool = True) -> Csr:
    """The entries below 1 of a dense distance; zeros are stored, as jaccard_distance does."""
    keep = dense < 1
    keep[np.diag_indices(len(dense))] = diagonal
    row_ptr = np.concatenate([[0], np.cumsum(keep.sum(1))]).astype(np.int64)
    return Csr(row_ptr, np.nonzero(keep)[1].astype(np.int32), dense[keep], len(dense))


def from_pairs(num_samples: int, pairs: dict[tuple[int, int], float]) -> Csr:
    dense = np.ones((num_samples, num_samples), np.float32)
    np.fill_diagonal(dense, 0)
    for (i, j), value in pairs.items():
        dense[i, j] = dense[j, i] = value
    return stored(dense)


@pytest.mark.parametrize("min_samples", [1, 2, 4, 7, 1000])
@pytest.mark.parametrize("eps", [0.0, 0.25, 0.5, 31 / 64, 0.99])
@pytest.mark.parametrize(("n", "bridges"), [(1, 0), (2, 0), (97, 0), (97, 1), (263, 0.3)])
def test_equals_scikit_learn_and_the_reference(backend, n, bridges, eps, min_samples):
    dense = random_distance(n, bridges, seed=n)
    distance = stored(dense)
    labels, core_mask = backend.dbscan(distance, eps, min_samples)
    assert_same_bits((labels, core_mask), reference.dbscan(distance, eps, min_samples))
    for rows in (dense, distance):
        want_labels, want_core = oracles.dbscan(rows, eps or 1e-9, min_samples)  # scikit-learn wants a positive eps
        assert np.array_equal(labels, want_labels)
        assert np.array_equal(core_mask, want_core)


def test_the_random_distances_hold_what_matters():
    """Pairs at exactly eps, noise, several clusters, and border samples between two of them."""
    dense = random_distance(263, 0.3, seed=263)
    labels, core_mask = oracles.dbscan(dense, 0.5, 4)
    assert (dense == 0.5).any()
    assert labels.max() >= 3
    assert (labels == NOISE).any()
    near_core = (dense <= 0.5) & core_mask
    assert any(len(set(labels[near_core[i]])) > 1 for i in np.flatnonzero(~core_mask)), "a border between two clusters"


@pytest.mark.parametrize(("noise", "eps"), [(0.7, 0.6), (0.7, 0.3), (1.2, 0.6), (3.0, 0.6)])
def test_equals_scikit_learn_on_jaccard_distances(backend, noise, eps):
    data = gallery(backend.size(800, 300), 64, seed=1, noise=noise)
    idx = dmic.knn_graph(data.features, 30)[0]
    encoding = dmic.k_reciprocal_encoding(data.features, idx, 15)
    expanded = dmic.invariant_expansion(encoding, idx, 6, data.camera_ids)
    distance = dmic.jaccard_distance(expanded, 1.0)
    labels, core_mask = backend.dbscan(distance, eps, 4)
    for rows in (distance.to_dense(fill_value=1), distance):
        want_labels, want_core = oracles.dbscan(rows, eps, 4)
        assert np.array_equal(labels, want_labels)
        assert np.array_equal(core_mask, want_core)
    near = backend.dbscan(
        dmic.jaccard_distance(dmic.invariant_expansion(encoding, idx, 6, data.camera_ids), eps), eps, 4
    )
    assert_same_bits(near, (labels, core_mask))


def test_a_border_sample_joins_the_lowest_numbered_cluster(backend):
    """Sample 0 is at 0.5 of a core of each of two clusters; the cluster of sample 1 is the first."""
    first, second = [1, 3, 5, 7], [2, 4, 6, 8]
    pairs = {(i, j): 0.1 for group in (first, second) for i in group for j in group if i < j}
    pairs |= {(0, 8): 0.5, (0, 7): 0.5}
    labels, core_mask = backend.dbscan(from_pairs(9, pairs), 0.5, 4)
    assert labels.tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 1]
    assert core_mask.tolist() == [False] + [True] * 8


def test_clusters_are_numbered_by_their_smallest_core_sample_not_their_smallest_sample(backend):
    """Sample 0 is only a border sample of the cluster of 5 to 8; the cluster of 1 to 4 is the first."""
    pairs = {(i, j): 0.1 for group in (range(1, 5), range(5, 9)) for i in group for j in group if i < j}
    labels, _ = backend.dbscan(from_pairs(9, pairs | {(0, 8): 0.5}), 0.5, 4)
    assert labels.tolist() == [1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_a_border_sample_does_not_join_two_clusters(backend):
    pairs = {(i, j): 0.1 for group in (range(4), range(5, 9)) for i in group for j in group if i < j}
    labels, core_mask = backend.dbscan(from_pairs(9, pairs | {(3, 4): 0.2, (4, 5): 0.2}), 0.3, 4)
    assert labels.tolist() == [0] * 5 + [1] * 4
    assert not core_mask[4]


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_a_long_chain_is_one_cluster(backend, order):
    n = 4096 + 32
    at = {"forward": np.arange(n), "backward": np.arange(n)[::-1], "shuffled": np.random.default_rng(2).permutation(n)}
    place = at[order]
    links = np.concatenate([np.stack([place[:-1], place[1:]]), np.stack([place[1:], place[:-1]])], axis=1)
    links = links[:, np.lexsort((links[1], links[0]))]
    row_ptr = np.searchsorted(links[0], np.arange(n + 1))
    distance = Csr(row_ptr, links[1].astype(np.int32), np.full(2 * (n - 1), 0.5, np.float32), n)
    labels, core_mask = backend.dbscan(distance, 0.5, 2)
    assert (labels == 0).all()
    assert core_mask.all()
    labels, core_mask = backend.dbscan(distance, 0.5, 3)
    assert (labels == 0).all(), "the two ends are border samples"
    assert core_mask.sum() == n - 2
    assert (backend.dbscan(distance, 0.4, 2)[0] == NOISE).all()


def test_a_sample_counts_itself_whether_its_diagonal_is_stored_or_not(backend):
    dense = random_distance(131, 1, seed=3)
    for min_samples in (1, 3, 4):
        want = backend.dbscan(stored(dense), 0.5, min_samples)
        assert_same_bits(backend.dbscan(stored(dense, diagonal=False), 0.5, min_samples), want)
    far = dense.copy()
    np.fill_diagonal(far, 0.9)
    assert_same_bits(backend.dbscan(stored(far), 0.5, 4), backend.dbscan(stored(dense), 0.5, 4))


def test_pairs_beyond_eps_may_be_stored_or_not(backend):
    dense = random_distance(131, 1, seed=4)
    near = np.where(dense <= 0.5, dense, 1).astype(np.float32)
    assert stored(near).nnz < stored(dense).nnz
    assert_same_bits(backend.dbscan(stored(near), 0.5, 4), backend.dbscan(stored(dense), 0.5, 4))


def test_eps_is_compared_in_float32(backend):
    value = np.float32(0.6)
    assert float(value) > 0.6, "0.6 rounds up in float32"
    distance = from_pairs(2, {(0, 1): value})
    assert backend.dbscan(distance, 0.6, 2)[0].tolist() == [0, 0]
    assert backend.dbscan(distance, float(np.nextafter(value, np.float32(0))), 2)[0].tolist() == [NOISE, NOISE]
    assert oracles.dbscan(distance.to_dense(fill_value=1), 0.6, 2)[0].tolist() == [0, 0], "as scikit-learn does"


def test_distances_and_eps_may_be_any_positive_number(backend):
    distance = Csr(np.array([0, 1, 2, 2]), np.array([1, 0], np.int32), np.array([7.5, 7.5], np.float32), 3)
    assert backend.dbscan(distance, 7.5, 2)[0].tolist() == [0, 0, NOISE]
    assert backend.dbscan(distance, 7.4, 2)[0].tolist() == [NOISE] * 3


@pytest.mark.parametrize("min_samples", [1, 2])
def test_samples_without_any_distance_are_alone(backend, min_samples):
    distance = Csr(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 5)
    labels, core_mask = backend.dbscan(distance, 0.5, min_samples)
    assert labels.tolist() == (list(range(5)) if min_samples == 1 else [NOISE] * 5)
    assert core_mask.tolist() == [min_samples == 1] * 5


def test_no_samples_have_no_labels(backend):
    empty = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 0)
    labels, core_mask = backend.dbscan(empty, 0.5, 4)
    assert (labels.shape, labels.dtype, core_mask.shape, core_mask.dtype) == ((0,), torch.int64, (0,), torch.bool)


def test_is_reproducible(backend):
    distance = stored(random_distance(701, 1, seed=5)).to(backend.device)
    labels, _ = assert_reproducible(lambda: backend.dbscan(distance, 0.5, 4), [distance], backend)
    assert labels.max() > 0


def test_strided_arrays_equal_their_copies(backend):
    distance = stored(random_distance(97, 1)).to("cpu")
    strided = Csr(*(torch.stack([a, a], 1)[:, 0] for a in (distance.row_ptr, distance.col_idx, distance.values)), 97)
    assert not strided.values.is_contiguous()
    assert_same_bits(backend.dbscan(strided, 0.5, 4), backend.dbscan(distance, 0.5, 4))


def test_results_come_back_as_the_kind_that_went_in(backend):
    distance = stored(random_distance(20, 1))
    for rows, kind in ((distance, np.ndarray), (distance.to("cpu"), torch.Tensor)):
        assert all(isinstance(a, kind) for a in dmic.dbscan(rows, 0.5, 4))
    assert dmic.dbscan(distance.to(backend.device), 0.5, 4)[0].device.type == backend.device


DISTANCE = stored(random_distance(32, 3, seed=6))
OFF_DIAGONAL = next(t for t in range(DISTANCE.nnz) if DISTANCE.values[t] > 0)


def with_values(values: np.ndarray) -> Csr:
    return Csr(DISTANCE.row_ptr, DISTANCE.col_idx, values, DISTANCE.num_cols)


@pytest.mark.parametrize(
    ("distance", "parts"),
    [
        *damaged_rows(DISTANCE),
        (Csr(DISTANCE.row_ptr, DISTANCE.col_idx, DISTANCE.values, 33), ["one column per sample", "(32, 33)"]),
        (with_values(edited(DISTANCE.values, OFF_DIAGONAL, 0.001)), ["symmetric", "0.001"]),
        (with_values(edited(DISTANCE.values, 0, -0.5)), ["negative", "-0.5"]),
        (with_values(edited(DISTANCE.values, 0, np.nan)), ["NaN", "nan"]),
        (with_values(DISTANCE.values.astype(np.float16)), ["values", "float16"]),
        (with_values((DISTANCE.values * 64).astype(np.int32)), ["values", "int32"]),
    ],
)
def test_bad_distances_are_refused(distance, parts):
    assert_refused(lambda: dmic.dbscan(distance, 0.5, 4), "dbscan", *parts)


def test_a_pair_that_is_stored_in_one_direction_only_is_refused():
    distance = Csr(np.array([0, 1, 1, 1]), np.array([2], np.int32), np.array([0.25], np.float32), 3)
    assert_refused(lambda: dmic.dbscan(distance, 0.5, 2), "dbscan", "symmetric", "0.25", "[0, 2]", "[2, 0]")


@pytest.mark.parametrize(
    ("eps", "min_samples", "parts"),
    [
        (-0.1, 4, ["eps", "-0.1"]),
        (np.nan, 4, ["eps", "nan"]),
        (0.5, 0, ["min_samples", "0"]),
        (0.5, -1, ["min_samples", "-1"]),
        (0.5, 2.5, ["min_samples", "2.5"]),
    ],
)
def test_bad_arguments_are_named(eps, min_samples, parts):
    assert_refused(lambda: dmic.dbscan(DISTANCE, eps, min_samples), "dbscan", *parts)


def test_something_else_than_a_csr_is_a_type_error():
    with pytest.raises(TypeError, match=r"dbscan: distance must be a .*Csr, got ndarray"):
        dmic.dbscan(DISTANCE.to_dense(fill_value=1), 0.5, 4)


def test_the_raw_op_checks_its_arguments_too(backend):
    row_ptr, col_idx, values = (backend.put(a) for a in (DISTANCE.row_ptr, DISTANCE.col_idx, DISTANCE.values))
    for args in (
        (row_ptr.int(), col_idx, values),
        (row_ptr, col_idx, values.double()),
        (row_ptr, col_idx[:-1], values),
    ):
        assert_refused(lambda args=args: backend.raw.dbscan(*args, 0.5, 4), "dbscan")
    assert_refused(lambda: backend.raw.dbscan(row_ptr, col_idx, values, 0.5, 0), "dbscan")


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck(backend):
    parts = tuple(backend.put(a) for a in (DISTANCE.row_ptr, DISTANCE.col_idx, DISTANCE.values))
    torch.library.opcheck(torch.ops.dmic.dbscan, (*parts, 0.5, 4))


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_compiles(backend):
    parts = tuple(backend.put(a) for a in (DISTANCE.row_ptr, DISTANCE.col_idx, DISTANCE.values))

    def shifted_labels(*rows):
        labels, core_mask = torch.ops.dmic.dbscan(*rows, 0.5, 4)
        return labels + 1, ~core_mask

    compiled = torch.compile(shifted_labels, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(*parts), shifted_labels(*parts))


@settings(max_examples=60)
@given(st.integers(1, 50), st.floats(0, 8), st.integers(0, 10**6), st.integers(0, 63), st.integers(1, 8))
def test_any_small_distance_equals_scikit_learn(n, bridges, seed, step, min_samples):
    dense = random_distance(n, bridges, seed)
    labels, core_mask = dmic.dbscan(stored(dense), step / 64, min_samples)
    want_labels, want_core = oracles.dbscan(dense, step / 64 or 1e-9, min_samples)
    assert np.array_equal(labels, want_labels)
    assert np.array_equal(core_mask, want_core)


@settings(max_examples=40)
@given(st.integers(2, 60), st.floats(0, 4), st.integers(0, 10**6))
def test_permuting_the_samples_renumbers_the_clusters(n, bridges, seed):
    """Core and noise samples keep their group; a border sample may join another of the clusters it borders on."""
    dense = random_distance(n, bridges, seed)
    order = np.random.default_rng(seed).permutation(n)
    labels, core_mask = dmic.dbscan(stored(dense), 0.5, 3)
    new_labels, new_core_mask = dmic.dbscan(stored(dense[np.ix_(order, order)]), 0.5, 3)
    assert np.array_equal(new_core_mask, core_mask[order])
    bordering = [set(labels[(dense[i] <= 0.5) & core_mask]) for i in range(n)]
    settled = np.array([len(clusters) <= 1 for clusters in bordering]) | core_mask
    assert_same_clusters(new_labels[settled[order]], labels[order][settled[order]])
    assert np.array_equal(new_labels == NOISE, (labels == NOISE)[order])


def test_zero_and_minus_zero_are_the_same_distance():
    distance = dmic.Csr(np.array([0, 1, 2]), np.array([1, 0], np.int32), np.array([0.0, -0.0], np.float32), 2)
    assert dmic.dbscan(distance, 0.5, 2)[0].tolist() == [0, 0]
