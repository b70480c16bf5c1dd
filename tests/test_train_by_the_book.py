"""Every iteration of training against a second computation, which sees what was drawn and nothing else of the loop.

A view writes down the samples and pixels that it was asked for; from these the losses, the optimiser's steps and the
rows that an update may leave in the memories are computed once more.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

import dmic.memory
from dmic.constants import INFRARED, NOISE, VISIBLE
from dmic.data import Gallery
from dmic.losses import cluster_loss, instance_loss
from dmic.models import embed, small_two_stream
from dmic.train import Batches, Hooks, Objective, Stage, TrainingState, train

NUM_CLASSES, NUM_SAMPLES, NUM_ITERATIONS, WARMUP, WEIGHT_DECAY = 3, 4, 3, 2, 0.1
NAMES = {VISIBLE: "visible", INFRARED: "infrared"}
NUM_VIEWS = {VISIBLE: 2, INFRARED: 1}


def a_gallery(n=52):
    """Every third image is infrared; the first pixel of an image is its sample id."""
    images = torch.randint(0, 256, (n, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n)
    return Gallery(images, torch.arange(n) % 4, (torch.arange(n) % 3 == 0).long())


def a_clustering(number, num_samples, is_joint):
    """Four clusters and outliers, others for every number; a fifth joint one holds visible samples alone."""
    labels = torch.randint(NOISE, 4, (num_samples,), generator=torch.Generator().manual_seed(number))
    labels[:5] = torch.arange(NOISE, 4)
    if is_joint:
        labels[[7, 8, 10, 11, 13]] = 4
    return labels


class Book:
    """Follows a training; raises where the training does something else than the method says."""

    def __init__(self, state, gallery, stages, accumulate):
        self.state, self.gallery, self.stages, self.accumulate = state, gallery, stages, accumulate
        self.network = copy.deepcopy(state.network)
        self.optimizer, self.memories, self.labels = None, {}, {}
        self.views, self.view_seeds, self.memory_seeds = [], [], []
        self.losses, self.moments, self.drawn_for_shared, self.settings = {}, [], set(), []

    def view(self, modality, number):
        def noisy(pixels, generator, begin, total):
            assert (begin, total) == (0, len(pixels))
            if number == 0:
                self.view_seeds.append(generator.initial_seed())
            view = pixels + 30 * torch.randn(pixels.shape, generator=generator)
            self.views.append((modality, number, pixels[:, 0, 0, 0].long(), view))
            return view

        return noisy

    def cluster(self, features, gallery, sample_idx, ranks, **settings):
        torch.testing.assert_close(features, embed(self.network, gallery))
        self.settings.append(settings)
        return a_clustering(len(self.settings), len(sample_idx), len(sample_idx) == len(gallery))

    def begin_epoch(self, labels):
        """Cluster memories are new; instance memories are filled at the start of a stage only."""
        features, kept = embed(self.network, self.gallery), self.memories
        if self.state.epoch == 0:
            trained = [p for p in self.network.parameters() if p.requires_grad]
            self.optimizer, kept = torch.optim.Adam(trained, weight_decay=WEIGHT_DECAY), {}
        self.losses, self.memories = {}, {}
        self.labels = {name: getattr(labels, name) for name in self.names}
        for name, found in self.labels.items():
            centroids = [features[found == c].mean(0) for c in range(int(found.max()) + 1)]
            want = {f"cluster_{name}": F.normalize(torch.stack(centroids))}
            if self.objective.instances:
                held = F.normalize(features[self.held(name)])
                want[f"instance_{name}"] = kept.get(f"instance_{name}", held)
            for key, rows in want.items():
                torch.testing.assert_close(self.state.memories[key].rows, rows)
                self.memories[key] = self.state.memories[key].rows.clone()
        assert self.memories.keys() == self.state.memories.keys()

    @property
    def objective(self):
        return self.stages[self.state.stage].objective

    @property
    def names(self):
        return ("visible", "infrared", "shared")[: 2 if self.objective.joint == "none" else 3]

    def held(self, name):
        own = {"visible": VISIBLE, "infrared": INFRARED}
        wanted = self.gallery.modality_ids == own.get(name, self.gallery.modality_ids)
        return wanted.nonzero().flatten()

    def classes(self, name):
        """The class of every sample: of an outlier, one of its own."""
        labels = self.labels[name]
        return torch.where(labels == NOISE, 1000 + torch.arange(len(labels)), labels)

    def terms(self, kind, modality):
        """Name, memory and weight of every loss of a modality."""
        objective = self.objective
        if kind == "alone":
            name = NAMES[modality]
            found = (
                (f"cluster_{name}", f"cluster_{name}", 1.0),
                (
                    f"instance_{name}",
                    f"instance_{name}",
                    objective.instance_weight,
                ),
            )
        else:
            scale = objective.combined_weight if objective.joint == "combined" else 1.0
            found = (
                (f"shared_{NAMES[modality]}", "cluster_shared", scale),
                (
                    f"instance_shared_{NAMES[modality]}",
                    "instance_shared",
                    scale * objective.joint_instance_weight,
                ),
            )
        return found if objective.instances else found[:1]

    def batch(self, kind):
        """Pixels and sample ids by modality, after a look at who is in them."""
        pixels, sample_idx = {}, {}
        for modality in (VISIBLE, INFRARED):
            views = [self.views.pop(0) for _ in range(NUM_VIEWS[modality])]
            assert [view[:2] for view in views] == [(modality, number) for number in range(len(views))]
            ids = views[0][2]
            assert all(torch.equal(ids, others) for _, _, others, _ in views)
            pixels[modality] = torch.cat([view for *_, view in views])
            sample_idx[modality] = ids.repeat(len(views))
            labels = self.labels[NAMES[modality] if kind == "alone" else "shared"][ids]
            assert (self.gallery.modality_ids[ids] == modality).all()
            assert (labels != NOISE).all()
            assert labels.unique(return_counts=True)[1].tolist() == [NUM_SAMPLES] * NUM_CLASSES
            if kind == "joint" and self.objective.mixed_only:
                assert (labels != 4).all()
        return pixels, sample_idx

    def after_iteration(self, state):
        epoch, iteration = state.epoch, state.iteration
        rate = self.stages[state.stage].learning_rate(epoch)
        if state.stage == epoch == 0:
            rate *= min(1.0, iteration / WARMUP)
        self.optimizer.param_groups[0]["lr"] = rate
        together = {"none": [["alone"]], "separate": [["alone"], ["joint"]], "combined": [["alone", "joint"]]}
        seen = {name: [] for name in self.memories}
        self.network.train()
        for step in together[self.objective.joint]:
            self.optimizer.zero_grad()
            for kind in [kind for kind in step for _ in range(self.accumulate)]:
                self.losses_of_a_batch(kind, seen)
            self.optimizer.step()
        assert not self.views
        for (name, got), (_, want) in zip(
            state.network.state_dict().items(), self.network.state_dict().items(), strict=True
        ):
            assert torch.equal(got, want), f"{name} in iteration {iteration} of epoch {epoch}"
        for name, members in seen.items():
            self.check_update(name, state.memories[name].rows, members)

    def losses_of_a_batch(self, kind, seen):
        pixels, sample_idx = self.batch(kind)
        embeddings = self.network(pixels[VISIBLE], pixels[INFRARED])
        split = embeddings.split([len(pixels[VISIBLE]), len(pixels[INFRARED])])
        total = 0
        for modality, own in zip((VISIBLE, INFRARED), split, strict=True):
            ids = sample_idx[modality]
            for title, memory, weight in self.terms(kind, modality):
                name, rows = memory.partition("_")[2], self.memories[memory]
                if memory.startswith("cluster"):
                    targets = self.labels[name][ids]
                    loss = cluster_loss(own, targets, rows, self.objective.temperature)
                else:
                    held, classes = self.held(name), self.classes(name)
                    targets = (held == ids[:, None]).int().argmax(1)
                    loss = instance_loss(own, classes[ids], rows, classes[held], self.objective.temperature)
                total = total + loss * weight
                self.losses.setdefault(title, []).append(float(loss.detach()))
                seen[memory].append((modality, own.detach(), targets))
        (total / self.accumulate).backward()

    def check_update(self, name, rows, seen):
        """Every target's row moved towards one of its members in the batches of the step, and no other row moved."""
        old, momentum = self.memories[name], self.objective.momentum
        modality_ids = torch.cat([torch.full((len(targets),), modality) for modality, _, targets in seen])
        members = F.normalize(torch.cat([own for _, own, _ in seen]))
        targets = torch.cat([targets for _, _, targets in seen])
        for row in range(len(rows)):
            mine = (targets == row).nonzero().flatten()
            if not len(mine):
                assert torch.equal(rows[row], old[row]), f"{name} {row}"
                continue
            moved = F.normalize(momentum * old[row] + (1 - momentum) * members[mine])
            distance = (moved - rows[row]).norm(dim=1)
            assert distance.min() < 1e-5, f"{name} {row}"
            if name == "cluster_shared":
                self.drawn_for_shared.add(int(modality_ids[mine[distance.argmin()]]))
        self.memories[name] = rows.clone()

    def log(self, record):
        if record["epoch"]:
            want = {name: sum(values) / len(values) for name, values in self.losses.items()}
            assert record["loss"] == pytest.approx(want, rel=1e-5)


WEIGHTS = {"instance_weight": 0.7, "joint_instance_weight": 0.3, "combined_weight": 0.6, "temperature": 0.1}


@pytest.mark.parametrize(
    ("joint", "accumulate", "objective"),
    [
        ("separate", 1, {}),
        ("separate", 2, {**WEIGHTS, "momentum": 0.4, "mixed_only": True}),
        ("combined", 1, WEIGHTS),
        ("combined", 2, {"instances": False, "momentum": 0.8}),
    ],
)
def test_two_stages_do_what_the_method_says(joint, accumulate, objective, monkeypatch, threads):
    threads(1)  # sums in the same order
    gallery, state = a_gallery(), TrainingState(small_two_stream(width=4, embedding_dim=16))
    stages = [
        Stage(
            num_epochs=2,
            per_modality=lambda epoch, s=s: {"k1": 4, "k2": 2, "eps": 0.5 + 0.1 * s + 0.01 * epoch},
            joint=lambda epoch, s=s: {"k1": 5, "k2": 3, "eps": 0.8 + 0.1 * s + 0.01 * epoch},
            learning_rate=lambda epoch, s=s: 1e-3 * (1 + epoch + 2 * s),
            objective=Objective(joint=kind, **objective),
        )
        for s, kind in enumerate(("none", joint))
    ]
    book = Book(state, gallery, stages, accumulate)
    replace_rows, updates, evaluated = dmic.memory._replace_rows, [], []

    def update(rows, targets, embeddings, momentum, generator):
        updates.append(generator.initial_seed())
        replace_rows(rows, targets, embeddings, momentum, generator)

    monkeypatch.setattr(dmic.memory, "_replace_rows", update)
    monkeypatch.setattr("dmic.train.cluster", book.cluster)
    views = {modality: tuple(book.view(modality, v) for v in range(n)) for modality, n in NUM_VIEWS.items()}
    train(
        state,
        gallery,
        stages,
        Batches(NUM_ITERATIONS, NUM_CLASSES, NUM_SAMPLES, views, accumulate),
        weight_decay=WEIGHT_DECAY,
        warmup=WARMUP,
        hooks=Hooks(
            evaluate=lambda epoch: evaluated.append(epoch) or {},
            inspect=lambda labels: book.begin_epoch(labels) or {},
            log=book.log,
            after_iteration=book.after_iteration,
        ),
    )
    assert not state.network.training
    assert evaluated == [0, 1, 2, 3, 4]
    eps = [settings["eps"] for settings in book.settings]
    alone = [(0.5, 0.5), (0.51, 0.51), (0.6, 0.6, 0.9), (0.61, 0.61, 0.91)]
    assert eps == pytest.approx([value for epoch in alone for value in epoch])
    assert book.drawn_for_shared == {VISIBLE, INFRARED}
    num_batches = 2 * NUM_ITERATIONS * accumulate * (1 + 2)  # epochs of a stage; alone, then alone and joint
    assert len(book.view_seeds) == 2 * num_batches
    num_memories = (2 + 3) if not objective.get("instances", True) else 2 * (2 + 3)
    assert len(updates) == 2 * NUM_ITERATIONS * num_memories
    seeds = book.view_seeds + updates
    assert len(set(seeds)) == len(seeds), "no two draws share their randomness"
