"""The training loop: it never sees an identity, repeats and continues bit for bit, and says what it cannot do."""

import inspect
from dataclasses import replace

import pytest
import torch

import dmic.run
import dmic.train
from dmic.config import load_config
from dmic.constants import INFRARED, NOISE, VISIBLE
from dmic.data import Gallery, LabeledGallery, landsat_galleries
from dmic.data.augment import plain_view, toned_view
from dmic.data.cross_modality import cross_modality_protocols
from dmic.evaluate import evaluate_protocol
from dmic.models import embed, small_two_stream
from dmic.pseudo_labels import pseudo_labels
from dmic.run import RunFolder, pack_state, run_training, unpack_state
from dmic.train import (
    Batches,
    Hooks,
    Objective,
    Stage,
    TrainingState,
    cluster,
    describe_labels,
    refresh_labels,
    train,
)
from experiments import oracle

CLUSTERING = {"k1": 6, "k2": 3, "eps": 0.7, "min_samples": 2, "expansion": "mie"}
VIEWS = {VISIBLE: (plain_view, toned_view), INFRARED: (plain_view,)}
STAGE_1 = {"cluster_visible", "cluster_infrared", "instance_visible", "instance_infrared"}
JOINT = {"shared_visible", "shared_infrared", "instance_shared_visible", "instance_shared_infrared"}


@pytest.fixture(scope="module")
def galleries():
    return landsat_galleries(num_crops=1)


def stages(clustering=CLUSTERING, num_epochs=(1, 1), **objective):
    return [
        Stage(
            n,
            lambda epoch: clustering,
            lambda epoch: clustering,
            lambda epoch: 1e-3,
            Objective(joint=joint, **objective),
        )
        for n, joint in zip(num_epochs, ("none", "separate"), strict=True)
        if n
    ]


def short_training(gallery, *, seed=0, plan=None, state=None, batches=None, **hooks):
    state = state or TrainingState(small_two_stream(width=4, embedding_dim=16, seed=seed))
    batches = batches or Batches(num_iterations=3, num_classes=4, num_samples=3, views=VIEWS)
    train(state, gallery, plan or stages(), batches, weight_decay=5e-4, warmup=3, seed=seed, hooks=Hooks(**hooks))
    return state.network.state_dict()


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_shuffled_identities_change_the_metrics_and_nothing_else(galleries):
    labeled, _ = galleries
    order = torch.randperm(len(labeled.person_ids), generator=torch.Generator().manual_seed(0))
    shuffled = replace(labeled, person_ids=labeled.person_ids[order])
    runs = []
    for known in (labeled, shuffled):
        labels, scores = [], []
        network = small_two_stream(width=4, embedding_dim=16)

        def evaluate(epoch, network=network, known=known, scores=scores):
            features = embed(network, known.unlabeled)
            scores.append([evaluate_protocol(features, known, p).cmc for p in cross_modality_protocols(known)])
            return {}

        weights = short_training(
            known.unlabeled,
            state=TrainingState(network),
            evaluate=evaluate,
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


def test_hooks_only_look(galleries):
    gallery = galleries[0].unlabeled
    watched = short_training(
        gallery, evaluate=lambda epoch: {"x": 1}, inspect=lambda labels: {"y": 2}, progress=lambda *_: None
    )
    assert_same_weights(short_training(gallery), watched)


def test_a_state_that_was_saved_between_any_two_iterations_continues_bit_for_bit(galleries):
    gallery = galleries[0].unlabeled
    saved = []
    plan = stages(num_epochs=(1, 2), momentum=0.3)

    def keep(state):
        tensors, packed = pack_state(state)
        saved.append(({name: tensor.clone() for name, tensor in tensors.items()}, packed))

    whole = short_training(gallery, plan=plan, after_iteration=keep, after_epoch=keep)
    assert len(saved) == 3 * 3 + 3
    for tensors, packed in saved:
        state = unpack_state(small_two_stream(width=4, embedding_dim=16, seed=99), tensors, packed)
        assert_same_weights(whole, short_training(gallery, plan=plan, state=state))


def test_every_epoch_is_logged_with_clusters_losses_and_seconds(galleries):
    records = []
    short_training(galleries[0].unlabeled, log=records.append)
    assert [record["epoch"] for record in records] == [0, 1, 2]
    first, second = records[1:]
    assert (first["stage"], second["stage"]) == (1, 2)
    assert set(first["loss"]) == STAGE_1
    assert set(second["loss"]) == STAGE_1 | JOINT
    assert set(second["seconds"]) == {"embed", "cluster", "load", "train", "evaluate"}
    assert second["shared"]["clusters"] > 0
    assert first["shared"]["clusters"] == 0
    assert second["peak_bytes"] > 10**7


@pytest.mark.parametrize("without", [{"instances": False}, {"instance_weight": 0.0, "joint_instance_weight": 0.0}])
def test_instance_memories_are_an_option(galleries, without):
    records = []
    short_training(galleries[0].unlabeled, plan=stages(**without), log=records.append)
    assert not any(name.startswith("instance") for record in records[1:] for name in record["loss"])


def test_a_combined_step_sees_the_same_losses_but_trains_otherwise(galleries):
    gallery = galleries[0].unlabeled
    weights, losses = [], []
    for joint in ("separate", "combined"):
        records = []
        plan = [replace(stages()[1], objective=Objective(joint=joint))]
        weights.append(short_training(gallery, plan=plan, log=records.append))
        losses.append(set(records[-1]["loss"]))
    assert losses == [STAGE_1 | JOINT] * 2
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_accumulated_batches_make_one_step(galleries):
    steps = []
    network = small_two_stream(width=4, embedding_dim=16)
    state = TrainingState(network)
    batches = Batches(num_iterations=3, num_classes=4, num_samples=3, views=VIEWS, accumulate=2)
    short_training(
        galleries[0].unlabeled,
        state=state,
        plan=stages(num_epochs=(1, 0)),
        batches=batches,
        after_iteration=lambda state: steps.append(next(iter(state.optimizer.state.values()))["step"].item()),
    )
    assert steps == [1, 2, 3]


def test_only_mixed_clusters_train_the_joint_step_if_asked_for(galleries):
    gallery = galleries[0].unlabeled
    found = []
    records = []
    short_training(
        gallery, plan=stages(mixed_only=True)[1:], inspect=lambda labels: found.append(labels) or {}, log=records.append
    )
    if records[-1]["shared"]["mixed_share"] == 0:
        assert set(records[-1]["skipped"]) >= JOINT
    else:
        assert set(records[-1]["loss"]) >= JOINT


def test_an_epoch_of_outliers_stops_with_what_to_change(galleries):
    alone = {**CLUSTERING, "k1": 2, "k2": 1, "eps": 0.0, "min_samples": 50}
    with pytest.raises(ValueError, match=r"^train: epoch 1 has nothing to train on.*raise eps or lower min_samples$"):
        short_training(galleries[0].unlabeled, plan=stages(alone, instances=False))


def two_kinds(n, infrared):
    """Images of two looks, of which the last `infrared` are infrared."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 20, 20), generator=generator).to(torch.uint8)
    return Gallery(images, torch.arange(n) % 3, (torch.arange(n) >= n - infrared).long())


def test_a_modality_without_clusters_is_skipped_and_named():
    records = []
    clustering = {**CLUSTERING, "k1": 4, "k2": 1, "eps": 0.9, "min_samples": 4}
    # three infrared samples cannot make a core of four
    short_training(two_kinds(43, 3), plan=stages(clustering, (1, 0)), log=records.append)
    assert {"cluster_infrared", "instance_infrared"} <= set(records[1]["skipped"])
    assert set(records[1]["loss"]) == {"cluster_visible", "instance_visible"}


def test_a_single_cluster_teaches_nothing_and_is_named():
    clustering = {**CLUSTERING, "k1": 40, "k2": 1, "eps": 1.0, "min_samples": 2}
    with pytest.raises(ValueError, match="no clustering found two classes"):
        short_training(two_kinds(43, 3), plan=stages(clustering, (1, 0)))


def test_a_loss_that_is_not_finite_stops_before_the_step_and_is_named(galleries):
    state = TrainingState(small_two_stream(width=4, embedding_dim=16))

    def broken(images, generator, begin, total):
        return images.float() * float("nan")

    batches = Batches(3, 4, 3, {VISIBLE: (broken,), INFRARED: (plain_view,)})
    with pytest.raises(
        ValueError, match=r"^train: cluster_visible is nan in epoch 1, iteration 1; lower the learning rate"
    ):
        short_training(galleries[0].unlabeled, state=state, batches=batches)
    assert all(parameter.isfinite().all() for parameter in state.network.parameters())


def test_a_gallery_without_images_is_an_error():
    with pytest.raises(ValueError, match=r"^train: gallery must hold images, got none"):
        short_training(Gallery(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.arange(0), torch.arange(0)))


def test_a_gallery_of_one_modality_trains(galleries):
    labeled = galleries[0].unlabeled
    only = labeled.modality_ids == VISIBLE
    gallery = Gallery(labeled.images[only], labeled.camera_ids[only], labeled.modality_ids[only])
    records = []
    short_training(gallery, log=records.append)
    assert "cluster_infrared" in records[1]["skipped"]
    assert set(records[2]["loss"]) >= {"cluster_visible", "shared_visible"}


def test_modalities_are_clustered_alone_and_together():
    features = torch.eye(3).repeat_interleave(6, 0) + 0.01 * torch.arange(18)[:, None] / 18
    modality_ids = torch.arange(18) % 2
    gallery = Gallery(torch.zeros(18, 1, 2, 2, dtype=torch.uint8), torch.arange(18) % 3, modality_ids)
    settings = {"k1": 3, "k2": 2, "eps": 0.9, "min_samples": 2, "expansion": "mie"}
    alone, both = stages(settings)
    labels = refresh_labels(features, gallery, both, 0)
    assert (labels.visible[modality_ids == INFRARED] == NOISE).all()
    assert (labels.infrared[modality_ids == VISIBLE] == NOISE).all()
    assert labels.shared.max() == 2
    record = describe_labels(labels, gallery)
    assert record["shared"] == {"clusters": 3, "outliers": 0, "cameras_per_cluster": 3.0, "mixed_share": 1.0}
    one_out = replace(labels, visible=labels.visible.index_fill(0, torch.tensor([0, 1]), NOISE))
    assert describe_labels(one_out, gallery)["visible"]["outliers"] == 1, "infrared samples are no visible outliers"
    assert record["infrared"]["outliers"] == 0
    one_visible = labels.shared.masked_fill((labels.shared == 2) & (modality_ids == INFRARED), NOISE)
    assert describe_labels(replace(labels, shared=one_visible), gallery)["shared"]["mixed_share"] == pytest.approx(
        2 / 3
    )
    without = refresh_labels(features, gallery, alone, 0)
    assert (without.shared == NOISE).all()
    assert describe_labels(without, gallery)["shared"]["mixed_share"] is None


@pytest.mark.parametrize("joint", ["none", "separate"])
def test_a_gallery_smaller_than_the_neighbourhood_is_one_neighbourhood(joint):
    features = torch.randint(0, 4, (30, 3), generator=torch.Generator().manual_seed(0)).float()
    gallery = Gallery(torch.zeros(30, 1, 2, 2, dtype=torch.uint8), torch.arange(30) % 3, (torch.arange(30) > 20).long())
    found = []
    for k1, k2 in ((50, 40), (9, 40)):  # 21 visible samples, 9 infrared ones
        settings = {"k1": k1, "k2": k2, "eps": 0.6, "min_samples": 2, "expansion": "camera"}
        stage = replace(stages(settings)[1], objective=Objective(joint=joint))
        found.append(refresh_labels(features, gallery, stage, 0))
    large, small = found
    assert (large.visible[:21] == 0).all(), "every expanded row is the mean of all"
    assert (large.infrared[21:] == 0).all()
    assert torch.equal(small.infrared, large.infrared)
    assert joint == "none" or (large.shared == 0).all()


@pytest.mark.parametrize("infrared", [0, 5, 30, 60])
def test_the_three_clusterings_of_an_epoch_share_a_search(infrared, monkeypatch):
    features = torch.randint(0, 3, (60, 5), generator=torch.Generator().manual_seed(1)).float()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    gallery = Gallery(torch.zeros(60, 1, 2, 2, dtype=torch.uint8), torch.arange(60) % 4, (order < infrared).long())
    alone = {"k1": 12, "k2": 3, "eps": 0.6, "min_samples": 3, "expansion": "camera"}
    joint = {"k1": 9, "k2": 4, "eps": 0.6, "min_samples": 3, "expansion": "mie"}
    stage = replace(stages()[1], per_modality=lambda epoch: alone, joint=lambda epoch: joint)
    want = torch.full((2, 60), NOISE)
    for modality in (VISIBLE, INFRARED):
        own = (gallery.modality_ids == modality).nonzero().flatten()
        if len(own):
            want[modality, own] = cluster(features, gallery, own, **alone)
    want_shared = cluster(features, gallery, torch.arange(60), **joint)
    assert 1 < want_shared.max() < 20

    def without_a_search(features, neighbor_idx, **settings):
        assert neighbor_idx is not None
        return pseudo_labels(features, neighbor_idx=neighbor_idx, **settings)

    monkeypatch.setattr("dmic.train.pseudo_labels", without_a_search)
    found = refresh_labels(features, gallery, stage, 0)
    assert torch.equal(torch.stack([found.visible, found.infrared]), want)
    assert torch.equal(found.shared, want_shared)


def test_the_experiments_oracle_trains_on_true_identities(galleries, tmp_path, monkeypatch):
    for module, name in ((dmic.run, "build_dataset"), (dmic.train, "refresh_labels")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    oracle.use_identities()
    config = load_config("landsat", ["data.num_crops=1", "train.num_iterations=1", "evaluate.every=9"])
    stage = replace(config.stage2, num_epochs=1)
    _, dataset = run_training(replace(config, stage1=stage, stage2=stage), RunFolder(tmp_path / "run"))
    record = RunFolder(tmp_path / "run").records()[-1]
    for name in ("visible", "infrared", "shared"):
        assert record["known"][name] == {"purity": 1.0, "splits": 1.0}
        assert record[name]["clusters"] == len(dataset.train_person_ids.unique())
        assert record[name]["outliers"] == 0


def test_identities_of_the_experiments_oracle_can_be_split_by_modality():
    person_ids = torch.tensor([7, 5, 5, 7, 9, 9])
    gallery = replace(two_kinds(6, 3), modality_ids=torch.tensor([0, 0, 0, 1, 0, 1]))
    assert (oracle.true_labels(person_ids, gallery, joint=False).shared == NOISE).all()
    assert oracle.true_labels(person_ids, gallery, joint=True).shared.tolist() == [1, 0, 0, 1, 2, 2]
    assert oracle.true_labels(person_ids, gallery, joint=True, mixed=2 / 3).shared.tolist() == [1, 0, 0, 1, 2, 3]
    assert oracle.true_labels(person_ids, gallery, joint=True, mixed=0).shared.tolist() == [1, 0, 0, 2, 3, 4]


@pytest.mark.parametrize("rerank", [False, True])
def test_scores_are_taken_before_training_every_so_often_and_at_the_end(rerank, tmp_path):
    settings = ("data.num_crops=1", "data.train_share=0.3", "network.width=4", "network.embedding_dim=16")
    settings += ("stage1.num_epochs=3", "stage2.num_epochs=0", "train.num_iterations=1", "evaluate.every=2")
    config = load_config("landsat", [*settings, f"evaluate.rerank={str(rerank).lower()}"])
    folder = RunFolder(tmp_path / "run")
    run_training(config, folder)
    scored = {record["epoch"]: record.get("retrieval") for record in folder.records()}
    assert [epoch for epoch, results in scored.items() if results] == [0, 2, 3]
    again = {epoch: ["re-ranked" in result["protocol"] for result in scored[epoch]] for epoch in (0, 2, 3)}
    assert again == {0: [False] * 2, 2: [False] * 2, 3: [False] * 2 + [True] * 2 * rerank}


@pytest.mark.parametrize(
    ("expansion", "ids"),
    [
        ("plain", set()),
        ("camera", {"camera_ids"}),
        ("modality", {"modality_ids"}),
        ("mie", {"camera_ids", "modality_ids"}),
    ],
)
def test_an_expansion_balances_the_ids_of_its_name(expansion, ids, monkeypatch):
    given = {}

    def record_arguments(features, **arguments):
        given.update(arguments)
        return type("Found", (), {"labels": torch.zeros(len(features), dtype=torch.int64)})

    monkeypatch.setattr("dmic.train.pseudo_labels", record_arguments)
    gallery = two_kinds(12, 4)
    refresh_labels(torch.randn(12, 4), gallery, stages({**CLUSTERING, "expansion": expansion})[1], 0)
    assert {name for name in given if name.endswith("_ids")} == ids
