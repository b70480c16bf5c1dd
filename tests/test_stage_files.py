"""Which files of finished stages are used, for which rows and by whom: ranks of any number, one after the other."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from compare import assert_same_bits

from dmic import process_group
from dmic.block_memory import Search
from dmic.blockwise import Ring, _slice
from dmic.csr import Csr
from dmic.distributed import _fingerprint, marked
from dmic.feature_rows import FeatureRows
from dmic.stage_files import StageFiles

N = 120
CUTS = [(0, N), (0, 9, 10, 100, N), (0, 0, 40, 40, 80, N, N), (0, 60, N), (0, 1, N - 1, N)]
ROWS = torch.arange(3 * N, dtype=torch.int32).view(3, N).T
PTR = torch.cat([torch.zeros(1, dtype=torch.int64), (torch.arange(N) % 4).cumsum(0)])
VALUES = Csr(PTR, torch.arange(int(PTR[-1]), dtype=torch.int32) % N, torch.arange(float(PTR[-1])), N)
MINE = {"features": "a", "num_samples": N}
SEARCH = Search(k1=6, k2=3, eps=0.6, min_samples=4)
LISTS = "knn_graph-k1=6"


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Files of a rank by the cuts and its number, of a job whose other ranks have what they need."""
    monkeypatch.setattr(process_group, "any_rank", lambda flag, group: flag)

    def files_of(cuts, rank, fingerprint=MINE, search=SEARCH) -> StageFiles:
        group = SimpleNamespace(rank=lambda: rank, size=lambda: len(cuts) - 1)
        files = StageFiles(tmp_path / "of" / "stages")
        files.open(fingerprint, search, Ring(group, cuts, 1000, torch.device("cpu")))
        return files

    return files_of


def save(opened, cuts, ranks=None):
    for rank in range(len(cuts) - 1) if ranks is None else ranks:
        files, (begin, end) = opened(cuts, rank), cuts[rank : rank + 2]
        files.save("knn_graph", ROWS[begin:end])
        files.save_csr("jaccard_distance", _slice(VALUES, begin, end))
    return files.folder


def assert_loaded(opened, cuts, rank):
    files, (begin, end) = opened(cuts, rank), cuts[rank : rank + 2]
    assert_same_bits(files.load("knn_graph"), ROWS[begin:end].contiguous())
    found, own = files.load_csr("jaccard_distance"), _slice(VALUES, begin, end)
    assert_same_bits((found.row_ptr, found.col_idx, found.values), (own.row_ptr, own.col_idx, own.values))
    assert found.num_cols == N


@pytest.mark.parametrize("read", CUTS)
@pytest.mark.parametrize("written", CUTS)
def test_any_number_of_ranks_reads_what_any_number_wrote(opened, written, read):
    save(opened, written)
    for rank in range(len(read) - 1):
        assert_loaded(opened, read, rank)


def test_files_that_overlap_are_used_once_and_others_not_at_all(opened):
    for cuts in CUTS:
        folder = save(opened, cuts)
    (folder / f"{LISTS}.0-120.safetensors.bak").write_bytes(b"")
    (folder / "of_the_user.txt").write_bytes(b"")
    for rank in range(3):
        assert_loaded(opened, CUTS[-1], rank)
    assert opened(CUTS[0], 0).load("invariant_expansion") is None


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_rows_that_nobody_wrote_are_missed(opened, missing):
    cuts = CUTS[1]
    save(opened, cuts, [rank for rank in range(4) if rank != missing])
    assert opened((0, N), 0).load("knn_graph") is None
    assert opened((0, N), 0).load_csr("jaccard_distance") is None
    for rank in set(range(4)) - {missing}:
        assert_loaded(opened, cuts, rank)


def test_what_another_rank_misses_is_missed_by_all(opened, monkeypatch):
    save(opened, (0, N))
    monkeypatch.setattr(process_group, "any_rank", lambda flag, group: True)
    assert opened((0, N), 0).load("knn_graph") is None


def test_a_rank_without_rows_needs_one_whole_file_for_the_shape(opened):
    empty = (0, 0, N)
    assert opened(empty, 0).load("knn_graph") is None
    folder = save(opened, (0, 60, N))
    damaged = folder / f"{LISTS}.0-60.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert_loaded(opened, empty, 0)
    damaged.with_name(f"{LISTS}.60-120.json").unlink()
    assert opened(empty, 0).load("knn_graph") is None


@pytest.mark.parametrize("text", ["", "{", "5", "[]", "{}", '{"file": 5, "blake2b": 5}'])
def test_half_of_a_description_is_none(opened, text):
    save(opened, (0, N)).joinpath(f"{LISTS}.0-120.json").write_text(text)
    assert opened((0, N), 0).load("knn_graph") is None
    save(opened, (0, N))
    assert_loaded(opened, (0, N), 0)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"features": "b", "num_samples": N}, "features b (now a)"),
        ({"features": "b", "num_samples": 30}, "features b (now a), num_samples 30 (now 120)"),
        ({"features": "a"}, "num_samples None (now 120)"),
        ('{"features": "a"}', "features None (now a), num_samples None (now 120)"),  # as an earlier version wrote it
    ],
)
def test_stages_of_something_else_are_refused_with_what_differs(opened, theirs, said):
    files = opened((0, N), 0, theirs)
    files.save("knn_graph", ROWS)
    with pytest.raises(ValueError) as found:
        opened((0, N), 0)
    assert str(found.value) == f"{files.folder}: holds stages of another gallery: {said}; choose another folder"


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ("k1", []),
        ("k2", ["knn_graph"]),
        ("eps", ["knn_graph", "invariant_expansion"]),
        ("min_samples", ["knn_graph", "invariant_expansion", "jaccard_distance"]),
    ],
)
def test_a_stage_serves_all_settings_that_it_does_not_depend_on(opened, setting, kept):
    def loaded(search):
        files = opened((0, N), 0, search=search)
        found = {stage: files.load_csr(stage) for stage in ("invariant_expansion", "jaccard_distance")}
        return [stage for stage, rows in {"knn_graph": files.load("knn_graph"), **found}.items() if rows is not None]

    save(opened, (0, N))
    opened((0, N), 0).save_csr("invariant_expansion", VALUES)
    other = replace(SEARCH, **{setting: 1})
    assert loaded(other) == kept
    opened((0, N), 0, search=other).save_csr("jaccard_distance", VALUES)
    assert len(loaded(SEARCH)) == 3, "the earlier ones are still there"


def test_a_file_under_the_name_of_another_is_not_used(opened):
    folder = save(opened, (0, 60, N))
    for suffix in (".safetensors", ".json"):
        path = folder / f"{LISTS}.0-60{suffix}"
        path.rename(path.with_name(f"knn_graph-k1=7.0-60{suffix}"))
        path.with_name(f"{LISTS}.60-120{suffix}").rename(path)
    for k1 in (6, 7):
        assert opened((0, 60, N), 0, search=replace(SEARCH, k1=k1)).load("knn_graph") is None


FEATURES = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
CAMERAS, MODALITIES = torch.arange(40) % 3, torch.arange(40) % 2


def fingerprint(features, camera_ids=CAMERAS, modality_ids=MODALITIES, ring=None):
    rows = FeatureRows.of("test", features)
    ring = ring or Ring.join(len(features), 7, torch.device("cpu"), None)
    return _fingerprint(rows, camera_ids, modality_ids, ring)


def test_a_fingerprint_is_the_same_for_any_number_of_ranks(monkeypatch):
    monkeypatch.setattr(process_group, "all_gather_rows", lambda rows, group: rows)
    whole, cuts, totals = fingerprint(FEATURES), (0, 11, 11, 40), dict.fromkeys(("features", "ids"), 0)
    for rank, (begin, end) in enumerate(pairwise(cuts)):
        ring = Ring(SimpleNamespace(rank=lambda rank=rank: rank), cuts, 5, torch.device("cpu"))
        parts = [part[begin:end] for part in (FEATURES, CAMERAS, MODALITIES)]
        found = fingerprint(*parts, ring=ring)
        for name in totals:
            totals[name] += int(found.pop(name), 16)
        assert found == {name: value for name, value in whole.items() if name not in totals}
    assert {name: f"{total % 2**64:016x}" for name, total in totals.items()} == {name: whole[name] for name in totals}


def test_a_fingerprint_is_of_everything_that_a_stage_depends_on():
    def swapped(values, dim=0):
        order = torch.arange(values.shape[dim])
        order[[1, 5]] = order[[5, 1]]
        return values.index_select(dim, order)

    nearly = FEATURES.clone()
    nearly.view(torch.int32)[-1, -1] ^= 1
    ones = torch.ones_like(CAMERAS)
    found = [
        fingerprint(FEATURES),
        fingerprint(swapped(FEATURES)),
        fingerprint(swapped(FEATURES, 1)),
        fingerprint(nearly),
        fingerprint(FEATURES, swapped(CAMERAS)),
        fingerprint(FEATURES, CAMERAS + 1),
        fingerprint(FEATURES, MODALITIES, CAMERAS),
        fingerprint(FEATURES, None, None),
        fingerprint(FEATURES, ones - 1, None),
        fingerprint(FEATURES, None, ones - 1),
        fingerprint(FEATURES, ones - 1, ones - 1),
    ]
    found += [fingerprint(torch.zeros(shape), None, None) for shape in ((40, 5), (40, 6), (38, 6))]
    texts = [str(one) for one in found]
    assert len(set(texts)) == len(texts), texts
    values = [(one["features"], one["ids"]) for one in found[:11]]
    assert len(set(values)) == len(values), "of the data alone"
    assert all(0 <= int(value, 16) < 2**64 for pair in values for value in pair)


def test_galleries_are_compared_by_their_ends_and_rows_between():
    assert marked(0) == []
    assert marked(1) == [0]
    assert marked(64) == list(range(64))
    many = marked(10_000)
    assert (many[0], many[-1]) == (0, 9_999)
    assert max(b - a for a, b in pairwise(many)) <= 157
