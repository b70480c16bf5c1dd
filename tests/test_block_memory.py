"""How many rows a block may have: the most with which memory is enough, or an error that says what would help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmic import block_memory as formulas
from dmic.block_memory import (
    MAX_BLOCK_ROWS,
    MIN_BLOCK_ROWS,
    Lengths,
    MemoryEstimate,
    Search,
    block_memory,
    block_sizes,
    choose_block_rows,
    expected_memory,
    format_bytes,
    most_pairs,
    search_memory,
)
from dmic.pseudo_labels import NOISE_EPS

sys.path.insert(0, str(Path(__file__).resolve().parent / "cuda_emulator"))

import emulator_build as build

SEARCH = Search(k1=40, k2=32, eps=0.6, min_samples=4)
CASES = [(500_000, 500_000, 1, 256), (500_000, 125_000, 4, 256), (30_000, 30_000, 1, 2048), (9_000, 9_000, 1, 8)]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (10**9, "1 GB"), (2**42, "4.4 TB")],
)
def test_bytes_are_decimal(count, text):
    assert format_bytes(count) == text


def test_an_estimate_is_that_of_its_largest_stage():
    estimate = MemoryEstimate({"knn_graph": 2_000_000, "dbscan": 5_000_000, "jaccard_distance": 3})
    assert (estimate.peak_bytes, str(estimate)) == (5_000_000, "5 MB (in dbscan)")
    assert MemoryEstimate({}).peak_bytes == 0


@pytest.mark.parametrize(
    ("own", "rows"), [(10, MIN_BLOCK_ROWS), (MIN_BLOCK_ROWS + 3, MIN_BLOCK_ROWS + 3), (10**6, MAX_BLOCK_ROWS)]
)
def test_without_a_limit_a_block_is_as_large_as_it_may_be(own, rows):
    assert choose_block_rows("", 10**6, own, 2, 64, SEARCH, None) == rows


def needs(case, device):
    """What every size of blocks that is tried needs at most."""
    return {rows: max(block_memory(*case, SEARCH, rows, device=device).values()) for rows in block_sizes(case[1])}


def test_sizes_of_blocks_halve():
    assert block_sizes(100_000) == [65536, 32768, 16384, 8192, 4096, 2048, 1024]
    assert block_sizes(5000) == [5000, 2500, 1250, 1024]
    assert block_sizes(1) == [MIN_BLOCK_ROWS]


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_the_largest_that_fits(case, device):
    needed = needs(case, device)
    for limit in sorted(needed.values()):
        largest = max(rows for rows in needed if needed[rows] <= limit)
        assert choose_block_rows("", *case, SEARCH, limit, device) == largest


@pytest.mark.parametrize(("device", "of_gpu"), [("cpu", ""), ("cuda", " of GPU memory")])
@pytest.mark.parametrize("case", CASES)
def test_too_little_memory_names_the_stage_that_needs_most_and_what_helps(case, device, of_gpu):
    needed = needs(case, device)
    rows = min(needed, key=needed.__getitem__)
    stages = block_memory(*case, SEARCH, rows, device=device)
    name = max(stages, key=stages.__getitem__)
    with pytest.raises(ValueError) as caught:
        choose_block_rows("pseudo_labels", *case, SEARCH, needed[rows] - 1, device)
    assert str(caught.value) == (
        f"pseudo_labels: about {format_bytes(needed[rows])}{of_gpu} is needed in {name}, even in blocks of {rows} "
        f"rows, max_memory allows {format_bytes(needed[rows] - 1)}; raise it, lower k1=40, k2=32 or eps=0.6, or "
        "use more ranks"
    )


def test_more_ranks_and_a_smaller_search_need_less():
    def needed(own, **changes):
        return block_memory(10**6, own, 10**6 // own, 256, Search(**vars(SEARCH) | changes), 4096)

    alone, shared = needed(10**6), needed(125_000)
    assert max(shared.values()) < max(alone.values()) / 4
    for changes in ({"k1": 20, "k2": 20}, {"k2": 6}, {"k2": 1}, {"eps": 0.3}):
        smaller = needed(125_000, **changes)
        assert sum(smaller.values()) < sum(shared.values()), changes
        assert all(smaller[stage] <= shared[stage] for stage in smaller), changes


def test_a_rank_has_room_for_what_others_send():
    """Lists that another rank found for all rows of this one, 8 bytes an entry at least, beside its own."""
    own, k1 = 500_000, SEARCH.k1
    stages = block_memory(10**6, own, 2, 4, SEARCH, MIN_BLOCK_ROWS)
    assert stages["knn_graph"] > 2 * 8 * own * k1
    block = 4 * 5_000 * 50_000
    stages = block_memory(10**5, 50_000, 2, 50_000, SEARCH, 5_000)
    assert stages["knn_graph"] > 4 * block, "two blocks that meet, and one under way in either direction"
    assert stages["k_reciprocal_encoding"] > 4 * block, "two blocks, and one under way in either direction"


def test_every_stage_has_room_for_what_it_holds_at_least(threads):
    threads(1)
    n, dim, k1, rows = 30_000, 2048, SEARCH.k1, 4096
    stages = block_memory(n, n, 1, dim, SEARCH, rows)
    assert stages["knn_graph"] > 8 * n * k1 + 2 * 4 * rows * dim, "lists, and two blocks of features"
    assert stages["dbscan"] > 16 * n * k1, "a pair for every neighbour, in both directions"
    long, of_value = Lengths(30, 900, 10), 8 * 900
    alone = block_memory(n, n, 1, dim, SEARCH, rows, long)["jaccard_distance"]
    assert alone > of_value * (n + n // 3), "own values, and inverted lists of three blocks"
    shared = block_memory(4 * n, n, 4, dim, SEARCH, rows, long)["jaccard_distance"]
    assert shared > of_value * (n + 2 * (n // 4)), "own values, those of two blocks of another rank, and their lists"
    threads(2)
    more = block_memory(n, n, 1, dim, SEARCH, rows)
    assert all(more[stage] > stages[stage] for stage in stages), "every thread has scratch"


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> list[dict]:
    """What block_memory_checks.py writes: peaks of the emulated kernels, and how long the rows of a gallery are."""
    build.build([build.library(), build.FAILING_MEMORY])
    report = tmp_path_factory.mktemp("memory") / "report.json"
    done = subprocess.run(
        [sys.executable, build.HERE / "block_memory_checks.py", report],
        env=build.environment("plain") | {"LD_PRELOAD": str(build.FAILING_MEMORY)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(report.read_text())


@pytest.fixture
def scratch_of_the_emulator(monkeypatch):
    """What the kernels take there instead: `tuned` in csrc/cuda."""
    monkeypatch.setattr(formulas, "GPU_SCRATCH_BYTES", 6_000)
    monkeypatch.setattr(formulas, "GPU_LIST_ROOM", 64)
    monkeypatch.setattr(formulas, "GPU_JOINED_ROWS", 40)
    monkeypatch.setattr(formulas, "GPU_JOINED_VALUES", 400)


def stated(measured: dict, lengths: Lengths | None) -> dict[str, int]:
    case = measured["case"]
    n, ranks = case["num_samples"], case["num_ranks"]
    search = Search(case["k1"], case["k2"], case["eps"], 4)
    place = n, -(-n // ranks), ranks, case["num_features"], search, case["block_rows"]
    return block_memory(*place, lengths, "cuda")


def test_no_stage_of_the_kernels_takes_more_in_blocks_than_stated(measured, scratch_of_the_emulator):
    """With the lengths of the rows as they are: within a factor of two, and where it matters within a few percent."""
    assert {found["case"]["num_ranks"] for found in measured} >= {1, 2, 3}
    for found in measured:
        lengths = found["lengths"]
        encoding = lengths["k_reciprocal_encoding"]
        expanded = lengths.get("invariant_expansion", encoding)
        of_case = stated(found, Lengths(encoding, expanded, lengths["jaccard_distance"]))
        assert of_case.keys() == found["peaks"].keys()
        for stage, peak in found["peaks"].items():
            assert of_case[stage] / 2 < peak <= of_case[stage], (stage, found["case"])


def test_what_is_stated_of_a_gpu_before_anything_is_known_is_a_bound(measured, scratch_of_the_emulator):
    checked = [found for found in measured if found["case"]["eps"] <= NOISE_EPS]
    assert len(checked) > 10
    for found in checked:
        for stage, bound in stated(found, None).items():
            assert found["peaks"][stage] <= bound, (stage, found["case"])


def test_a_gpu_holds_other_things(threads):
    case = 10**6, 10**6 // 8, 8, 256, SEARCH, 65536
    gpu = block_memory(*case, device="cuda")
    assert gpu.keys() == block_memory(*case).keys()
    assert all(needed > formulas.GPU_SCRATCH_BYTES for needed in gpu.values())
    assert expected_memory(*case, "cuda").peak_bytes < max(gpu.values())
    met = 2 * 65536
    assert search_memory(10**6, 65536, met, 256, 40, 3, "cuda") > met * 8 * 256, "room for the candidates of a row"
    threads(2)
    assert block_memory(*case, device="cuda:1") == gpu, "no thread has scratch"
    assert "invariant_expansion" not in block_memory(*case[:4], Search(40, 1, 0.6, 4), 65536, device="cuda")


@pytest.mark.parametrize("block_rows", [1024, 30_000, 250_000])
def test_as_many_pairs_as_memory_has_room_for_on_a_gpu_fit(block_rows):
    n, own, lengths = 10**6, 250_000, (60.0, 240.0)
    max_memory, encoding_bytes = 8 * 10**9, int(8 * own * lengths[1])
    pairs = most_pairs(max_memory, encoding_bytes, n, own, 4, block_rows, "cuda")
    of_row = 2 * pairs / own
    needed = block_memory(n, own, 4, 256, SEARCH, block_rows, Lengths(*lengths, of_row), "cuda")
    assert max_memory / 2 < max(needed["jaccard_distance"], needed["dbscan"]) <= max_memory
    assert most_pairs(300_000_000, encoding_bytes, n, own, 4, block_rows, "cuda") == 0
