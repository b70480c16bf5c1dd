import inspect
import logging

import numpy as np
import oracles
import pytest
import torch
from sklearn.cluster import DBSCAN

import dmic
from dmic.compat import compute_jaccard_distance

# Entries of an expanded encoding are off by at most 2**-30 each, one row has fewer than 300, dJ/ds is at most 2, and J
# is rounded to float32 once.
TOLERANCE = 2 * 300 * 2.0**-30 + 2.0**-24


def published_distance(features, k1, k2):
    """The dense array of the published function, in float64."""
    neighbor_idx = np.argsort(oracles.squared_distances(features), axis=1, kind="stable")[:, :k1]
    weights = oracles.encoding(features, neighbor_idx, int(np.around(k1 / 2)))
    if k2 != 1:
        weights = np.stack([weights[neighbors[:k2]].mean(axis=0) for neighbors in neighbor_idx])
    return oracles.jaccard_distance(weights)[0]


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (25, 1), (15, 15), (1, 1), (2, 2)])
def test_distances_equal_the_published_formula(gallery, k1, k2):
    want = published_distance(gallery.features, k1, k2)
    got = compute_jaccard_distance(gallery.features, k1=k1, k2=k2)
    assert got.dtype == np.float32
    assert got.shape == (300, 300)
    assert np.abs(got - want).max() <= TOLERANCE
    assert np.array_equal(got == 1, want == 1), "pairs without a common neighbour, and only they, are at 1"
    assert np.array_equal(got, got.T)
    assert (np.diag(got) == 0).all()


def test_an_existing_script_keeps_its_labels(gallery):
    """The two lines that the field's training scripts share."""
    cluster = DBSCAN(eps=0.6, min_samples=4, metric="precomputed", n_jobs=-1)
    target_features = torch.from_numpy(gallery.features)
    labels = cluster.fit_predict(compute_jaccard_distance(target_features, k1=20, k2=6, search_option=3))
    assert 5 < labels.max() < 60
    assert np.array_equal(labels, cluster.fit_predict(published_distance(gallery.features, 20, 6)))
    assert np.array_equal(labels, dmic.pseudo_labels(gallery.features, k1=20, k2=6, eps=0.6).labels)


def test_float16_is_the_rounded_float32(gallery):
    half = compute_jaccard_distance(gallery.features, use_float16=True)
    assert half.dtype == np.float16
    assert np.array_equal(half, compute_jaccard_distance(gallery.features).astype(np.float16))


def test_the_signature_is_the_published_one():
    parameters = inspect.signature(compute_jaccard_distance).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional[1:]] == [
        ("k1", 20), ("k2", 6), ("print_flag", True), ("search_option", 0), ("use_float16", False),
    ]  # fmt: skip
    assert positional[0].name == "target_features"


@pytest.mark.parametrize("search_option", [1, 2, 3])
def test_search_options_change_nothing(gallery, search_option):
    want = compute_jaccard_distance(gallery.features)
    assert np.array_equal(compute_jaccard_distance(gallery.features, search_option=search_option), want)


def test_precomputed_steps_change_nothing(gallery):
    neighbor_idx, _ = dmic.knn_graph(gallery.features, 20)
    encoding = dmic.k_reciprocal_encoding(gallery.features, neighbor_idx, 10)
    want = compute_jaccard_distance(gallery.features)
    assert np.array_equal(compute_jaccard_distance(gallery.features, neighbor_idx=neighbor_idx), want)
    assert np.array_equal(compute_jaccard_distance(None, neighbor_idx=neighbor_idx, encoding=encoding), want)


def test_it_logs_and_does_not_print(gallery, capfd, caplog):
    with caplog.at_level(logging.INFO, logger="dmic.compat"):
        compute_jaccard_distance(gallery.features, print_flag=False)
        assert not caplog.records
        compute_jaccard_distance(gallery.features)
    assert [r.getMessage().split()[0] for r in caplog.records] == ["computing", "done"]
    assert capfd.readouterr() == ("", "")


def test_no_samples_give_an_empty_array():
    assert compute_jaccard_distance(np.zeros((0, 4), np.float32)).shape == (0, 0)
    assert compute_jaccard_distance(np.zeros((0, 4), np.float32), use_float16=True).dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search_option": 4}, "search_option must be one of 0, 1, 2, 3, got 4"),
        ({"k1": 301}, r"k1 must be in \[1, N\], got k1=301 with N=300"),
        ({"k2": 21}, r"k2 must be in \[1, k1\], got k2=21 with k1=20"),
        ({"target_features": np.full((30, 4), np.nan)}, "features must be finite, got nan in row 0"),
    ],
)
def test_a_wrong_argument_is_named(gallery, arguments, message):
    with pytest.raises(ValueError, match=f"^compute_jaccard_distance: {message}$"):
        compute_jaccard_distance(**{"target_features": gallery.features, **arguments})
