"""What benchmarks/traffic.py predicts of the bytes that ranks send is what they send."""

from __future__ import annotations

from functools import cache
from unittest import mock

import pytest
import torch
from ranks import on_ranks

import dmic
from benchmarks import traffic
from benchmarks.sizes import generate_gallery
from dmic import ops, process_group

N, D, K1, K2 = 1200, 24, 20, 6
FOREIGN = 0.1  # of what is right in the mean alone: rows of an encoding differ in length, ranks in their pairs
CUTS = [(0, 600, N), (0, 400, 800, N), (0, 300, 600, 900, N), (0, 500, 500, 1001, N), (0, 240, 480, 720, 960, N)]


@cache
def gallery():
    made = generate_gallery(N, D, images_per_identity=10)
    return [torch.as_tensor(part) for part in (made.features, made.camera_ids, made.modality_ids)]


def count(group, cuts, block_rows):
    """Bytes of every stage, and rounds of DBSCAN."""
    rank = process_group.rank(group)
    features, cameras, modalities = (part[cuts[rank] : cuts[rank + 1]] for part in gallery())
    with traffic.counted() as counter, mock.patch("dmic.distributed.choose_block_rows", return_value=block_rows):
        ids = {"camera_ids": cameras, "modality_ids": modalities}
        dmic.pseudo_labels(features, **ids, k1=K1, k2=K2, process_group=group)
    return dict(counter.sent), counter.rounds


@cache
def means():
    features, cameras, modalities = gallery()
    idx, _ = ops.knn_graph(features, K1)
    encoding = ops.k_reciprocal_encoding(features, idx, K1 // 2)
    expanded = ops.invariant_expansion(encoding, idx, K2, cameras, modalities)
    lengths = {"encoding_length": encoding, "expanded_length": expanded}
    lengths["num_pairs"] = ops.jaccard_distance(expanded, 0.6)
    return {name: rows.nnz / N for name, rows in lengths.items()}


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts) - 1} ranks")
@pytest.mark.parametrize("block_rows", [150, 2000])
def test_ranks_send_what_is_predicted(cuts, block_rows):
    counts = on_ranks(len(cuts) - 1, count, cuts, block_rows)
    rounds = counts[0][1]
    assert rounds > 1
    case = traffic.Case(cuts, block_rows, D, K1, K2, rounds=rounds, **means())
    predicted = [traffic.sent_bytes(case, rank) for rank in range(case.ranks)]
    for stage in traffic.STAGES:
        of_ranks = [(sent[stage], want[stage]) for (sent, _), want in zip(counts, predicted, strict=True)]
        if stage in ("knn_graph", "k_reciprocal_encoding", "dbscan"):
            assert all(sent == want for sent, want in of_ranks), (stage, of_ranks)
        else:
            assert all(sent == pytest.approx(want, rel=FOREIGN) for sent, want in of_ranks), (stage, of_ranks)


def test_one_process_sends_nothing():
    (sent, _) = count(None, (0, N), 2000)
    assert sum(sent.values()) == 0
    assert sum(traffic.sent_bytes(traffic.Case((0, N), 2000, D), 0).values()) == 0


def test_a_broadcast_reaches_every_rank_once():
    for ranks in range(1, 18):
        for source in range(ranks):
            assert sum(traffic.broadcasts(source, rank, ranks) for rank in range(ranks)) == ranks - 1
    assert [traffic.broadcasts(1, rank, 5) for rank in range(5)] == [0, 3, 1, 0, 0]


def test_a_minimum_goes_around_twice_but_for_the_own_part():
    assert traffic.reduced_bytes(800, 4) == 2 * 3 * 200
    assert traffic.reduced_bytes(800, 1) == 0
