import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest
import sklearn.base
import test_arrays
import torch
from compare import assert_same_bits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

import dmic
from dmic import Csr, JaccardDBSCAN, estimate_memory, pseudo_labels
from dmic.block_memory import Search, block_memory, block_sizes

STAGES = ["knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan"]
K1, K2, EPS = 15, 4, 0.55  # k1 / 2 = 7.5 rounds up to 8, the even neighbour


def dense_labels(features, k1=K1, k2=K2, eps=EPS, min_samples=4, camera_ids=None, modality_ids=None):
    """The method on dense float64 matrices and scikit-learn's DBSCAN."""
    neighbor_idx = np.argsort(oracles.squared_distances(features), axis=1, kind="stable")[:, :k1]
    weights = oracles.encoding(features, neighbor_idx, int(np.around(k1 / 2)))
    weights = oracles.invariant_expansion(weights, neighbor_idx, k2, camera_ids, modality_ids)
    return oracles.dbscan(oracles.jaccard_distance(weights)[0], eps, min_samples)


@pytest.fixture(scope="module")
def steps(gallery):
    """Every intermediate result, as numpy."""
    neighbor_idx, _ = dmic.knn_graph(gallery.features, K1)
    encoding = dmic.k_reciprocal_encoding(gallery.features, neighbor_idx, 8)
    expanded = dmic.invariant_expansion(encoding, neighbor_idx, K2, gallery.camera_ids, gallery.modality_ids)
    return neighbor_idx, encoding, dmic.jaccard_distance(expanded, EPS)


@pytest.mark.parametrize("modality", [False, True])
@pytest.mark.parametrize("camera", [False, True])
def test_labels_equal_the_dense_method_and_scikit_learn(gallery, camera, modality):
    ids = {
        "camera_ids": gallery.camera_ids if camera else None,
        "modality_ids": gallery.modality_ids if modality else None,
    }
    labels, core_mask = dense_labels(gallery.features, **ids)
    result = pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS, **ids)
    assert 5 < result.num_clusters < 60, "a gallery with nothing to find proves nothing"
    assert 0 < result.num_outliers < 200
    assert np.array_equal(result.labels, labels)
    assert np.array_equal(result.core_mask, core_mask)


def test_the_half_list_rounds_half_to_even(gallery):
    """k1 = 13 gives 6 (not 7): with k2 = 1 the encoding alone decides the labels."""
    labels, _ = dense_labels(gallery.features, k1=13, k2=1, eps=0.7)
    assert np.array_equal(pseudo_labels(gallery.features, k1=13, k2=1, eps=0.7).labels, labels)
    neighbor_idx, _ = dmic.knn_graph(gallery.features, 13)
    wrong = dmic.k_reciprocal_encoding(gallery.features, neighbor_idx, 7)
    assert not np.array_equal(pseudo_labels(k1=13, k2=1, eps=0.7, encoding=wrong).labels, labels)


def test_ids_have_no_effect_without_an_expansion(gallery):
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    want = pseudo_labels(gallery.features, k1=K1, k2=1)
    assert_same_bits(pseudo_labels(gallery.features, k1=K1, k2=1, **ids).labels, want.labels)


def test_counts_sizes_and_seconds(gallery):
    result = pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS)
    assert result.num_clusters == result.labels.max() + 1
    assert result.num_outliers == (result.labels == dmic.NOISE).sum()
    sizes = result.cluster_sizes()
    assert sizes.tolist() == [(result.labels == c).sum() for c in range(result.num_clusters)]
    assert sizes.sum() + result.num_outliers == len(gallery.features)
    assert list(result.seconds) == STAGES
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert repr(result).startswith(f"PseudoLabels(num_samples=300, num_clusters={result.num_clusters}, num_outliers=")
    assert "\n" not in repr(result)


@pytest.mark.parametrize("given", [1, 2, 3])
def test_every_step_accepts_the_result_of_the_step_before(gallery, steps, given):
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    want = pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS, **ids)
    neighbor_idx, encoding, distance = steps
    inputs = [
        {"features": gallery.features, "neighbor_idx": neighbor_idx, **ids},
        {"encoding": encoding, "neighbor_idx": neighbor_idx, **ids},
        {"distance": distance},
    ][given - 1]
    result = pseudo_labels(k1=K1, k2=K2, eps=EPS, **inputs)
    assert_same_bits(result.labels, want.labels)
    assert_same_bits(result.core_mask, want.core_mask)
    assert list(result.seconds) == STAGES[given if given < 3 else 4 :]


def test_an_encoding_without_neighbors_searches_for_them(gallery, steps):
    result = pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS, encoding=steps[1])
    assert list(result.seconds) == ["knn_graph", *STAGES[2:]]
    assert_same_bits(result.labels, pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS).labels)


def test_neighbors_of_faiss(gallery):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatL2(gallery.features.shape[1])
    index.add(gallery.features)
    neighbor_idx = index.search(gallery.features, K1 + 5)[1]  # int64, and more columns than needed
    result = pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS, neighbor_idx=neighbor_idx)
    assert_same_bits(result.labels, pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS).labels)


def test_results_are_of_the_kind_of_the_features(gallery):
    want = pseudo_labels(gallery.features, k1=K1, k2=K2)
    tensor = torch.from_numpy(gallery.features)
    for features, kind in (
        (gallery.features, np.ndarray),
        (tensor, torch.Tensor),
        (gallery.features.tolist(), np.ndarray),
        (test_arrays.OnlyDlpack(tensor), test_arrays.OnlyDlpack),
    ):
        result = pseudo_labels(features, k1=K1, k2=K2)
        for name in ("labels", "core_mask"):
            got = getattr(result, name)
            assert isinstance(got, kind)
            assert_same_bits(got.tensor if kind is test_arrays.OnlyDlpack else got, getattr(want, name))
        assert isinstance(result.cluster_sizes(), kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(gallery, dtype):
    features = torch.from_numpy(gallery.features).to(dtype)
    want = pseudo_labels(features.float(), k1=K1, k2=K2)
    assert_same_bits(pseudo_labels(features, k1=K1, k2=K2).labels, want.labels)


def test_strides_do_not_matter(gallery):
    want = pseudo_labels(gallery.features, k1=K1, k2=K2)
    wide = np.repeat(gallery.features, 2, axis=1)[:, ::2]
    for features in (np.asfortranarray(gallery.features), wide, torch.from_numpy(wide), gallery.features[::-1][::-1]):
        assert_same_bits(pseudo_labels(features, k1=K1, k2=K2).labels, want.labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, ">i8"])
def test_ids_of_any_integer_type_and_with_gaps(gallery, dtype):
    want = pseudo_labels(gallery.features, k1=K1, k2=K2, camera_ids=gallery.camera_ids)
    camera_ids = (40 * gallery.camera_ids + 7).astype(dtype)
    assert_same_bits(pseudo_labels(gallery.features, k1=K1, k2=K2, camera_ids=camera_ids).labels, want.labels)


def test_no_samples_give_an_empty_result():
    for features in (np.zeros((0, 8), np.float32), torch.zeros(0, 8)):
        result = pseudo_labels(features, camera_ids=[], neighbor_idx=np.zeros((0, 0), np.int32))
        assert type(result.labels) is type(features)
        assert_same_bits(result.labels, np.zeros(0, np.int64))
        assert_same_bits(result.core_mask, np.zeros(0, bool))
        assert (result.num_clusters, result.num_outliers) == (0, 0)
        assert len(result.cluster_sizes()) == 0


def test_the_number_of_threads_changes_no_bit(gallery, threads):
    results = []
    for count in (1, 2):
        threads(count)
        results.append(pseudo_labels(gallery.features, k1=K1, k2=K2, camera_ids=gallery.camera_ids))
    assert_same_bits(results[0].labels, results[1].labels)
    assert_same_bits(results[0].core_mask, results[1].core_mask)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_one_and_two_samples(num_samples):
    features = np.eye(num_samples, 3, dtype=np.float32)
    assert pseudo_labels(features, k1=1, k2=1).labels.tolist() == [-1] * num_samples
    assert pseudo_labels(features, k1=1, k2=1, min_samples=1).labels.tolist() == list(range(num_samples))


def test_all_samples_equal():
    """Beyond k1 duplicates the others are missing from their own lists: their rows are empty and they are noise."""
    result = pseudo_labels(np.ones((20, 3), np.float32), k1=8, k2=3)
    assert result.labels.tolist() == [0] * 20
    assert pseudo_labels(np.ones((20, 3), np.float32), k1=8, k2=1).labels.tolist() == [0] * 8 + [-1] * 12


def test_progress_names_the_stages_in_order(gallery):
    calls = []
    pseudo_labels(gallery.features, k1=K1, k2=K2, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == STAGES
    assert all(0 <= done <= total for _, done, total in calls)


def test_an_exception_of_the_progress_callback_ends_the_work(gallery):
    def stop(stage, done, total):
        raise RuntimeError(f"enough of {stage}")

    with pytest.raises(RuntimeError, match="enough of knn_graph"):
        pseudo_labels(gallery.features, k1=K1, k2=K2, progress=stop)


def test_nothing_is_printed(gallery, capfd):
    pseudo_labels(gallery.features, k1=K1, k2=K2)
    assert capfd.readouterr() == ("", "")


FEATURES = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)


def with_value(value, dtype=np.float32):
    features = FEATURES.astype(dtype)
    features[5, 2] = value
    return features


def rows(values, row_ptr=(0, 2, 4), col_idx=(0, 1, 0, 1), num_cols=2):
    return Csr(np.array(row_ptr), np.array(col_idx, np.int32), np.array(values), num_cols)


HALVES = rows(np.full(4, 2**29, np.int32))
NEAR = rows(np.array([0, 0.5, 0.5, 0], np.float32))


NUMBERED = re.escape("numpy.unique(ids, return_inverse=True)[1] numbers any ids")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": FEATURES[0]}, r"features must have shape \[N, d\], got \(6,\)"),
        ({"features": FEATURES > 0}, "features must be one of float32, float16, bfloat16, float64, got bool"),
        ({"features": FEATURES.astype(int)}, "features must be one of float32, float16, bfloat16, float64, got int64"),
        ({"features": with_value(np.nan)}, "features must be finite, got nan in row 5"),
        ({"features": with_value(-np.inf)}, "features must be finite, got -inf in row 5"),
        ({"features": torch.from_numpy(with_value(np.inf)).half()}, "features must be finite, got inf in row 5"),
        ({"features": with_value(1e300, float)}, r"features must fit float32, got 1e\+300 in row 5"),
        ({"k1": 0}, r"k1 must be in \[1, N\], got k1=0"),
        ({"k1": 41}, r"k1 must be in \[1, N\], got k1=41 with N=40"),
        ({"k1": 2.5}, "k1 must be an integer, got 2.5"),
        ({"k2": 0}, r"k2 must be in \[1, k1\], got k2=0 with k1=30"),
        ({"k2": 31}, r"k2 must be in \[1, k1\], got k2=31 with k1=30"),
        ({"k2": "6"}, "k2 must be an integer, got '6'"),
        ({"eps": -0.1}, r"eps must be in \[0, 1\], got -0.1"),
        ({"eps": 1.5}, r"eps must be in \[0, 1\], got 1.5"),
        ({"eps": float("nan")}, r"eps must be in \[0, 1\], got nan"),
        ({"eps": None}, r"eps must be a number in \[0, 1\], got None"),
        ({"min_samples": 0}, "min_samples must be at least 1, got 0"),
        ({"min_samples": 1.5}, "min_samples must be an integer, got 1.5"),
        ({"max_memory": "4GB"}, "max_memory must be an integer, got '4GB'"),
        ({"camera_ids": np.zeros(39, int)}, r"camera_ids must have shape \[N\], got \(39,\) with N=40"),
        ({"camera_ids": np.zeros((40, 1), int)}, r"camera_ids must have shape \[N\], got \(40, 1\) with N=40"),
        ({"modality_ids": np.zeros(40)}, rf"modality_ids must be integers, got float64 \({NUMBERED}\)"),
        ({"camera_ids": ["c1", "c2"] * 20}, rf"camera_ids must hold integers \({NUMBERED}\), got dtype <U2"),
        ({"modality_ids": np.arange(40) > 3}, rf"modality_ids must be integers, got bool \({NUMBERED}\)"),
        ({"modality_ids": np.arange(40) - 3}, r"modality_ids must be in \[0, 2\*\*63\), got -3"),
        ({"camera_ids": np.full(40, 2**63, np.uint64)}, r"camera_ids must be in .*, got 9223372036854775808"),
        ({"neighbor_idx": np.zeros((40, 29), int)}, r"neighbor_idx .*, got \(40, 29\) with N=40 and k1=30"),
        ({"neighbor_idx": np.zeros((39, 30), int)}, r"neighbor_idx .*, got \(39, 30\) with N=40 and k1=30"),
        ({"neighbor_idx": np.zeros((40, 30))}, "neighbor_idx must be integers, got float64"),
        ({"neighbor_idx": np.full((40, 30), -1)}, r"neighbor_idx must be in \[0, N\), got -1 with N=40"),
        ({"neighbor_idx": np.full((40, 30), 2**32)}, r"neighbor_idx must be in \[0, N\), got 4294967296 with N=40"),
        ({"encoding": HALVES}, "encoding must have one row per sample, got 2 rows with N=40"),
        ({"distance": NEAR}, r"distance must have one row per sample, got 2 rows with features of shape \(40, 6\)"),
        ({"features": None}, "features are needed to compute the encoding, got None"),
        ({"device": "cpu", "encoding": HALVES}, "encoding cannot be given with a path, .* or a device"),
        ({"features": "gallery.npy", "device": "gpu"}, "device must be cpu, cuda or cuda:NUMBER, got 'gpu'"),
        ({"features": "gallery.npy", "device": "mps"}, "device must be cpu, cuda or cuda:NUMBER, got 'mps'"),
        ({"features": "gallery.npy", "device": "cuda:99"}, r"device cuda:99: there (is|are) \d GPU\(s\); .*"),
        ({"features": None, "encoding": HALVES, "k1": 2, "k2": 2}, "features or neighbor_idx .* k2=2, got None"),
        ({"features": None, "distance": NEAR, "encoding": HALVES}, "encoding has no effect when distance is given; .*"),
        ({"features": None, "distance": NEAR, "camera_ids": [0, 1]}, "camera_ids has no effect when .*"),
        ({"features": None, "distance": HALVES}, "distance must hold float32 values, got int32"),
        ({"features": None, "distance": rows(np.full(4, np.nan, "f"))}, "distance must not hold .* NaN, got nan"),
        ({"features": None, "distance": rows(np.full(4, -1, "f"))}, "distance must not hold .* NaN, got -1.0"),
        ({"features": None, "distance": rows(np.ones(4, "f"), num_cols=3)}, r"distance must be square, got .*"),
        ({"features": None, "distance": rows(np.ones(4, "f"), col_idx=(1, 0, 0, 1))}, "distance: col_idx must .*"),
        ({"features": None, "encoding": NEAR, "k1": 2, "k2": 1}, "encoding must hold int32 values, got float32"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_before_any_work(arguments, message):
    def progress(stage, done, total):
        raise AssertionError(f"{stage} has started")

    with pytest.raises(ValueError, match=f"^pseudo_labels: {message}$"):
        pseudo_labels(**{"features": FEATURES, "progress": progress, **arguments})


@pytest.mark.parametrize("argument", ["features", "camera_ids", "neighbor_idx", "encoding", "distance"])
def test_what_is_no_array_is_a_type_error(argument):
    arguments = {"features": FEATURES, argument: b"abc"}
    with pytest.raises(TypeError, match=f"^pseudo_labels: {argument} must be an? (array|Csr), got bytes$"):
        pseudo_labels(**arguments)


def test_the_estimate_grows_linearly_and_says_where_the_peak_is():
    small, large = (estimate_memory(n, 2048, k1=40, k2=32).peak_bytes for n in (10**5, 10**6))
    assert 9.5 < large / small < 10.5
    estimate = estimate_memory(10**5, 2048, k1=40, k2=32)
    assert list(estimate.stages) == STAGES
    assert estimate.peak_bytes == max(estimate.stages.values())
    assert str(estimate) == f"{estimate.peak_bytes / 1e9:.3g} GB (in jaccard_distance)"
    copied = estimate_memory(10**5, 2048, k1=40, k2=32, copy_features=True)
    assert copied.stages["knn_graph"] - estimate.stages["knn_graph"] == 4 * 10**5 * 2048
    assert "invariant_expansion" not in estimate_memory(10**5, 2048, k1=40, k2=1).stages
    assert estimate_memory(0, 2048).peak_bytes < 10**8


PEAKS = r"""
import json, re, sys
import numpy, torch
torch.set_num_threads(1)
import dmic, generators
from dmic.block_memory import LIBRARY_BYTES, Search, block_memory, choose_block_rows

memory = lambda key: 1024 * int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1])
path, n, dim, noise, k1, k2, eps, max_memory = json.loads(sys.argv[1])
search = Search(k1, k2, eps, 4)
gallery = generators.gallery(n, dim, noise=noise)
features, stated = gallery.features, dmic.estimate_memory(n, dim, k1=k1, k2=k2, eps=eps).peak_bytes
if max_memory:
    numpy.save(path, features)
    case = n, n, 1, dim, search
    features, stated = path, block_memory(*case, choose_block_rows("", *case, max_memory))
    stated = max(stated.values()) + LIBRARY_BYTES
dmic.pseudo_labels(gallery.features[:50], k1=k1, k2=k2)
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
dmic.pseudo_labels(features, k1=k1, k2=k2, eps=eps, max_memory=max_memory, camera_ids=gallery.camera_ids)
print(memory("VmHWM") - before, stated)
"""


@pytest.mark.parametrize(
    "case",
    [
        (2500, 64, 0.7, 40, 32, 0.6, None),
        (2500, 64, 3.0, 40, 32, 0.6, None),
        (2500, 64, 3.0, 40, 32, 1.0, None),
        (10_000, 256, 0.7, 30, 6, 0.6, None),
        (10_000, 256, 3.0, 30, 6, 0.6, None),
        (7000, 2048, 3.0, 30, 1, 0.6, None),  # what looks for directions takes most
        (10_000, 256, 0.7, 30, 6, 0.6, 10**8),  # from a file
        (10_000, 256, 0.7, 30, 6, 0.6, 5 * 10**7),
        (10_000, 256, 3.0, 30, 6, 0.6, 5 * 10**7),
    ],
)
def test_the_estimate_covers_the_peak(case, tmp_path):
    """In a process of its own: identities clear and drowned in noise, usual and largest eps; Linux keeps the peak."""
    path = os.pathsep.join([str(Path(dmic.__file__).parents[1]), str(Path(__file__).parent)])
    options = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "PYTHONPATH": path}}
    given = json.dumps([str(tmp_path / "features.npy"), *case])
    peak, estimate = map(int, subprocess.run([sys.executable, "-c", PEAKS, given], **options).stdout.split())
    assert 0 < peak <= estimate
    assert case[0] < 7000 or estimate < 4 * peak, "no bound to plan with"


def test_no_work_starts_above_the_memory_limit(gallery):
    needed = estimate_memory(300, 33, k1=K1, k2=K2).peak_bytes
    pseudo_labels(gallery.features, k1=K1, k2=K2, max_memory=needed)
    message = (
        r"^pseudo_labels: about \S+ MB \(in \w+\) is needed beyond the features, max_memory allows \S+ MB; "
        r"raise it or lower k1=15, k2=4 or eps=0.6$"
    )
    with pytest.raises(ValueError, match=message):
        pseudo_labels(gallery.features, k1=K1, k2=K2, max_memory=needed - 1, progress=lambda *_: 1 / 0)


def test_a_gallery_on_a_gpu_is_clustered_in_blocks_if_only_they_fit():
    module = sys.modules["dmic.pseudo_labels"]
    n, dim, search = 10**6, 256, Search(30, 6, 0.6, 4)
    features = torch.empty(n, dim, device="meta")
    inputs = module.Inputs(n, torch.device("cuda"), features, None, None, None, None, None)
    whole = estimate_memory(n, dim, device="cuda").peak_bytes
    least = min(max(block_memory(n, n, 1, dim, search, b, device="cuda").values()) for b in block_sizes(n))
    assert least < whole
    assert not module._needs_blocks("", inputs, search, whole)
    assert module._needs_blocks("", inputs, search, whole - 1)
    assert module._needs_blocks("", inputs, search, least)
    with pytest.raises(ValueError, match="is needed beyond the features"):
        module._needs_blocks("", inputs, search, least - 1)


def test_max_memory_holds_for_a_gallery_with_hubs_too():
    n, k1, k2 = 4000, 40, 32
    features = np.eye(n, dtype=np.float32)
    features[:k1] = 1e-3 * np.random.default_rng(0).standard_normal((k1, n))  # the nearest of all others
    enough = estimate_memory(n, n, k1=k1, k2=k2).peak_bytes
    assert pseudo_labels(features, k1=k1, k2=k2).num_clusters == 1, "every pair is within eps"
    assert enough < 24 * n * (n - 1) // 2, "which takes more than the estimate"
    with pytest.raises(ValueError, match=r"jaccard_distance: more than max_pairs=.* are within max_distance=0.6"):
        pseudo_labels(features, k1=k1, k2=k2, max_memory=enough)


def test_estimates_check_their_arguments():
    with pytest.raises(ValueError, match=r"^estimate_memory: eps must be in \[0, 1\], got 2.0$"):
        estimate_memory(10, 10, eps=2.0)


class TestEstimator:
    def test_it_finds_the_same_labels(self, gallery):
        ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
        estimator = JaccardDBSCAN(k1=K1, k2=K2, eps=EPS)
        assert estimator.fit(gallery.features, **ids) is estimator
        want = pseudo_labels(gallery.features, k1=K1, k2=K2, eps=EPS, **ids)
        assert_same_bits(estimator.labels_, want.labels)
        assert_same_bits(estimator.core_sample_indices_, np.flatnonzero(want.core_mask))
        assert_same_bits(estimator.components_, gallery.features[want.core_mask])
        assert estimator.n_features_in_ == 33
        assert_same_bits(JaccardDBSCAN(k1=K1, k2=K2, eps=EPS).fit_predict(gallery.features, **ids), want.labels)

    def test_torch_stays_torch(self, gallery):
        estimator = JaccardDBSCAN(k1=K1, k2=K2).fit(torch.from_numpy(gallery.features))
        for name in ("labels_", "core_sample_indices_", "components_"):
            assert isinstance(getattr(estimator, name), torch.Tensor)

    def test_it_accepts_precomputed_steps(self, gallery, steps):
        estimator = JaccardDBSCAN(k1=K1, k2=K2, eps=EPS).fit(None, distance=steps[2])
        assert_same_bits(estimator.labels_, dmic.dbscan(steps[2], EPS, 4)[0])
        with pytest.raises(AttributeError, match="components_ exists after a fit with features"):
            _ = estimator.components_

    def test_scikit_learn_clones_it(self):
        estimator = JaccardDBSCAN(k1=7, progress=print)
        clone = sklearn.base.clone(estimator)
        assert clone is not estimator
        assert clone.get_params() == estimator.get_params()

    def test_it_ends_a_pipeline_of_scikit_learn(self, gallery):
        pipeline = make_pipeline(Normalizer(), JaccardDBSCAN(k1=K1, k2=K2))
        labels = pipeline.fit_predict(gallery.features, jaccarddbscan__camera_ids=gallery.camera_ids)
        features = Normalizer().fit_transform(gallery.features)
        assert_same_bits(labels, pseudo_labels(features, k1=K1, k2=K2, camera_ids=gallery.camera_ids).labels)
        pipeline.set_params(jaccarddbscan__eps=0.3)
        assert pipeline[-1].eps == 0.3

    def test_parameters_are_set_by_name(self):
        estimator = JaccardDBSCAN()
        assert estimator.set_params(k2=9, eps=0.3) is estimator
        assert estimator.get_params() == {
            "k1": 30, "k2": 9, "eps": 0.3, "min_samples": 4, "max_memory": None, "progress": None,
        }  # fmt: skip
        with pytest.raises(ValueError, match="there is no parameter 'min_sample', did you mean 'min_samples'"):
            estimator.set_params(k1=5, min_sample=3)
        assert estimator.k1 == 30, "nothing is set when something is wrong"

    def test_values_are_checked_by_fit(self):
        estimator = JaccardDBSCAN(eps=7)
        with pytest.raises(ValueError, match=r"eps must be in \[0, 1\], got 7"):
            estimator.fit(FEATURES)

    def test_repr_shows_what_differs_from_the_defaults(self):
        assert repr(JaccardDBSCAN()) == "JaccardDBSCAN()"
        assert repr(JaccardDBSCAN(k1=40, eps=0.3)) == "JaccardDBSCAN(k1=40, eps=0.3)"


def test_the_public_names_are_there():
    for name in dmic.__all__:
        assert getattr(dmic, name) is not None
    assert set(dmic.__all__) <= set(dir(dmic))
    assert callable(dmic.pseudo_labels), "the function, not the module of the same name"
    with pytest.raises(AttributeError, match="module 'dmic' has no attribute 'psuedo_labels'"):
        _ = dmic.psuedo_labels
    assert logging.getLogger("dmic").handlers == [], "a library leaves handlers to the application"
