"""The training loop: it never sees an identity, repeats bit for bit, and says what it cannot do."""

import inspect
from dataclasses import replace

import pytest
import torch

from dmic.constants import INFRARED, NOISE, VISIBLE
from dmic.data import Gallery, LabeledGallery, landsat_galleries
from dmic.data.augment import plain_view, toned_view
from dmic.evaluate import cross_modality_metrics
from dmic.models import embed, small_two_stream
from dmic.train import describe_labels, refresh_labels, train

CLUSTERING = {"k1": 6, "k2": 3, "eps": 0.7, "min_samples": 2}


@pytest.fixture(scope="module")
def galleries():
    return landsat_galleries(num_crops=1)


def short_training(gallery, *, seed=0, num_epochs=2, clustering=CLUSTERING, **callbacks):
    network = small_two_stream(width=4, embedding_dim=16, seed=seed)
    train(
        network,
        gallery,
        num_epochs=num_epochs,
        num_iterations=3,
        per_modality=lambda epoch: clustering,
        joint=lambda epoch: clustering if epoch else None,
        invariant=True,
        views={VISIBLE: (plain_view, toned_view), INFRARED: (plain_view,)},
        num_classes=4,
        num_samples=3,
        temperature=0.05,
        momentum=0.0,
        learning_rate=lambda epoch: 1e-3,
        weight_decay=5e-4,
        seed=seed,
        **callbacks,
    )
    return network.state_dict()


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_shuffled_identities_change_the_metrics_and_nothing_else(galleries):
    labeled, _ = galleries
    generator = torch.Generator().manual_seed(0)
    shuffled = replace(
        labeled, person_ids=labeled.person_ids[torch.randperm(len(labeled.person_ids), generator=generator)]
    )
    runs = []
    for known in (labeled, shuffled):
        labels, scores = [], []
        weights = short_training(
            known.unlabeled,
            evaluate=lambda network, known=known, scores=scores: (
                scores.append(cross_modality_metrics(embed(network, known.unlabeled), known)) or {}
            ),
            inspect=lambda found, labels=labels: labels.append(found) or {},
        )
        runs.append((weights, labels, scores))
    (weights, labels, scores), (weights_2, labels_2, scores_2) = runs
    assert_same_weights(weights, weights_2)
    for first, second in zip(labels, labels_2, strict=True):
        for name in ("visible", "infrared", "shared"):
            assert torch.equal(getattr(first, name), getattr(second, name))
    assert scores != scores_2


def test_what_training_is_given_has_no_field_for_an_identity():
    assert "person_ids" not in Gallery.__dataclass_fields__
    given = inspect.signature(train).parameters
    assert given["gallery"].annotation in (Gallery, "Gallery")
    assert not any(LabeledGallery.__name__ in str(parameter.annotation) for parameter in given.values())


def test_equal_seeds_give_equal_bits_and_other_seeds_others(galleries):
    gallery = galleries[0].unlabeled
    first, again, other = (short_training(gallery, seed=s) for s in (3, 3, 4))
    assert_same_weights(first, again)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_callbacks_only_look(galleries):
    gallery = galleries[0].unlabeled
    watched = short_training(
        gallery, evaluate=lambda network: {}, inspect=lambda labels: {}, log=lambda record: record.clear()
    )
    assert_same_weights(short_training(gallery), watched)


def test_every_epoch_is_logged_with_clusters_losses_and_seconds(galleries):
    records = []
    short_training(galleries[0].unlabeled, log=records.append)
    assert [record["epoch"] for record in records] == [0, 1, 2]
    first, second = records[1:]
    assert set(first["loss"]) == {"cluster_visible", "cluster_infrared"}
    assert set(second["loss"]) == {"cluster_visible", "cluster_infrared", "shared_visible", "shared_infrared"}
    assert set(second["seconds"]) == {"embed", "cluster", "train", "evaluate"}
    assert second["shared"]["clusters"] > 0


def test_an_epoch_of_outliers_stops_with_what_to_change(galleries):
    alone = {"k1": 2, "k2": 1, "eps": 0.0, "min_samples": 50}
    with pytest.raises(
        ValueError, match=r"^train: epoch 1 has no cluster to train on.*raise eps or lower min_samples$"
    ):
        short_training(galleries[0].unlabeled, clustering=alone)


def test_a_modality_without_clusters_is_skipped_and_named():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (27, 1, 20, 20), generator=generator).to(torch.uint8)
    modality_ids = (torch.arange(27) >= 24).long()  # three infrared samples cannot make a core of four
    gallery = Gallery(images, torch.arange(27) % 3, modality_ids)
    records = []
    clustering = {"k1": 3, "k2": 1, "eps": 1.0, "min_samples": 4}
    short_training(gallery, num_epochs=1, clustering=clustering, log=records.append)
    assert "cluster_infrared" in records[1]["skipped"]
    assert list(records[1]["loss"]) == ["cluster_visible"]


def test_modalities_are_clustered_alone_and_together():
    features = torch.eye(3).repeat_interleave(6, 0) + 0.01 * torch.arange(18)[:, None] / 18
    modality_ids = torch.arange(18) % 2
    gallery = Gallery(torch.zeros(18, 1, 2, 2, dtype=torch.uint8), torch.arange(18) % 3, modality_ids)
    settings = {"k1": 3, "k2": 2, "eps": 0.9, "min_samples": 2}
    labels = refresh_labels(features, gallery, settings, settings, invariant=True)
    assert (labels.visible[modality_ids == INFRARED] == NOISE).all()
    assert (labels.infrared[modality_ids == VISIBLE] == NOISE).all()
    assert labels.shared.max() == 2
    record = describe_labels(labels, gallery)
    assert record["shared"] == {"clusters": 3, "outliers": 0, "cameras_per_cluster": 3.0, "mixed_share": 1.0}
    without = refresh_labels(features, gallery, settings, None, invariant=False)
    assert (without.shared == NOISE).all()
    assert describe_labels(without, gallery)["shared"]["mixed_share"] is None
