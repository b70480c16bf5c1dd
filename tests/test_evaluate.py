"""Metrics against rankings worked out by hand and against a second, loop-by-the-book implementation."""

import math

import pytest
import torch

from dmic.constants import NOISE
from dmic.evaluate import purity, retrieval_metrics, splits


def at_angles(*degrees):
    """Unit vectors in the plane: the nearer in angle, the higher ranked."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def by_the_book(query_features, gallery_features, query_ids, gallery_ids, ranks):
    average_precisions, penalties, firsts = [], [], []
    for x, who in zip(query_features, query_ids.tolist(), strict=True):
        similarity = [float(x @ y / (x.norm() * y.norm())) for y in gallery_features]
        order = sorted(range(len(similarity)), key=lambda j: (-similarity[j], j))
        hits = [rank for rank, j in enumerate(order, 1) if int(gallery_ids[j]) == who]
        if not hits:
            continue
        firsts.append(hits[0])
        average_precisions.append(sum(i / rank for i, rank in enumerate(hits, 1)) / len(hits))
        penalties.append(len(hits) / hits[-1])
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {r: mean([f <= r for f in firsts]) for r in ranks}, mean(average_precisions), mean(penalties), len(firsts)


def test_a_ranking_worked_out_by_hand():
    gallery, ids = at_angles(10, 20, 30, 40, 50), torch.tensor([7, 3, 7, 3, 3])
    found = retrieval_metrics(at_angles(0), gallery, torch.tensor([3]), ids, ranks=(1, 2, 5))
    assert found.cmc == {1: 0.0, 2: 1.0, 5: 1.0}
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert found.mean_inverse_negative_penalty == pytest.approx(3 / 5)


def test_queries_without_a_match_are_skipped_and_counted():
    gallery, ids = at_angles(10, 20), torch.tensor([1, 2])
    found = retrieval_metrics(at_angles(0, 0, 0), gallery, torch.tensor([1, 9, 2]), ids, ranks=(1,))
    assert (found.num_queries, found.num_skipped) == (2, 1)
    assert found.cmc == {1: 0.5}
    assert found.mean_average_precision == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize(("queries", "gallery"), [(0, 3), (2, 0), (2, 3)])
def test_without_any_match_the_means_are_nan(queries, gallery):
    found = retrieval_metrics(
        torch.ones(queries, 2), torch.ones(gallery, 2), torch.zeros(queries).long(), torch.ones(gallery).long()
    )
    assert (found.num_queries, found.num_skipped) == (0, queries)
    assert math.isnan(found.mean_average_precision)
    assert math.isnan(found.cmc[1])


def test_ties_go_to_the_lower_gallery_index():
    gallery = at_angles(30, 30, 30)
    for match, rank in ((0, 1), (1, 2), (2, 3)):
        ids = torch.tensor([int(j == match) for j in range(3)])
        found = retrieval_metrics(at_angles(0), gallery, torch.tensor([1]), ids)
        assert found.mean_average_precision == pytest.approx(1 / rank)


@pytest.mark.parametrize("chunk_bytes", [1, 5000, 10**9])
def test_equals_the_formulas_for_every_chunk_size(chunk_bytes):
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (23, 41))
    query_ids, gallery_ids = (torch.randint(12, (n,), generator=generator) for n in (23, 41))
    cmc, mean_ap, mean_inp, counted = by_the_book(query, gallery, query_ids, gallery_ids, (1, 5, 100))
    found = retrieval_metrics(query, gallery, query_ids, gallery_ids, ranks=(1, 5, 100), chunk_bytes=chunk_bytes)
    assert found.num_queries == counted
    assert found.cmc == pytest.approx(cmc)
    assert found.mean_average_precision == pytest.approx(mean_ap, rel=1e-9)
    assert found.mean_inverse_negative_penalty == pytest.approx(mean_inp, rel=1e-9)


def test_bad_arguments_are_named():
    ids = torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"query_features \[n, d\] .* got \(3, 2\) and \(2,\)"):
        retrieval_metrics(torch.ones(3, 2), torch.ones(2, 2), ids, ids)
    with pytest.raises(ValueError, match="must agree in d, got d=3 and d=2"):
        retrieval_metrics(torch.ones(2, 3), torch.ones(2, 2), ids, ids)
    with pytest.raises(ValueError, match="gallery_features must be finite, got NaN or infinity in row 1"):
        retrieval_metrics(torch.ones(2, 1), torch.tensor([[1.0], [float("nan")]]), ids, ids)
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        retrieval_metrics(torch.ones(2, 1), torch.ones(2, 1), ids, ids, ranks=(0, 1))


def test_purity_and_splits_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, NOISE, 2])
    person_ids = torch.tensor([4, 4, 9, 9, 9, 4, 4])
    assert purity(labels, person_ids) == pytest.approx((2 + 2 + 1) / 6)
    assert splits(labels, person_ids) == pytest.approx((2 + 2) / 2)  # 4 is in clusters 0 and 2, 9 in 0 and 1
    assert math.isnan(purity(torch.full((3,), NOISE), torch.arange(3)))
    assert math.isnan(splits(torch.full((3,), NOISE), torch.arange(3)))
