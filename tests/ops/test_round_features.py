"""round_features: scaled float16 features, and a bound on what the rounding lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compare import assert_refused, assert_reproducible, assert_same_bits
from generators import edited, gallery
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmic import reference
from dmic.ops import round_features


def exact_scaled(features: np.ndarray, exponent: int) -> np.ndarray:
    """features * 2**exponent without any rounding: float64 has the range and the bits for it."""
    return np.ldexp(np.asarray(features, np.float32).astype(np.float64), exponent)


def check(features: np.ndarray, exponent: int, rounded: torch.Tensor, residual_norm: torch.Tensor) -> None:
    scaled = exact_scaled(features, exponent)
    rounded, residual_norm = rounded.cpu().numpy(), residual_norm.cpu().numpy()
    assert_same_bits(rounded, scaled.astype(np.float16))  # numpy rounds float64 to float16 once, to nearest even
    exact = np.linalg.norm(scaled - rounded.astype(np.float64), axis=1)
    bound = residual_norm.astype(np.float64)
    assert (bound >= exact * (1 - 2.0**-50)).all(), "a bound must not be below the residual"
    assert (bound <= exact * (1 + 2.0**-22) + 2.0**-149).all(), "and is at most two float32 steps above it"


@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (67, 127), (129, 129), (131, 2048)])
def test_equals_the_reference(backend, n, d):
    features = gallery(n, d + 1, seed=n).features[:, :d]
    for exponent in (-126, -20, 0, 5, 12):
        assert_same_bits(backend.round_features(features, exponent), reference.round_features(features, exponent))


@pytest.mark.parametrize("exponent", [-3, 0, 5, 12])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (67, 127), (129, 129), (131, 2048), (4096 + 32, 5)])
def test_rounds_to_nearest_even_and_bounds_the_residual(backend, n, d, exponent):
    features = gallery(n, d + 1, seed=n).features[:, :d]
    rounded, residual_norm = backend.round_features(features, exponent)
    assert (rounded.dtype, residual_norm.dtype) == (torch.float16, torch.float32)
    check(features, exponent, rounded, residual_norm)


@pytest.mark.parametrize("exponent", [0, 14, -10])
def test_every_float16_comes_back_with_no_residual_and_its_neighbors_round_to_it(backend, exponent):
    """All finite halves, and the float32 numbers half way between them, one step below and one above."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = np.sort(np.unique(halves[np.isfinite(halves)].astype(np.float64)))
    exact = np.ldexp(halves, -exponent).astype(np.float32)
    rounded, residual_norm = backend.round_features(exact[:, None], exponent)
    assert np.array_equal(rounded.numpy()[:, 0].astype(np.float64), halves)
    assert (residual_norm == 0).all()
    middle = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)
    around = np.stack([np.nextafter(middle, np.float32(-1e9)), middle, np.nextafter(middle, np.float32(1e9))], axis=1)
    around = np.ldexp(around, -exponent).astype(np.float32)
    check(around, exponent, *backend.round_features(around, exponent))


def test_signed_zeros_and_subnormals_keep_their_sign(backend):
    features = np.array([[0.0, -0.0, 1e-8, -1e-8, 2.0**-25, -(2.0**-25), 3e-45, -1e-38]], np.float32)
    rounded, residual_norm = backend.round_features(features, 0)
    check(features, 0, rounded, residual_norm)
    assert np.signbit(rounded.numpy()).tolist() == [[False, True] * 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_every_dtype_is_rounded_to_float32_first(backend, dtype):
    features = torch.from_numpy(gallery(61, 67).features).to(dtype)
    want = backend.round_features(features.to(torch.float32), 5)
    assert_same_bits(backend.round_features(features, 5), want)


def test_strided_views_equal_their_copies(backend):
    wide = torch.from_numpy(gallery(120, 90, seed=5).features)
    for view in (wide[::2], wide[:, 10:60], wide[:, ::3], wide.T, wide[:, :1].expand(-1, 7)):
        assert_same_bits(backend.round_features(view, 5), backend.round_features(view.contiguous(), 5))
    reverse = wide.numpy()[::-1]
    check(reverse, 5, *(torch.from_numpy(a) for a in round_features(reverse, 5)))


@pytest.mark.parametrize("shape", [(0, 7), (5, 0), (0, 0)])
def test_nothing_to_round(backend, shape):
    rounded, residual_norm = backend.round_features(np.zeros(shape, np.float32), 3)
    assert rounded.shape == shape
    assert residual_norm.tolist() == [0.0] * shape[0]


def test_is_reproducible(backend):
    features = backend.put(gallery(523, 300, seed=4).features)
    assert_reproducible(lambda: backend.round_features(features, 5), [features], backend)


def test_every_backend_gives_the_bits_of_the_cpu(backend):
    features = gallery(523, 301, seed=6).features
    assert_same_bits(backend.round_features(features, 7), round_features(torch.from_numpy(features), 7))


def test_the_largest_float16_fits_and_nothing_beyond(backend):
    largest = np.array([[65504.0, -65504.0]], np.float32)
    check(largest, 0, *backend.round_features(largest, 0))
    check(largest, -126, *backend.round_features(largest, -126))
    for value in (np.nextafter(np.float32(65504), np.float32(1e9)), -65520.0, 1e30):
        features = edited(np.zeros((9, 4), np.float32), (7, 2), value)
        assert_refused(
            lambda features=features: backend.round_features(features, 0), "round_features", "65504", "7", "0"
        )
    assert_refused(lambda: backend.round_features(np.ones((1, 1), np.float32), 16), "round_features", "exponent", "16")


FEATURES = gallery(32, 6).features


@pytest.mark.parametrize(
    ("features", "exponent", "parts"),
    [
        (FEATURES, -127, ["exponent", "-127"]),
        (FEATURES, 128, ["exponent", "128"]),
        (FEATURES, 2.5, ["exponent", "2.5"]),
        (FEATURES[0], 1, ["features", "[6]"]),
        (FEATURES.astype(np.int64), 3, ["features", "int64"]),
        (edited(FEATURES, (17, 4), np.nan), 3, ["features", "finite", "nan", "17"]),
        (edited(FEATURES, (17, 4), -np.inf), 3, ["features", "finite", "-inf", "17"]),
    ],
)
def test_bad_arguments_are_named(features, exponent, parts):
    assert_refused(lambda: round_features(features, exponent), "round_features", *parts)


def test_the_raw_op_checks_its_arguments_too(backend):
    features = backend.put(FEATURES)
    for args in ((features.double(), 3), (features[0], 3), (features, 200)):
        assert_refused(lambda args=args: backend.raw.round_features(*args), "round_features")


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_opcheck(backend):
    for args in ((backend.put(FEATURES), 5), (backend.put(FEATURES)[:0], 3), (backend.put(FEATURES).T, -2)):
        torch.library.opcheck(torch.ops.dmic.round_features, args)


@pytest.mark.not_emulated("fakes belong to torch.ops.dmic")
def test_compiles(backend):
    features = backend.put(FEATURES)

    def product(x):
        rounded, residual_norm = torch.ops.dmic.round_features(x * 2, 4)
        return rounded.float() @ rounded.float().T, residual_norm * 2

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(features), product(features))


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-1, 1, width=32)),
    st.integers(-40, 15),
)
def test_any_numbers_round_to_nearest_even(features, exponent):
    check(features, exponent, *(torch.from_numpy(a) for a in round_features(features, exponent)))
