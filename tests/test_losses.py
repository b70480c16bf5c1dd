"""The losses against a second computation in float64, written by the book."""

import math

import pytest
import torch

from dmic.losses import cluster_loss


def by_the_book(embeddings, labels, rows, temperature):
    total = 0.0
    for x, y in zip(embeddings.double(), labels.tolist(), strict=True):
        similarities = [float(x @ row.double()) / temperature for row in rows]
        largest = max(similarities)
        log_sum = largest + math.log(sum(math.exp(s - largest) for s in similarities))
        total += log_sum - similarities[y]
    return total / len(labels)


def random_problem(n, num_clusters, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
    rows = torch.nn.functional.normalize(torch.randn(num_clusters, d, generator=generator))
    return embeddings, torch.randint(num_clusters, (n,), generator=generator), rows


@pytest.mark.parametrize(("n", "num_clusters", "d"), [(1, 1, 3), (7, 5, 16), (64, 131, 33)])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_cluster_loss_equals_the_formula(n, num_clusters, d, temperature):
    embeddings, labels, rows = random_problem(n, num_clusters, d)
    want = by_the_book(embeddings, labels, rows, temperature)
    got = float(cluster_loss(embeddings, labels, rows, temperature))
    assert got == pytest.approx(want, rel=1e-5, abs=1e-5)  # float32 sums of d products, divided by the temperature


def test_a_tiny_temperature_does_not_overflow():
    embeddings, labels, rows = random_problem(9, 5, 8)
    assert math.isfinite(float(cluster_loss(embeddings, labels, rows, 1e-4)))


def test_gradients_reach_the_embeddings_and_never_the_memory():
    embeddings, labels, rows = random_problem(9, 5, 8)
    embeddings.requires_grad_()
    rows.requires_grad_()
    cluster_loss(embeddings, labels, rows, 0.05).backward()
    assert embeddings.grad.abs().sum() > 0
    assert rows.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.zeros(4, 3)}, r"must agree, got \(4, 3\) and \(5, 8\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must have shape \[n\], n > 0, got \(3,\)"),
        ({"labels": torch.tensor([0, 1, 5, 0])}, r"labels must be in \[0, 5\), got 5"),
        ({"labels": torch.tensor([0, -1, 4, 0])}, r"labels must be in \[0, 5\), got -1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    embeddings, labels, rows = random_problem(4, 5, 8)
    arguments = {"embeddings": embeddings, "labels": labels, "memory_rows": rows, "temperature": 0.05} | change
    with pytest.raises(ValueError, match=f"^cluster_loss: .*{message}"):
        cluster_loss(**arguments)
