"""knn_graph: exact neighbours, canonical distances, ties to the lower index."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import oracles
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits
from generators import duplicated_features, gallery, grid_features, has_ties
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dmic
import dmic.directions
from dmic import reference
from dmic._native import set_simd_level
from dmic.directions import leading_directions

SHAPES = [  # N, d, k1: primes, one past a power of two, one column, all columns
    (1, 3, 1),
    (2, 1, 1),
    (2, 5, 2),
    (61, 1, 61),
    (97, 127, 8),
    (129, 129, 40),
    (257, 31, 257),
    (263, 2048, 40),
]
EMULATED_SHAPES = {(257, 31, 257): (90, 31, 90), (263, 2048, 40): (41, 2048, 40)}


def search(backend, features, k1):
    """The result, after a look at small blocks too: only when many follow one another do thresholds drop anything."""
    want = backend.knn_graph(features, k1)
    for block_rows in backend.size((16, 100), (256,)):  # kernels have large tiles and small ones, and no other choice
        assert_same_bits(backend.knn_graph(features, k1, block_rows=block_rows), want, f"block_rows={block_rows}")
    return want


@pytest.mark.parametrize(("n", "d", "k1"), SHAPES)
def test_equals_the_reference(backend, n, d, k1):
    n, d, k1 = backend.size((n, d, k1), EMULATED_SHAPES.get((n, d, k1), (n, d, k1)))
    features = gallery(n, d, seed=n).features
    assert_same_bits(backend.knn_graph(features, k1), reference.knn_graph(features, k1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_every_dtype_equals_the_reference_on_the_same_numbers_in_float32(backend, dtype):
    features = torch.from_numpy(gallery(backend.size(193, 131), 67).features).to(dtype)
    want = reference.knn_graph(features.to(torch.float32).numpy(), 30)
    assert_same_bits(backend.knn_graph(features, 30), want)


@pytest.mark.parametrize(
    ("shape", "small"),
    [((4096 + 32, 5, 30), (200, 4, 30)), ((1031, 131, 64), (140, 7, 40)), ((700, 2, 200), (100, 2, 50))],
)
def test_ties_go_to_the_lower_index(backend, shape, small):
    n, d, k1 = backend.size(shape, small)
    features = grid_features(n, d, seed=d)
    idx, distances = oracles.exact_neighbors(features, k1 + 1)
    assert (distances[:, k1 - 1] == distances[:, k1]).mean() > 0.2, "ties must reach the last column"
    got_idx, got_dist = backend.knn_graph(features, k1)
    assert np.array_equal(got_idx, idx[:, :k1])
    assert np.array_equal(got_dist, distances[:, :k1])


@pytest.mark.parametrize(
    ("shape", "small", "noise"),
    [((1031, 256, 40), (103, 256, 40), 0.7), ((4096 + 32, 64, 30), (160, 64, 30), 3.0)],
)
def test_agrees_with_distances_computed_by_differences(backend, shape, small, noise):
    n, d, k1 = backend.size(shape, small)
    features = gallery(n, d, seed=2, noise=noise).features
    idx, dist = (a.numpy() for a in backend.knn_graph(features, k1))
    exact, tolerance = oracles.squared_distances(features), oracles.squared_distance_tolerance(features)
    rows = np.arange(n)[:, None]
    assert (np.sort(idx, axis=1)[:, 1:] > np.sort(idx, axis=1)[:, :-1]).all(), "a neighbour occurs twice"
    assert (np.abs(dist - exact[rows, idx]) <= tolerance[rows, idx] + oracles.FLOAT32_ROUNDING * dist).all()
    nearest = np.sort(exact, axis=1)[:, :k1]
    bound = tolerance.max(1, keepdims=True) + oracles.FLOAT32_ROUNDING * nearest
    assert (np.abs(dist - nearest) <= bound).all(), "a neighbour is missing"
    assert (np.diff(dist, axis=1) >= 0).all()


def test_every_block_size_gives_the_same_bits(backend):
    features = backend.put(gallery(389, 33, seed=3).features)
    want = backend.raw.knn_graph(features, 20)[:2]
    for block_rows in (1, 7, 64, 129, 256, 388, 389, 390, 100_000):
        assert_same_bits(backend.raw.knn_graph(features, 20, block_rows)[:2], want, f"block_rows={block_rows}")


@pytest.mark.parametrize("make", [lambda n: gallery(n, 300, seed=4).features, lambda n: grid_features(n, 3, seed=4)])
def test_is_reproducible(backend, make):
    features = backend.put(make(backend.size(523, 70)))
    assert_reproducible(lambda: backend.knn_graph(features, 25), [features], backend)


def test_strided_views_equal_their_copies(backend):
    wide = gallery(120, 90, seed=5).features
    tensor = torch.from_numpy(wide)
    for view in (tensor[::2], tensor[:, 10:60], tensor[:, ::3], tensor.T, tensor[:, :1].expand(-1, 7)):
        assert_same_bits(backend.knn_graph(view, 9), reference.knn_graph(view.contiguous().numpy(), 9))
    for view in (wide[::-1], wide[:, ::-1], np.asfortranarray(wide), np.broadcast_to(wide[:1], (30, 90))):
        assert_same_bits(dmic.knn_graph(view, 9), reference.knn_graph(np.ascontiguousarray(view), 9))


def test_results_come_back_as_the_kind_that_went_in(backend):
    features = gallery(20, 4).features
    for array, kind in ((features, np.ndarray), (torch.from_numpy(features), torch.Tensor)):
        assert all(isinstance(result, kind) for result in dmic.knn_graph(array, 3))
    idx, dist = dmic.knn_graph(backend.put(features), 3)
    assert idx.device.type == dist.device.type == backend.device


@pytest.mark.parametrize("k1", [0, 1, 40])
def test_no_samples_have_no_neighbors(backend, k1):
    idx, dist = backend.knn_graph(np.zeros((0, 7), np.float32), k1)
    assert idx.shape == dist.shape == (0, k1)
    assert (idx.dtype, dist.dtype) == (torch.int32, torch.float32)


def test_features_without_columns_are_all_equal(backend):
    assert_same_bits(backend.knn_graph(np.zeros((5, 0), np.float32), 3), reference.knn_graph(np.zeros((5, 0)), 3))


def test_more_duplicates_than_k1_push_a_sample_out_of_its_own_list(backend):
    n = backend.size(400, 130)
    features, rows = duplicated_features(n, 40, copies=50, seed=6)
    idx, dist = search(backend, features, 10)
    assert_same_bits((idx, dist), reference.knn_graph(features, 10))
    missing = (idx != torch.arange(n)[:, None]).all(1)
    assert missing.sum() == 40, "50 copies and 10 places: 40 must be missing from their own list"
    assert np.array_equal(idx[rows], np.tile(rows[:10], (50, 1)))
    assert (dist[rows] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.37, -1e20])
def test_equal_rows_all_get_the_first_samples(backend, value):
    n = backend.size(1500, 110)  # more than a list of the CUDA kernels holds
    idx, dist = search(backend, np.full((n, 19), value, np.float32), 12)
    assert np.array_equal(idx, np.tile(np.arange(12), (n, 1)))
    assert (dist == 0).all()


def test_zero_vectors_among_others(backend):
    features = gallery(211, 24, seed=7).features
    features[::3] = 0.0
    features[::6] = -0.0
    assert_same_bits(search(backend, features, 33), reference.knn_graph(features, 33))


@pytest.mark.parametrize("scale", [1e-43, 1e-38, 1e-30, 1e-20, 1e-18, 1e10, 1e18, 1e30, 3e38])
def test_huge_and_tiny_norms(backend, scale):
    n = backend.size(301, 90)
    features = (gallery(n, 40, seed=8).features.astype(np.float64) * scale).astype(np.float32)
    assert np.isfinite(features).all()
    assert features.any()
    assert_same_bits(search(backend, features, 17), reference.knn_graph(features, 17))


def test_distances_beyond_float32_are_infinite_and_ordered_by_index(backend):
    idx, dist = search(backend, gallery(50, 40).features * np.float32(1e30), 5)
    assert torch.isinf(dist[:, 1:]).all()
    assert np.array_equal(idx[20], [20, 0, 1, 2, 3])


def test_norms_of_every_magnitude_in_one_matrix(backend):
    n = backend.size(331, 130)
    features = gallery(n, 29, seed=9).features
    features *= np.float32(10.0) ** np.random.default_rng(9).integers(-37, 38, (n, 1))
    assert_same_bits(search(backend, features, 30), reference.knn_graph(features, 30))


@pytest.mark.parametrize("offset", [1.0, 100.0, 1e6])
def test_tiny_differences_around_a_large_common_part(backend, offset):
    """The float32 products are useless here: only the float64 distances can tell the samples apart."""
    n = backend.size(347, 90)
    features = (offset + 1e-6 * offset * gallery(n, 50, seed=10).features).astype(np.float32)
    scores = features @ features.T
    assert np.unique(scores[0]).size < 0.86 * n, "float32 scores must be ambiguous"
    assert_same_bits(search(backend, features, 20), reference.knn_graph(features, 20))


def test_one_far_sample_does_not_blur_the_others(backend):
    features = gallery(backend.size(229, 140), 16, seed=11).features
    features[100] *= 1e15
    assert_same_bits(search(backend, features, 20), reference.knn_graph(features, 20))


@pytest.mark.not_emulated("instruction sets of a CPU")
def test_one_far_sample_does_not_slow_the_others_down(backend):
    """Rounded to integers as coarse as it needs, all others would pass for neighbours."""
    features = backend.put(gallery(3000, 64, seed=15).features)
    far = features.clone()
    far[100] *= 1000

    def seconds(given):
        start = time.process_time()
        backend.raw.knn_graph(given, 20)
        return time.process_time() - start

    try:
        for level in dmic.build_info()["simd_available"]:
            set_simd_level(level)
            usual, slow = (min(seconds(given) for _ in range(3)) for given in (features, far))
            assert slow < 8 * usual, level
    finally:
        set_simd_level(None)


@pytest.mark.not_emulated("a GPU rounds to float16")
def test_short_rows_that_rounding_to_integers_blurs_still_find_their_neighbors(backend):
    """Rows a thousand times shorter than the longest: a step of the integers is a tenth of them."""
    features = gallery(1500, 64, seed=14, noise=0.3).features
    features *= np.float32(2.0) ** -np.random.default_rng(14).integers(0, 11, (1500, 1))
    assert_same_bits(search(backend, features, 20), reference.knn_graph(features, 20))


def test_samples_sorted_from_far_to_near_still_find_their_neighbors(backend):
    """Every later sample is nearer than all before it: no early threshold rejects anything."""
    features = (np.arange(backend.size(900, 210), 0, -1, dtype=np.float32) ** 2)[:, None] * np.ones((1, 3), np.float32)
    assert_same_bits(search(backend, features, 7), reference.knn_graph(features, 7))


def lost_digits(num_near: int, num_far: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose float32 products lose what makes them near, among others whose products are exact.

    Near rows are (1, t, ..., t) with t**2 = 2**-25, so that each of 255 additions to 1 is rounded away and near rows
    seem 1.5e-5 apart; far rows are (1, 0, ..., 0), truly 7.6e-6 from the near ones. A tiny last column tells rows
    apart. Returns the features and the indices of the near rows.
    """
    rng = np.random.default_rng(12)
    order = rng.permutation(num_near + num_far)
    features = np.zeros((num_near + num_far, 256), np.float32)
    features[:, 0] = 1
    features[order[:num_near], 1:] = 2.0**-12.5 * (1 - 2.0**-10)
    features[:, -1] += rng.uniform(0, 1e-5, len(features)).astype(np.float32)
    return features * np.float32(shift), np.sort(order[:num_near])


@pytest.mark.parametrize(
    ("num_far", "block_rows", "shift"), [(600, 16, 1.0), (600, 16, 2.0**-60), (600, 0, 2.0**60), (4096, 0, 1.0)]
)
def test_neighbors_that_float32_products_rank_last_are_found(backend, num_far, block_rows, shift):
    num_near, num_far = backend.size((50, num_far), (20, 90))
    features, near = lost_digits(num_near, num_far, shift)
    unit = features / np.float32(shift)
    product = np.float32(0)
    for a, b in zip(unit[near[0]], unit[near[1]], strict=True):
        product = np.float32(product + a * b)
    assert product == 1, "every addition but the first must be lost"
    idx, dist = backend.knn_graph(features, num_near, block_rows=block_rows)
    assert np.array_equal(np.sort(idx[near], axis=1), np.tile(near, (num_near, 1)))
    exact = reference.dot(features[near], features[near])
    products = reference.dot(features[near][:, None], features[near][None])
    want = np.maximum(exact[:, None] + exact[None] - 2 * products, 0).astype(np.float32)
    assert_same_bits(dist[near], np.sort(want, axis=1))


@pytest.mark.not_emulated("a GPU rounds to float16")
@pytest.mark.parametrize("step", [2.0**-7, 2.0**-10], ids=["bfloat16", "int16"])
def test_neighbors_that_rounded_products_rank_behind_lures_are_found(backend, step):
    """Near rows differ by step / 64 where they are rounded a step apart; a lure is what rounding makes of one of them.
    Other samples are far, so that products of rounded rows are taken at all."""
    rng = np.random.default_rng(13)
    up = np.stack([rng.permutation(64) < 32 for _ in range(50)])
    near = 1 + step / 2 + np.where(up, 1, -1) * step / 128
    lures = np.repeat(1 + up * step, 10, axis=0)
    features = np.concatenate([near, lures, rng.normal(0, 1, (3000, 64))]).astype(np.float32)
    order = rng.permutation(len(features))
    idx, dist = search(backend, features[order], 40)
    assert_same_bits((idx, dist), reference.knn_graph(features[order], 40))
    assert (order[idx[order < 50]] < 50).all(), "a lure is nearer than a near row"


@pytest.mark.not_emulated("thresholds of a CPU")
@pytest.mark.parametrize("step", [2.0**-7, 2.0**-10], ids=["bfloat16", "int16"])
def test_first_thresholds_allow_for_what_rounding_takes_from_the_samples_that_give_them(backend, step):
    """The samples are every 16th row: lures of one near row, whose rounded products say that they are the same."""
    rng = np.random.default_rng(17)
    features = rng.normal(0, 1, (4096, 64)).astype(np.float32)
    up = np.stack([rng.permutation(64) < 32 for _ in range(50)])
    near = np.sort(rng.choice(np.flatnonzero(np.arange(4096) % 16), 50, replace=False))
    features[near] = 1 + step / 2 + np.where(up, 1, -1) * step / 128
    features[::16][:100] = 1 + up[0] * step
    idx, dist = search(backend, features, 40)
    assert_same_bits((idx, dist), reference.knn_graph(features, 40))
    assert np.isin(idx[near], near).all(), "a lure is nearer than a near row"


def leading(features: np.ndarray, count: int) -> torch.Tensor:
    """The first right singular vectors, float32 [count, d]."""
    scaled = features / max(np.abs(features).max(), np.finfo(np.float32).tiny)
    return torch.from_numpy(np.linalg.svd(scaled.astype(np.float64), full_matrices=False)[2][:count]).float()


def random_directions(dim: int, count: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dim, count, generator=torch.Generator().manual_seed(1))).Q.T.contiguous()


def steep(num_samples: int, dim: int, seed: int) -> np.ndarray:
    """Features whose variance falls steeply over turned axes, as those of trained networks do; norms differ."""
    rng = np.random.default_rng(seed)
    x = gallery(num_samples, dim, seed, noise=0.5).features * (1 + np.arange(dim)) ** -1.5
    x = x @ np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    x *= rng.uniform(0.2, 1, (num_samples, 1)) / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def half_along_directions() -> np.ndarray:
    """16 samples on axes of their own, and 500 that are each near one of them and noise otherwise: directions settle
    the pairs of an axis and noise, and tell nothing about two samples of noise."""
    noise = np.random.default_rng(13).standard_normal((500, 112))
    noise *= 0.9 / np.linalg.norm(noise, axis=1, keepdims=True)
    axes = np.eye(16)
    along = np.concatenate([axes, 0.5 * axes[np.arange(500) % 16]])
    across = np.concatenate([np.zeros((16, 112)), noise])
    return np.concatenate([along, across], 1).astype(np.float32)


SKETCHED = {
    "steep spectrum": (lambda: steep(1031, 96, 1), 20),
    "steep spectrum, more columns than a step of depth": (lambda: steep(601, 300, 2), 40),
    "all directions alike": (lambda: gallery(523, 64, seed=4, noise=3.0).features, 25),
    "ties": (lambda: grid_features(700, 12, seed=5), 64),
    "duplicates": (lambda: duplicated_features(400, 40, copies=50, seed=6)[0], 10),
    "zero vectors": (lambda: steep(211, 24, 7) * (np.arange(211) % 3 > 0)[:, None].astype(np.float32), 33),
    "equal rows": (lambda: np.full((300, 19), 0.37, np.float32), 12),
    "tiny norms": (lambda: steep(301, 40, 8) * np.float32(1e-43), 17),
    "huge norms": (lambda: steep(301, 40, 8) * np.float32(3e38), 17),
    "norms of every magnitude": (
        lambda: steep(331, 29, 9) * np.float32(10.0) ** np.random.default_rng(9).integers(-37, 38, (331, 1)),
        30,
    ),
    "one far sample": (
        lambda: steep(229, 32, 11) * np.where(np.arange(229) == 100, 1e15, 1).astype(np.float32)[:, None],
        20,
    ),
    "tiny differences around a large common part": (
        lambda: (1e6 + gallery(347, 50, seed=10).features).astype(np.float32),
        20,
    ),
    "products that lose what makes rows near": (lambda: lost_digits(50, 600, 1.0)[0], 50),
    "samples on a ray": (lambda: np.linspace(1, 2, 400)[:, None] * np.full((1, 8), 0.3), 7),
    "all samples": (lambda: steep(97, 31, 12), 97),
    "lists of pairs that directions settle and of others": (half_along_directions, 20),
}


@pytest.mark.not_emulated("a GPU has no use for directions")
@pytest.mark.parametrize("name", SKETCHED)
def test_directions_change_no_bit(backend, name):
    make, k1 = SKETCHED[name]
    features = backend.put(make().astype(np.float32))
    want = backend.raw.knn_graph(features, k1)[:2]
    dim = features.shape[1]
    for directions in (
        *(leading(features.cpu().numpy(), count) for count in {1, dim // 4, dim}),
        torch.eye(dim)[: min(dim, 16)],
        0.97 * leading(features.cpu().numpy(), 1),
        random_directions(dim, max(1, dim // 4)),
        random_directions(dim, 3) * 1.01,
        torch.zeros(0, dim),
    ):
        for block_rows in (0, 6, 100):
            got = backend.raw.knn_graph(features, k1, block_rows, directions.to(features.device))[:2]
            assert_same_bits(got, want, f"{len(directions)} directions, block_rows={block_rows}")


@pytest.mark.not_emulated("a GPU has no use for directions")
def test_directions_give_the_same_bits_for_any_number_of_threads_and_instruction_set(backend):
    features = backend.put(steep(1100, 96, 3))
    directions = leading(features.cpu().numpy(), 24).to(features.device)
    assert_reproducible(lambda: backend.raw.knn_graph(features, 25, 64, directions)[:2], [features], backend)


def test_the_public_search_takes_directions_where_they_pay(monkeypatch):
    taken = []

    def record(features, k1, num_samples, **_):
        taken.append(leading_directions(features, k1, num_samples))
        return taken[-1]

    monkeypatch.setattr(dmic.ops, "leading_directions", record)
    monkeypatch.setattr(dmic.directions, "MIN_SAMPLES", 1000)
    features = steep(2100, 512, 5)
    got = dmic.knn_graph(features, 20)
    flat = np.random.default_rng(0).standard_normal((2100, 512), dtype=np.float32)
    dmic.knn_graph(flat, 20)
    dmic.knn_graph(features[:999], 20)
    assert [None if directions is None else directions.shape[1] for directions in taken] == [512, None, None]
    torch.testing.assert_close(taken[0] @ taken[0].T, torch.eye(len(taken[0])), atol=1e-5, rtol=0)
    assert_same_bits(got, torch.ops.dmic.knn_graph(torch.from_numpy(features), 20)[:2])
    for directions in (taken[0], np.zeros((0, 512), np.float32)):
        assert_same_bits(dmic.knn_graph(features, 20, directions=directions), got, "directions that are given")
    assert len(taken) == 3, "directions that are given are not looked for"


def test_directions_of_a_part_are_chosen_for_the_whole():
    features = torch.from_numpy(steep(3000, 256, 5))
    found = [leading_directions(features, 20, num_samples, simd="amx") for num_samples in (None, 6_000, 50_000)]
    assert [None if directions is None else len(directions) for directions in found] == [None, None, 31]
    assert leading_directions(features[:599], 20, 50_000) is None, "too few to tell"
    assert leading_directions(features[:600], 20, 50_000) is not None


def test_short_lists_in_large_galleries_need_all_directions_of_the_features_too():
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(256, 60, generator=random)).Q.T
    features = torch.randn(6000, 60, generator=random) @ basis + 0.01 * torch.randn(6000, 256, generator=random)
    assert [len(leading_directions(features, k1)) for k1 in (1, 2, 40)] == [63, 63, 63]
    for simd in ("vnni", "amx"):
        assert leading_directions(features, 40, simd=simd) is None, "products of 256 columns cost next to nothing there"


def test_more_columns_need_directions_sooner_where_products_cost_more():
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(512, 60, generator=random)).Q.T
    features = torch.randn(6000, 60, generator=random) @ basis + 0.01 * torch.randn(6000, 512, generator=random)
    found = [leading_directions(features, 40, simd=simd) for simd in (None, "vnni", "amx")]
    assert [None if directions is None else len(directions) for directions in found] == [63, 63, None]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_in_galleries_that_directions_are_tried_on(value):
    features = np.ones((6001, 256), np.float32)
    features[4321, 7] = value
    assert_refused(lambda: dmic.knn_graph(features, 3), "knn_graph", "features", "finite", str(value), "4321")


@pytest.mark.not_emulated("a GPU has no use for directions")
@pytest.mark.parametrize(
    ("directions", "parts"),
    [
        (torch.ones(2, 6), ["directions", "orthonormal"]),
        (1.1 * torch.eye(6), ["directions", "orthonormal"]),
        (torch.full((2, 6), torch.nan), ["directions", "orthonormal"]),
        (torch.eye(6, dtype=torch.float64), ["directions", "float64"]),
        (torch.eye(5), ["directions", "6 columns", "[5, 5]"]),
        (torch.zeros(7, 6), ["directions", "6 columns", "[7, 6]"]),
        (torch.ones(6), ["directions", "[6]"]),
    ],
)
def test_directions_that_are_none_are_refused(backend, directions, parts):
    assert_refused(lambda: backend.raw.knn_graph(backend.put(FEATURES), 3, 0, directions), "knn_graph", *parts)


FEATURES = gallery(32, 6).features
INFINITY = np.float32(np.inf)


def search_between(backend, features, split, k1, farthest=None):
    """`knn_between`, after a look at small blocks too."""
    want = backend.knn_between(features, split, k1, farthest)
    for block_rows in backend.size((16, 100), (256,)):
        got = backend.knn_between(features, split, k1, farthest, block_rows=block_rows)
        assert_same_bits(got, want, f"block_rows={block_rows}")
    return want


def exact_between(features, split, k1, farthest):
    """The same of integer features, in integer arithmetic."""
    n = len(features)
    idx, distances = oracles.exact_neighbors(features, n)
    others = (idx < split) != (np.arange(n)[:, None] < split)
    others &= distances <= farthest[:, None]
    want_idx, want_dist = np.full((n, k1), -1, np.int32), np.full((n, k1), np.inf, np.float32)
    for i in range(n):
        found = np.flatnonzero(others[i])[:k1]
        want_idx[i, : len(found)], want_dist[i, : len(found)] = idx[i, found], distances[i, found]
    return want_idx, want_dist


@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((2, 3, 1, 2), None),
        ((61, 1, 30, 61), None),
        ((97, 31, 1, 8), None),
        ((97, 31, 96, 8), None),
        ((97, 127, 70, 40), None),
        ((263, 60, 131, 30), (210, 31, 100, 30)),
        ((263, 12, 250, 40), None),
        ((300, 8, 20, 15), None),
        ((523, 300, 200, 25), (110, 300, 40, 25)),
        ((1031, 64, 900, 20), (240, 64, 210, 20)),
    ],
)
def test_two_sides_equal_the_reference(backend, shape, small):
    n, d, split, k1 = backend.size(shape, small or shape)
    features = gallery(n, d, seed=n).features
    want = reference.knn_graph(features, k1, split)
    assert_same_bits(search_between(backend, features, split, k1), want)
    nearest = want[1].copy()
    nearest[np.isinf(nearest)] = 0
    farthest = np.float32(0.7) * nearest.max(1)
    got = search_between(backend, features, split, k1, farthest)
    assert_same_bits(got, reference.knn_graph(features, k1, split, farthest))
    assert (got[0] == -1).sum() > (want[0] == -1).sum(), "farthest must cut something"


@pytest.mark.parametrize(("rows", "split"), [(7, 0), (7, 7), (0, 0)])
@pytest.mark.parametrize("limited", [False, True])
def test_an_empty_side_has_no_neighbors(backend, rows, split, limited):
    idx, dist = backend.knn_between(FEATURES[:rows], split, 3, np.ones(rows, np.float32) if limited else None)
    assert idx.shape == dist.shape == (rows, 3)
    assert (idx == -1).all()
    assert torch.isinf(dist).all()


def farthest_of_every_kind(distances, k):
    """The k-th distance of a list, just below it, zero, infinity, the largest number, in turn."""
    kth = distances[:, k - 1].astype(np.float32)
    kinds = np.tile(np.array([0, 0, 0, np.inf, np.finfo(np.float32).max], np.float32), (len(kth), 1))
    kinds[:, 0], kinds[:, 1] = kth, np.nextafter(kth, np.float32(-1)).clip(0)
    rows = np.arange(len(kth))
    return kinds[rows, rows % 5]


@pytest.mark.parametrize(("n", "d", "split", "k1"), [(300, 3, 130, 20), (180, 5, 20, 30), (400, 4, 60, 40)])
def test_ties_across_two_sides_go_to_the_lower_index(backend, n, d, split, k1):
    features = grid_features(n, d, seed=d)
    want = exact_between(features, split, k1, np.full(n, np.inf))
    assert_same_bits(search_between(backend, features, split, k1), tuple(map(torch.from_numpy, want)))
    kth = want[1][:, k1 // 2 - 1]
    assert (kth == want[1][:, k1 // 2]).mean() > 0.2, "ties must reach the threshold"
    for farthest in (kth, np.zeros(n, np.float32), np.full(n, INFINITY), farthest_of_every_kind(want[1], k1 // 2)):
        cut = exact_between(features, split, k1, farthest)
        assert_same_bits(search_between(backend, features, split, k1, farthest), tuple(map(torch.from_numpy, cut)))


def test_duplicates_across_two_sides(backend):
    features, rows = duplicated_features(300, 24, copies=60, seed=6)
    farthest = np.zeros(300, np.float32)
    for split in (100, 299, int(rows[5])):
        for limits in (None, farthest):
            got = search_between(backend, features, split, 10, limits)
            assert_same_bits(got, reference.knn_graph(features, 10, split, limits))
    assert (got[0][rows] >= 0).any(), "duplicates are at distance zero"
    n, split = backend.size((400, 150), (230, 110))
    same = search_between(backend, np.full((n, 9), 0.37, np.float32), split, 12)[0]
    assert np.array_equal(same, np.repeat([split + np.arange(12), np.arange(12)], [split, n - split], axis=0))


@pytest.mark.parametrize("scale", [1e-43, 1e-20, 1e18, 3e38])
def test_huge_and_tiny_norms_of_two_sides(backend, scale):
    features = (gallery(201, 24, seed=8).features.astype(np.float64) * scale).astype(np.float32)
    idx, dist = reference.knn_graph(features, 17, 77)
    assert_same_bits(search_between(backend, features, 77, 17), (idx, dist))
    farthest = farthest_of_every_kind(dist, 9)
    got = search_between(backend, features, 77, 17, farthest)
    assert_same_bits(got, reference.knn_graph(features, 17, 77, farthest))


def test_samples_sorted_from_far_to_near_find_the_other_side(backend):
    n = backend.size(400, 300)
    features = (np.arange(n, 0, -1, dtype=np.float32) ** 2)[:, None] * np.ones((1, 3), np.float32)
    for split in (13, n // 2, n - 10):
        assert_same_bits(search_between(backend, features, split, 7), reference.knn_graph(features, 7, split))


def graph_of_blocks(backend, features, k1, starts, directions=None):
    """The graph of all, from a search within each block and one between every two, that starts where lists end."""
    bounds = [*zip(starts, [*starts[1:], len(features)], strict=True)]
    order, idx, dist = [], [], []

    def merge(block, new_idx, new_dist):
        near_idx = np.concatenate([idx[block], new_idx], 1)
        near_dist = np.concatenate([dist[block], new_dist], 1)
        order = np.lexsort((np.where(near_idx < 0, 2**31 - 1, near_idx), near_dist))[:, :k1]
        idx[block], dist[block] = np.take_along_axis(near_idx, order, 1), np.take_along_axis(near_dist, order, 1)

    for begin, end in bounds:
        near = min(k1, end - begin)
        found_idx, found_dist = (a.numpy() for a in backend.knn_graph(features[begin:end], near))
        short = ((0, 0), (0, k1 - near))
        idx.append(np.pad(found_idx + np.int32(begin), short, constant_values=-1))
        dist.append(np.pad(found_dist, short, constant_values=np.inf))
    for b, (col_begin, col_end) in enumerate(bounds):
        for a, (row_begin, row_end) in enumerate(bounds[:b]):
            order = np.r_[row_begin:row_end, col_begin:col_end].astype(np.int32)
            farthest = np.concatenate([dist[a], dist[b]])[:, k1 - 1]
            split, short = row_end - row_begin, min(k1, len(order))
            got = backend.knn_between(features[order], split, short, farthest, directions=directions)
            found_idx, found_dist = (x.numpy() for x in got)
            found_idx = np.where(found_idx < 0, -1, order[found_idx])
            merge(a, found_idx[:split], found_dist[:split])
            merge(b, found_idx[split:], found_dist[split:])
    return np.concatenate(idx), np.concatenate(dist)


@pytest.mark.parametrize(
    ("starts", "small"),
    [((0, 100, 200), None), ((0, 1, 150), None), ((0, 8, 270), (0, 8, 190)), ((0, 140, 299), (0, 140, 219))],
)
@pytest.mark.parametrize("make", [lambda n: gallery(n, 24, seed=3).features, lambda n: grid_features(n, 4, seed=3)])
def test_graphs_of_blocks_and_between_them_make_the_whole_graph(backend, make, starts, small):
    features = make(backend.size(300, 220))
    got = graph_of_blocks(backend, features, 15, backend.size(starts, small or starts))
    assert_same_bits(got, reference.knn_graph(features, 15))


@pytest.mark.not_emulated("a GPU has no use for directions")
@pytest.mark.parametrize("make", [lambda: steep(3100, 256, 5), lambda: gallery(3100, 256, 5, noise=0.2).features])
def test_directions_of_blocks_change_no_bit(backend, make):
    features = make()
    directions = leading(features, 48)
    want = tuple(a.numpy() for a in backend.knn_graph(features, 20))
    assert_same_bits(graph_of_blocks(backend, features, 20, (0, 1033, 2100), directions), want)
    assert_same_bits(graph_of_blocks(backend, features, 20, (0, 3, 2900), directions), want)


@pytest.mark.not_emulated("a GPU has no use for directions")
@pytest.mark.parametrize("name", SKETCHED)
def test_directions_between_two_sides_change_no_bit(backend, name):
    make, k1 = SKETCHED[name]
    features = make().astype(np.float32)
    n, dim = features.shape
    for split in (n // 2, n // 10, n - 1, n):
        nearest = backend.knn_between(features, split, k1)[1].numpy()
        kth = nearest[:, k1 // 2]
        for farthest in (None, kth, np.where(np.arange(n) % 3 > 0, kth, INFINITY), farthest_of_every_kind(nearest, 2)):
            want = backend.knn_between(features, split, k1, farthest)
            for directions in (leading(features, dim // 2), random_directions(dim, 1), torch.zeros(0, dim)):
                for block_rows in (0, 6):
                    options = {"block_rows": block_rows, "directions": directions}
                    got = backend.knn_between(features, split, k1, farthest, **options)
                    assert_same_bits(got, want, f"split={split}, {len(directions)} directions, {block_rows}")


def test_two_sides_give_the_same_bits_every_time(backend):
    n, split = backend.size((400, 130), (130, 70))
    features = backend.put(steep(n, 64, 3))
    directions = leading(features.cpu().numpy(), 12)
    farthest = backend.knn_between(features, split, 20)[1][:, -1]
    for limits in (None, farthest):
        arguments = (features, split, 25, limits)
        run = partial(backend.knn_between, *arguments, block_rows=64, directions=directions)
        assert_reproducible(run, [features], backend)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("along", [False, True])
def test_progress_between_two_sides_rises_to_the_total(limited, along):
    features = steep(900, 64, 3)
    options = {"farthest": np.ones(900, np.float32)} if limited else {}
    directions = leading(features, 12) if along else None
    calls = []
    for split in (1, 300, 900):
        calls.clear()
        dmic.ops.knn_between(
            features, split, 9, directions=directions, progress=lambda *call: calls.append(call), **options
        )
        assert {stage for stage, *_ in calls} == {"knn_graph"}
        assert calls[-1][1] == calls[-1][2] > 0


@pytest.mark.parametrize(
    ("split", "k1", "options", "parts"),
    [
        (-1, 3, {}, ["split", "-1", "N=32"]),
        (33, 3, {}, ["split", "33", "N=32"]),
        (1.5, 3, {}, ["split", "1.5"]),
        (9, 0, {}, ["k1", "0"]),
        (9, 33, {}, ["k1", "33"]),
        (9, 3, {"farthest": np.ones(31, np.float32)}, ["farthest", "32", "31"]),
        (9, 3, {"farthest": np.ones((32, 1), np.float32)}, ["farthest", "[32, 1]"]),
        (9, 3, {"farthest": np.ones(32, np.int64)}, ["farthest", "int64"]),
        (9, 3, {"directions": np.eye(6, dtype=np.int64)}, ["directions", "int64"]),
        (9, 3, {"directions": np.eye(5, dtype=np.float32)}, ["directions", "6 columns"]),
        (9, 3, {"block_rows": -1}, ["block_rows", "-1"]),
    ],
)
def test_bad_arguments_of_two_sides_are_named(backend, split, k1, options, parts):
    assert_refused(lambda: backend.knn_between(FEATURES, split, k1, **options), "knn_graph", *parts)


@pytest.mark.parametrize("value", [np.nan, -1.5, -np.inf])
def test_farthest_must_be_distances(backend, value):
    farthest = np.ones(32, np.float32)
    farthest[17] = value
    assert_refused(lambda: backend.knn_between(FEATURES, 9, 3, farthest), "knn_graph", "farthest", str(value), "17")
    assert_refused(lambda: backend.knn_between(FEATURES, 32, 3, farthest), "knn_graph", "farthest", str(value), "17")


def test_the_raw_op_wants_a_split_with_farthest(backend):
    features, farthest = backend.put(FEATURES), backend.put(np.ones(32, np.float32))
    assert_refused(lambda: backend.raw.knn_graph(features, 3, 0, None, 0, farthest), "knn_graph", "farthest", "split=0")
    wide = farthest.double()
    assert_refused(lambda: backend.raw.knn_graph(features, 3, 0, None, 9, wide), "knn_graph", "farthest", "float64")


@pytest.mark.parametrize(
    ("features", "k1", "parts"),
    [
        (FEATURES, 0, ["k1", "0"]),
        (FEATURES, -3, ["k1", "-3"]),
        (FEATURES, 33, ["k1", "33", "N=32"]),
        (FEATURES, 2.5, ["k1", "2.5"]),
        (FEATURES[0], 1, ["features", "[6]"]),
        (FEATURES[None], 1, ["features", "[1, 32, 6]"]),
        (FEATURES.astype(np.int64), 3, ["features", "int64"]),
        (FEATURES > 0, 3, ["features", "bool"]),
        (FEATURES.astype(np.complex64), 3, ["features", "complex64"]),
        (np.zeros((0, 6), np.float32), -1, ["k1", "-1"]),
    ],
)
def test_bad_arguments_are_named(features, k1, parts):
    assert_refused(lambda: dmic.knn_graph(features, k1), "knn_graph", *parts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_refused(backend, value, dtype):
    features = torch.tensor(FEATURES, dtype=dtype)
    features[17, 4] = value
    assert_refused(lambda: backend.knn_graph(features, 3), "knn_graph", "features", "finite", str(value), "17")


def test_float64_beyond_float32_is_refused(backend):
    features = FEATURES.astype(np.float64)
    features[5, 1] = 1e300
    assert_refused(lambda: backend.knn_graph(features, 3), "knn_graph", "features", "5")


def test_lists_of_text_are_no_features():
    with pytest.raises((TypeError, ValueError), match=r"knn_graph: features"):
        dmic.knn_graph("abc", 1)


def test_the_raw_op_checks_its_arguments_too(backend):
    features = backend.put(FEATURES)
    for args in ((features.double(), 3), (features[0], 3), (features, 33), (features, 3, -1)):
        assert_refused(lambda args=args: backend.raw.knn_graph(*args), "knn_graph")


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck(backend):
    features = backend.put(FEATURES)
    between = (features, 5, 0, None, 9, features.new_ones(32))
    for args in ((features, 5), (features[:0], 3), (features.T, 2, 3), between):
        torch.library.opcheck(torch.ops.dmic.knn_graph, args)


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_compiles(backend):
    features = backend.put(FEATURES)

    def squared_reach(x):
        return torch.ops.dmic.knn_graph(x * 2, 4)[1][:, -1] + 1

    compiled = torch.compile(squared_reach, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(features), squared_reach(features))
    public = torch.compile(lambda x: dmic.knn_graph(x, 4), backend="aot_eager")
    assert_same_bits(public(features), dmic.knn_graph(features, 4))
    two_sides = torch.compile(lambda x: dmic.ops.knn_between(x, 9, 4), backend="aot_eager")
    assert_same_bits(two_sides(features), dmic.ops.knn_between(features, 9, 4))


def test_gradients_are_cut(backend):
    features = backend.put(FEATURES).clone().requires_grad_()
    assert not dmic.knn_graph(features, 3)[1].requires_grad


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_any_small_grid_equals_exact_arithmetic(n, d, levels, seed, data):
    k1 = data.draw(st.integers(1, n))
    features = grid_features(n, d, seed, levels)
    got = dmic.knn_graph(features, k1)
    want = oracles.exact_neighbors(features, k1)
    assert np.array_equal(got[0], want[0])
    assert np.array_equal(got[1], want[1])


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_any_two_sides_of_a_small_grid_equal_exact_arithmetic(n, d, levels, seed, data):
    k1, split = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    farthest = np.random.default_rng(seed).integers(0, 2 + d * (levels - 1) ** 2, n).astype(np.float32)
    features = grid_features(n, d, seed, levels)
    got = dmic.ops.knn_between(features, split, k1, farthest)
    assert_same_bits(got, exact_between(features, split, k1, farthest))


@settings(max_examples=20)
@given(st.integers(2, 80), st.integers(1, 40), st.integers(0, 10**6))
def test_permuting_the_samples_permutes_the_result(n, d, seed):
    features = gallery(n, d + 1, seed).features
    assume(not has_ties(features))
    order = np.random.default_rng(seed).permutation(n)
    idx, dist = dmic.knn_graph(features, max(1, n // 2))
    permuted_idx, permuted_dist = dmic.knn_graph(features[order], max(1, n // 2))
    assert_same_bits(permuted_dist, dist[order])
    assert_same_bits(order[permuted_idx].astype(np.int32), idx[order])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_flushing_denormals_in_torch_changes_no_bit(num_threads, threads):
    threads(num_threads)
    features = 3e-20 * torch.randn(700, 16, generator=torch.Generator().manual_seed(0))
    want = dmic.knn_graph(features, 5)
    assert (want[1][:, 1:] < torch.finfo(torch.float32).tiny).any(), "some distances must be denormal"
    torch.set_flush_denormal(True)
    try:
        got = dmic.knn_graph(features, 5)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(got, want)


def test_blocks_larger_than_the_limit_give_the_same_bits():
    features = np.random.default_rng(0).standard_normal((2500, 3), dtype=np.float32)
    assert_same_bits(dmic.knn_graph(features, 7, block_rows=10**6), dmic.knn_graph(features, 7))


@pytest.mark.parametrize("k1", [2**63, -(2**70)])
def test_integers_beyond_64_bits_are_refused(k1):
    with pytest.raises(ValueError, match=f"^knn_graph: k1 must fit 64 bits, got {k1}$"):
        dmic.knn_graph(np.zeros((3, 2), np.float32), k1)
