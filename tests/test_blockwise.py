"""The pieces of a clustering in blocks, where galleries of tests are too small or too even to need them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compare import assert_same_bits
from generators import gallery

from dmic import blockwise, ops
from dmic.blockwise import Lists, Progress, Ring, Rows
from dmic.csr import Csr
from dmic.feature_rows import FeatureRows

CPU = torch.device("cpu")


@pytest.mark.parametrize("block_rows", [1, 2, 5, 12, 30])
def test_blocks_are_as_few_as_can_be_and_of_nearly_one_size(block_rows):
    ring = Ring.join(100, block_rows, CPU, None)
    for length in range(31):
        blocks = ring.blocks(Rows(7, 7 + length))
        assert [row for block in blocks for row in range(*block)] == list(range(7, 7 + length))
        sizes = [len(block) for block in blocks]
        assert len(blocks) == -(-length // block_rows)
        assert max(sizes, default=0) <= block_rows
        assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("width", [2, 4, 7])
def test_lists_are_merged_a_few_rows_at_a_time(monkeypatch, width):
    def ordered(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, idx = part.sort(dim=1, stable=True)
        return idx.int(), values

    monkeypatch.setattr(blockwise, "MERGED_ROWS", 3)
    draws = torch.Generator().manual_seed(width)
    dist = torch.randint(4, (10, 20), generator=draws).float()  # with ties, which go to the lower index
    others, mine = dist[:, :12], dist[:, 12:]
    lists = Lists.empty(10, 4, CPU)
    lists.merge(*(part[:, :3] for part in ordered(mine)), 12)
    lists.merge(*(part[:, :width] for part in ordered(others)))
    near = torch.cat([ordered(others)[1][:, :width], ordered(mine)[1][:, :3]], 1)
    numbers = torch.cat([ordered(others)[0][:, :width], ordered(mine)[0][:, :3] + 12], 1)
    place, want = ordered(near)
    assert_same_bits((lists.idx, lists.dist), (numbers.gather(1, place.long())[:, :4], want[:, :4]))


@pytest.mark.parametrize("width", [2, 4])
def test_first_lists_are_what_is_merged_into_empty_ones(monkeypatch, width):
    monkeypatch.setattr(blockwise, "MERGED_ROWS", 3)
    draws = torch.Generator().manual_seed(width)
    dist = torch.randint(4, (10, width), generator=draws).float().sort(1).values
    idx = torch.arange(10 * width, dtype=torch.int32).reshape(10, width)
    missing = torch.arange(width) >= torch.randint(width + 1, (10, 1), generator=draws)
    idx[missing], dist[missing] = -1, torch.inf
    assert 0 < missing.sum() < missing.numel()
    put, merged = Lists.empty(10, 4, CPU), Lists.empty(10, 4, CPU)
    put.put(idx, dist, 700)
    merged.merge(idx, dist, 700)
    assert_same_bits((put.idx, put.dist), (merged.idx, merged.dist))


@pytest.mark.parametrize("counts", [(3,), (8, 9), (1, 5), (0, 5), (5, 1), (4, 4, 4), (7, 2, 0, 5), (3, 1, 4, 1, 5, 9)])
def test_the_only_block_of_a_rank_lies_beside_whatever_it_meets(counts):
    """While the rows of one turn are used, those of the next arrive."""
    offsets = (0, *itertools.accumulate(counts))
    for rank in range(len(counts)):
        group = SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: len(counts))
        ring = Ring(group, offsets, 100, CPU)
        turns = list(ring.half_turns())
        if not turns:
            continue
        block = blockwise._OwnBlock(ring, turns, 1)
        block.part(ring.own)[:, 0] = torch.arange(*ring.own)
        for number, turn in enumerate(turns):
            for arriving in turns[number : number + 2]:
                block.room_for(arriving)[:, 0] = torch.arange(*arriving.received)
            front = block.in_front[turn]
            order = (turn.received, turn.met_by) if front else (turn.met_by, turn.received)
            want = [row for rows in order for row in range(*rows)]
            assert block.with_received(turn)[:, 0].tolist() == want
        assert block.part(ring.own)[:, 0].tolist() == list(range(*ring.own)), "nothing arrives in their place"
        assert len(block.rows) <= len(ring.own) + 2 * max(len(turn.received) for turn in turns)


def test_a_rank_with_one_block_reads_its_rows_once(monkeypatch):
    """To find neighbours, compare them with those of others, and send them."""
    own = torch.from_numpy(gallery(60, 8).features)
    ring = Ring(SimpleNamespace(rank=lambda: 0, size=lambda: 4), (0, 60, 120, 180, 240), 100, CPU)
    seen, sent = [], []

    def swapped(self, turns, load, room_for):
        for turn in turns:
            sent.append(load(turn.sent)[0])
            tensors = room_for(turn, turn.received)
            tensors[0].copy_(own[: len(turn.received)] + 1)
            tensors[1].fill_(torch.inf)
            yield turn, iter([blockwise.Received(turn.received, tensors)])

    def read(self, begin, end, out=None):
        seen.append((begin, end))
        return out.copy_(own[begin:end])

    monkeypatch.setattr(Ring, "pass_blocks", swapped)
    monkeypatch.setattr(Ring, "swap", lambda self, tensors, to, source: [t[:0] for t in tensors])
    monkeypatch.setattr(FeatureRows, "read", read)
    found = blockwise.knn_graph(FeatureRows.of("test", own), 5, ring)
    assert seen == [(0, 60)]
    assert torch.equal(torch.cat(sent), torch.cat([own, own]))
    assert (found.dist[:, 0] == 0).all()


def test_pairs_of_large_galleries_are_in_order():
    """Whose rows times columns are beyond 32 bits."""
    n = 50_000
    ring = Ring.join(n, n, CPU, None)
    edges = blockwise._Edges(ring, None)
    for row, cols in ((49_999, [5, 2]), (42_949, [9]), (42_950, [8]), (0, [49_999])):
        lengths = torch.tensor([0, len(cols)])
        edges.add(Csr(lengths, torch.tensor(cols, dtype=torch.int32), torch.tensor(cols) / 100, n), row, 0)
    found = edges.of_own_rows()
    assert found.col_idx.tolist() == [49_999, 9, 8, 2, 5]
    assert torch.equal(found.values, found.col_idx / 100)
    assert found.row_ptr[[0, 1, 42_949, 42_950, 42_951, 49_999, n]].tolist() == [0, 1, 1, 2, 3, 3, 5]


def test_the_parts_of_a_stage_add_up():
    told = []
    progress = Progress("knn_graph", 10, lambda *report: told.append(report))
    for work, steps in ((4, [(1, 2), (2, 2)]), (0, [(0, 0)]), (6, [(50, 100), (100, 100)])):
        part = progress.part(work)
        for step in steps:
            part("of an op", *step)
    assert told == [("knn_graph", done, 10) for done in (2, 4, 4, 7, 10)]
    Progress("knn_graph", 0, lambda *report: told.append(report)).part(0)("of an op", 1, 1)
    assert told[-1] == ("knn_graph", 0, 1)
    assert Progress("knn_graph", 10, None).part(3) is None


def test_a_pair_at_eps_is_within_it():
    """As in float32, in which distances are."""
    row_ptr, col_idx = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 1], dtype=torch.int32)
    for eps in (0.6, 0.1, 0.7):
        distance = Csr(row_ptr, col_idx, torch.tensor([0, eps, eps, 0]), 2)
        labels, core_mask, num_clusters = blockwise.dbscan(distance, eps, 2, Ring.join(2, 1, CPU, None))
        assert (labels.tolist(), core_mask.tolist(), num_clusters) == ([0, 0], [True, True], 1)
        assert ops.dbscan(distance, eps, 2)[0].tolist() == [0, 0]


@pytest.mark.parametrize("block_rows", [1, 2, 12])
def test_pairs_beyond_the_limit_are_refused(block_rows):
    """In all blocks together, where a sample and itself are half a pair."""
    alike = Csr(torch.arange(13), torch.zeros(12, dtype=torch.int32), torch.full((12,), 1 << 30, dtype=torch.int32), 12)
    ring, most = Ring.join(12, block_rows, CPU, None), 66 if block_rows == 12 else 72
    assert_same_bits(blockwise.jaccard_distance(alike, 0.5, ring, most), ops.jaccard_distance(alike, 0.5))
    for less in (most - 1, 40, 3, 0):
        with pytest.raises(ValueError, match=r"more than max_pairs=\d+ pairs are within max_distance"):
            blockwise.jaccard_distance(alike, 0.5, ring, less)


@pytest.mark.parametrize(("n", "k1", "block_rows"), [(60, 12, 5), (30, 6, 2), (6, 6, 1), (6, 6, 4), (3, 1, 2)])
def test_blocks_of_a_few_rows_have_the_bits_of_the_whole(n, k1, block_rows):
    """Shorter ones than lists are, of which many have no neighbours in each other, or in one direction alone."""
    parts = [gallery(n // 3, 8, seed, noise=1.0) for seed in range(3)]
    names = ("features", "camera_ids", "modality_ids")
    features, *ids = (torch.from_numpy(np.concatenate([getattr(part, name) for part in parts])) for name in names)
    rows, ring, k2 = FeatureRows.of("test", features), Ring.join(n, block_rows, CPU, None), min(k1, 3)
    lists, idx_dist = blockwise.knn_graph(rows, k1, ring), ops.knn_graph(features, k1)
    assert_same_bits((lists.idx, lists.dist), idx_dist)
    encoding = blockwise.k_reciprocal_encoding(rows, lists.idx, k1 // 2, ring)
    assert_same_bits(encoding, ops.k_reciprocal_encoding(features, lists.idx, k1 // 2))
    if n == 60:
        reach = torch.zeros(12, 12, dtype=torch.bool)
        reach[torch.arange(60).repeat_interleave(encoding.row_ptr.diff()) // 5, encoding.col_idx // 5] = True
        assert (reach & ~reach.T).tril().any()
        assert not reach.all()
    expanded = blockwise.invariant_expansion(encoding, lists.idx, k2, *ids, ring)
    assert_same_bits(expanded, ops.invariant_expansion(encoding, lists.idx, k2, *ids))
    distance = blockwise.jaccard_distance(expanded, 0.6, ring)
    assert_same_bits(distance, ops.jaccard_distance(expanded, 0.6))
    labels, core_mask, num_clusters = blockwise.dbscan(distance, 0.6, 4, ring)
    whole = ops.dbscan(distance, 0.6, 4)
    assert_same_bits((labels, core_mask), whole)
    assert num_clusters == int(whole[0].max()) + 1
    if n == 60:
        assert num_clusters > 1
        assert (labels < 0).any()
        assert ((labels >= 0) & ~core_mask).any()
