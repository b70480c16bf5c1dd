"""Memories: what they hold at first, what an update does to them, and that samples are known by their global id."""

import pytest
import torch
import torch.nn.functional as F

from dmic.constants import NOISE
from dmic.losses import cluster_loss, instance_loss
from dmic.memory import ClusterMemory, InstanceMemory


def features(n, d=6, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


class TestClusterMemory:
    def test_rows_start_as_normalised_centroids_without_outliers(self):
        lengths = torch.tensor([1.0, 0.3, 0.2, 1.0, 0.9])[:, None]  # features are not of unit norm
        x, labels = lengths * features(5), torch.tensor([0, 1, 0, NOISE, 1])
        memory = ClusterMemory.from_features(x, labels)
        want = torch.stack([F.normalize(x[[0, 2]].mean(0), dim=0), F.normalize(x[[1, 4]].mean(0), dim=0)])
        torch.testing.assert_close(memory.rows, want)
        assert len(memory) == memory.num_classes == 2

    def test_outliers_alone_make_an_empty_memory(self):
        assert len(ClusterMemory.from_features(features(3), torch.full((3,), NOISE))) == 0

    def test_an_update_puts_one_normalised_member_in_each_class_of_the_batch_and_touches_no_other(self):
        memory = ClusterMemory.from_features(features(8), torch.arange(8) % 4)
        before = memory.rows.clone()
        sample_idx = torch.tensor([0, 4, 0, 2, 6, 2])
        batch, labels = 3 * features(6, seed=1), sample_idx % 4
        memory.update(batch, sample_idx, draws())
        assert torch.equal(memory.rows[[1, 3]], before[[1, 3]])
        for c in (0, 2):
            distance = (F.normalize(batch[labels == c]) - memory.rows[c]).norm(dim=1)
            assert distance.min() < 1e-6

    def test_every_member_is_drawn_equally_often(self):
        memory = ClusterMemory.from_features(features(2), torch.tensor([0, 1]))
        batch, sample_idx = features(5, seed=1), torch.tensor([1, 0, 1, 1, 1])
        generator, num_draws = draws(), 4000
        counts = torch.zeros(5)
        for _ in range(num_draws):
            memory.update(batch, sample_idx, generator)
            counts += (batch - memory.rows[1]).norm(dim=1) < 1e-6
        share = counts[sample_idx == 1] / num_draws
        assert counts[1] == 0, "a member of another class must not be drawn"
        assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / num_draws) ** 0.5  # five standard deviations

    def test_momentum_keeps_its_share_of_the_old_row(self):
        memory = ClusterMemory.from_features(features(2), torch.tensor([0, 1]), momentum=0.75)
        old, member = memory.rows[1].clone(), features(1, seed=1)
        memory.update(3 * member, torch.tensor([1]), draws())
        torch.testing.assert_close(memory.rows[1], F.normalize(0.75 * old + 0.25 * member[0], dim=0))

    def test_an_update_takes_no_part_in_autograd(self):
        memory = ClusterMemory.from_features(features(2), torch.tensor([0, 1]))
        memory.update(features(2, seed=1).requires_grad_(), torch.tensor([0, 1]), draws())
        assert not memory.rows.requires_grad

    def test_its_loss_takes_the_labels_of_the_samples(self):
        labels = torch.tensor([1, NOISE, 0, 1])
        memory = ClusterMemory.from_features(features(4), labels)
        x = features(2, seed=1)
        want = cluster_loss(x, torch.tensor([0, 1]), memory.rows, 0.05)
        assert torch.equal(memory.loss(x, torch.tensor([2, 3]), 0.05), want)

    @pytest.mark.parametrize(
        ("labels", "momentum", "message"),
        [
            (torch.tensor([0, 1]), 0.0, r"must agree, got \(3, 6\) and \(2,\)"),
            (torch.tensor([0, 3, 0]), 0.0, "must leave no cluster empty, got none of cluster 1"),
            (torch.tensor([0, 1, 0]), 1.0, r"momentum must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_bad_arguments_are_named(self, labels, momentum, message):
        with pytest.raises(ValueError, match=f"^ClusterMemory: .*{message}"):
            ClusterMemory.from_features(features(3), labels, momentum=momentum)
        with pytest.raises(ValueError, match=r"must agree, got \(3,\) and \(3,\)"):
            ClusterMemory.from_features(torch.ones(3), torch.tensor([0, 1, 0]))


class TestInstanceMemory:
    HELD = torch.tensor([1, 3, 4, 7])

    def test_rows_are_the_normalised_features_of_the_samples_it_holds(self):
        x = 5 * features(9)
        memory = InstanceMemory.from_features(x, self.HELD)
        torch.testing.assert_close(memory.rows, F.normalize(x[self.HELD]))
        assert len(memory) == memory.num_classes == 4

    def test_an_outlier_is_a_class_of_its_own(self):
        memory = InstanceMemory.from_features(features(9), self.HELD)
        memory.refresh(torch.tensor([5, 0, 5, NOISE, 0, 5, 5, NOISE, 5]))
        assert memory.classes[0] == memory.classes[2] == 0
        assert len(memory.classes.unique()) == memory.num_classes == 3
        assert memory.classes[1] != memory.classes[3]

    def test_labels_that_leave_numbers_out_do_not_collide_with_outliers(self):
        memory = InstanceMemory.from_features(features(5), torch.arange(5))
        memory.refresh(torch.tensor([3, NOISE, 3, 1, NOISE]))
        assert memory.num_classes == 4

    @pytest.mark.parametrize("num_samples", [0, 3])
    def test_it_may_hold_nothing(self, num_samples):
        nobody = torch.arange(0)
        memory = InstanceMemory.from_features(features(num_samples), nobody)
        memory.refresh(torch.full((num_samples,), 5))
        memory.update(features(0), nobody, draws())
        assert (len(memory), memory.num_classes, memory.classes.dtype) == (0, 0, torch.int64)

    def test_refreshing_keeps_the_rows(self):
        memory = InstanceMemory.from_features(features(9), self.HELD)
        before = memory.rows.clone()
        memory.refresh(torch.arange(9))
        assert torch.equal(memory.rows, before)

    def test_samples_are_known_by_their_global_id_whoever_else_is_held(self):
        """Other samples than those of the batch do not shift the rows: a filtered list would be misaligned."""
        memory = InstanceMemory.from_features(features(9), self.HELD)
        memory.refresh(torch.tensor([NOISE, 0, NOISE, 1, 1, NOISE, NOISE, 0, NOISE]))
        batch = features(2, seed=1)
        want = instance_loss(batch, torch.tensor([1, 0]), memory.rows, torch.tensor([0, 1, 1, 0]), 0.05)
        torch.testing.assert_close(memory.loss(batch, torch.tensor([4, 7]), 0.05), want)
        memory.update(batch, torch.tensor([4, 7]), draws())
        torch.testing.assert_close(memory.rows[2:], batch)
        torch.testing.assert_close(memory.rows[:2], F.normalize(features(9)[self.HELD[:2]]))

    def test_of_several_views_of_a_sample_one_is_drawn(self):
        memory = InstanceMemory.from_features(features(9), self.HELD)
        batch, seen = features(2, seed=1), set()
        for seed in range(30):
            memory.update(batch, torch.tensor([3, 3]), draws(seed))
            nearest = (batch - memory.rows[1]).norm(dim=1)
            assert nearest.min() < 1e-6
            seen.add(int(nearest.argmin()))
        assert seen == {0, 1}

    def test_bad_arguments_are_named(self):
        with pytest.raises(ValueError, match=r"sample_idx must ascend within \[0, N\), got 4 to 2 with N=5"):
            InstanceMemory.from_features(features(5), torch.tensor([4, 2]))
        with pytest.raises(ValueError, match=r"sample_idx must ascend within \[0, N\), got -1 to 2 with N=5"):
            InstanceMemory.from_features(features(5), torch.tensor([-1, 2]))
        with pytest.raises(ValueError, match=r"sample_idx must ascend within \[0, N\), got 2 to 5 with N=5"):
            InstanceMemory.from_features(features(5), torch.tensor([2, 5]))
        with pytest.raises(ValueError, match=r"sample_idx must ascend within \[0, N\), got 1 to 1 with N=5"):
            InstanceMemory.from_features(features(5), torch.tensor([1, 1]))
        with pytest.raises(ValueError, match=r"^InstanceMemory: momentum must be in \[0, 1\), got -0.5"):
            InstanceMemory.from_features(features(5), torch.arange(5), momentum=-0.5)
        memory = InstanceMemory.from_features(features(9), self.HELD)
        for absent in (0, 5, 8):
            with pytest.raises(ValueError, match=f"sample {absent} is not in this memory"):
                memory.loss(features(1), torch.tensor([absent]), 0.05)
