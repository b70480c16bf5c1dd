"""The losses against a second computation in float64, written by the book."""

import math

import pytest
import torch

from dmic.losses import cluster_loss, instance_loss


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
        ({"embeddings": torch.zeros(0, 8), "labels": torch.zeros(0, dtype=torch.int64)}, r"n > 0, got \(0,\)"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive, got nan"),
    ],
)
def test_bad_arguments_are_named(change, message):
    embeddings, labels, rows = random_problem(4, 5, 8)
    arguments = {"embeddings": embeddings, "labels": labels, "memory_rows": rows, "temperature": 0.05} | change
    with pytest.raises(ValueError, match=f"^cluster_loss: .*{message}"):
        cluster_loss(**arguments)


def instance_by_the_book(embeddings, labels, rows, row_labels, temperature):
    total = 0.0
    for x, y in zip(embeddings.double(), labels.tolist(), strict=True):
        weights = [math.exp(float(x @ row.double()) / temperature) for row in rows]
        positive = sum(w for w, label in zip(weights, row_labels.tolist(), strict=True) if label == y)
        total -= math.log(positive / sum(weights))
    return total / len(labels)


class TestInstanceLoss:
    @pytest.mark.parametrize(("n", "num_rows", "num_classes", "d"), [(1, 1, 1, 3), (7, 31, 5, 16), (33, 129, 7, 33)])
    @pytest.mark.parametrize("temperature", [0.05, 1.0])
    def test_it_equals_the_formula(self, n, num_rows, num_classes, d, temperature):
        embeddings, _, rows = random_problem(n, num_rows, d)
        row_labels = torch.arange(num_rows) % num_classes
        labels = torch.arange(n) % num_classes
        want = instance_by_the_book(embeddings, labels, rows, row_labels, temperature)
        got = float(instance_loss(embeddings, labels, rows, row_labels, temperature))
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5)

    def test_with_one_row_a_class_it_is_the_cluster_loss(self):
        embeddings, labels, rows = random_problem(9, 5, 8)
        want = cluster_loss(embeddings, labels, rows, 0.05)
        torch.testing.assert_close(instance_loss(embeddings, labels, rows, torch.arange(5), 0.05), want)

    def test_the_sum_over_a_class_is_not_divided_by_its_size(self):
        x = torch.tensor([[1.0, 0.0]])
        rows, row_labels = x.repeat(4, 1), torch.tensor([0, 0, 0, 1])
        loss = float(instance_loss(x, torch.tensor([0]), rows, row_labels, 0.05))
        assert loss == pytest.approx(math.log(4 / 3), abs=1e-5)

    def test_a_tiny_temperature_does_not_overflow(self):
        embeddings, labels, rows = random_problem(9, 5, 8)
        loss = instance_loss(embeddings.requires_grad_(), labels, rows, torch.arange(5), 1e-4)
        loss.backward()
        assert loss.isfinite()
        assert embeddings.grad.isfinite().all()

    def test_gradients_reach_the_embeddings_and_never_the_memory(self):
        embeddings, labels, rows = random_problem(9, 5, 8)
        instance_loss(embeddings.requires_grad_(), labels, rows.requires_grad_(), torch.arange(5), 0.05).backward()
        assert embeddings.grad.abs().sum() > 0
        assert rows.grad is None

    def test_bad_arguments_are_named(self):
        embeddings, labels, rows = random_problem(4, 5, 8)
        with pytest.raises(ValueError, match=r"memory_labels must have shape \[N\], got \(3,\) with N=5"):
            instance_loss(embeddings, labels, rows, torch.arange(3), 0.05)
        with pytest.raises(ValueError, match=r"every class must have a row in the memory, got none of class 9"):
            instance_loss(embeddings, torch.tensor([0, 9, 1, 1]), rows, torch.arange(5), 0.05)
        with pytest.raises(ValueError, match=r"^instance_loss: temperature must be positive, got 0"):
            instance_loss(embeddings, labels, rows, torch.arange(5), 0)
