"""Cluster memories: what they hold at first and what an update does to them."""

import pytest
import torch
import torch.nn.functional as F

from dmic.constants import NOISE
from dmic.memory import ClusterMemory


def features(n, d=6, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def test_rows_start_as_normalised_centroids_without_outliers():
    x, labels = features(5), torch.tensor([0, 1, 0, NOISE, 1])
    memory = ClusterMemory(x, labels)
    want = torch.stack([F.normalize(x[[0, 2]].mean(0), dim=0), F.normalize(x[[1, 4]].mean(0), dim=0)])
    torch.testing.assert_close(memory.rows, want)
    assert len(memory) == 2


def test_outliers_alone_make_an_empty_memory():
    assert len(ClusterMemory(features(3), torch.full((3,), NOISE))) == 0


def test_an_update_puts_one_normalised_member_in_each_class_of_the_batch_and_touches_no_other():
    memory = ClusterMemory(features(8), torch.arange(8) % 4)
    before = memory.rows.clone()
    batch, labels = 3 * features(6, seed=1), torch.tensor([0, 0, 0, 2, 2, 2])
    memory.update(batch, labels, torch.Generator().manual_seed(0))
    assert torch.equal(memory.rows[[1, 3]], before[[1, 3]])
    for c in (0, 2):
        distance = (F.normalize(batch[labels == c]) - memory.rows[c]).norm(dim=1)
        assert distance.min() < 1e-6


def test_every_member_is_drawn_equally_often():
    memory = ClusterMemory(features(2), torch.tensor([0, 1]))
    batch, labels = features(5, seed=1), torch.tensor([1, 0, 1, 1, 1])
    generator, draws = torch.Generator().manual_seed(0), 4000
    counts = torch.zeros(5)
    for _ in range(draws):
        memory.update(batch, labels, generator)
        counts += (batch - memory.rows[1]).norm(dim=1) < 1e-6
    share = counts[labels == 1] / draws
    assert counts[1] == 0, "a member of another class must not be drawn"
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / draws) ** 0.5  # five standard deviations


def test_momentum_keeps_its_share_of_the_old_row():
    memory = ClusterMemory(features(2), torch.tensor([0, 1]), momentum=0.75)
    old, member = memory.rows[1].clone(), features(1, seed=1)
    memory.update(member, torch.tensor([1]), torch.Generator())
    torch.testing.assert_close(memory.rows[1], F.normalize(0.75 * old + 0.25 * member[0], dim=0))


def test_an_update_takes_no_part_in_autograd():
    memory = ClusterMemory(features(2), torch.tensor([0, 1]))
    memory.update(features(2, seed=1).requires_grad_(), torch.tensor([0, 1]), torch.Generator())
    assert not memory.rows.requires_grad


@pytest.mark.parametrize(
    ("labels", "momentum", "message"),
    [
        (torch.tensor([0, 1]), 0.0, r"must agree, got \(3, 6\) and \(2,\)"),
        (torch.tensor([0, 2, 0]), 0.0, "must leave no cluster empty, got none of cluster 1"),
        (torch.tensor([0, 1, 0]), 1.0, r"momentum must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(labels, momentum, message):
    with pytest.raises(ValueError, match=f"^ClusterMemory: .*{message}"):
        ClusterMemory(features(3), labels, momentum=momentum)
