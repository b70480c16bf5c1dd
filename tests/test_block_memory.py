"""How many rows a block may have: the most with which memory is enough, or an error that says what would help."""

import pytest

from dmic.block_memory import (
    MAX_BLOCK_ROWS,
    MIN_BLOCK_ROWS,
    MemoryEstimate,
    Search,
    block_memory,
    block_sizes,
    choose_block_rows,
    format_bytes,
)

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


def needs(case):
    """What every size of blocks that is tried needs at most."""
    return {rows: max(block_memory(*case, SEARCH, rows).values()) for rows in block_sizes(case[1])}


def test_sizes_of_blocks_halve():
    assert block_sizes(100_000) == [65536, 32768, 16384, 8192, 4096, 2048, 1024]
    assert block_sizes(5000) == [5000, 2500, 1250, 1024]
    assert block_sizes(1) == [MIN_BLOCK_ROWS]


@pytest.mark.parametrize("case", CASES)
def test_a_block_is_the_largest_that_fits(case):
    needed = needs(case)
    for limit in sorted(needed.values()):
        assert choose_block_rows("", *case, SEARCH, limit) == max(rows for rows in needed if needed[rows] <= limit)


@pytest.mark.parametrize("case", CASES)
def test_too_little_memory_names_the_stage_that_needs_most_and_what_helps(case):
    needed = needs(case)
    rows = min(needed, key=needed.__getitem__)
    stages = block_memory(*case, SEARCH, rows)
    name = max(stages, key=stages.__getitem__)
    with pytest.raises(ValueError) as caught:
        choose_block_rows("pseudo_labels", *case, SEARCH, needed[rows] - 1)
    assert str(caught.value) == (
        f"pseudo_labels: about {format_bytes(needed[rows])} is needed in {name}, even in blocks of {rows} rows, "
        f"max_memory allows {format_bytes(needed[rows] - 1)}; raise it, lower k1=40, k2=32 or eps=0.6, or use more "
        "ranks"
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
    assert stages["knn_graph"] > 5 * block, "two blocks that meet, room for the next two, and one that is sent"
    assert stages["k_reciprocal_encoding"] > 4 * block, "two blocks, and one under way in either direction"


def test_every_stage_has_room_for_what_it_holds_at_least(threads):
    threads(1)
    n, dim, k1, rows = 30_000, 2048, SEARCH.k1, 4096
    stages = block_memory(n, n, 1, dim, SEARCH, rows)
    assert stages["knn_graph"] > 8 * n * k1 + 2 * 4 * rows * dim, "lists, and two blocks of features"
    assert stages["dbscan"] > 24 * n * k1, "a pair for every neighbour, in both directions"
    threads(2)
    more = block_memory(n, n, 1, dim, SEARCH, rows)
    assert all(more[stage] > stages[stage] for stage in stages), "every thread has scratch"
