"""The training loop: embed, refresh the pseudo labels, train against their memories, evaluate, log.

DMIC trains in two stages (dynamic neighbourhoods, hybrid memories); see docs/algorithm.md for the paper's symbols.

Several ranks train as one process does: each takes its share of every batch, the batch norms see all of it, and every
rank holds the same weights, labels and memories.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from . import process_group
from .constants import INFRARED, NOISE, VISIBLE
from .data import CameraCrossingSampler, Gallery
from .data.prefetch import prefetch
from .memory import ClusterMemory, InstanceMemory, Memory
from .models import TwoStreamNetwork, embed, share_statistics
from .process_group import Group
from .pseudo_labels import pseudo_labels, search_two_sides
from .seeds import derive_seed, generator

View = Callable[[torch.Tensor, torch.Generator, int, int], torch.Tensor]  # (pixels, generator, begin, total)
Record = dict[str, Any]
MODALITIES = {"visible": VISIBLE, "infrared": INFRARED}


@dataclass(frozen=True)
class Objective:
    """What a stage minimises: its memories, and how their losses are added up.

    A step of one modality alone has the terms cluster + instance_weight * instance, for either modality; a joint step
    has the shared cluster memory + joint_instance_weight * the instance memory of all samples.
    """

    instances: bool = True  # instance memories beside the cluster memories
    joint: str = "none"  # "none"; "separate": an optimiser step of its own; "combined": one step with the others
    instance_weight: float = 1.0  # of the instance memory of one modality
    joint_instance_weight: float = 0.1  # of the instance memory of both
    combined_weight: float = 0.7  # of all joint terms in a combined step
    mixed_only: bool = False  # joint batches hold only clusters of both modalities
    temperature: float = 0.05  # of the softmax over similarities
    momentum: float = 0.0  # share of its old value that a memory row keeps


@dataclass(frozen=True)
class Stage:
    """A part of training with its own optimiser and instance memories; functions of its epochs, from 0."""

    num_epochs: int
    per_modality: Callable[[int], dict[str, Any]]  # arguments of `cluster` for one modality alone
    joint: Callable[[int], dict[str, Any]]  # the same for both together; not called if the objective has no joint step
    learning_rate: Callable[[int], float]  # of Adam
    objective: Objective


@dataclass(frozen=True)
class Batches:
    """What an optimiser step sees."""

    num_iterations: int  # steps of each kind (per modality; joint) in an epoch
    num_classes: int  # P, clusters in a batch
    num_samples: int  # K, images of a cluster in a batch, per modality
    views: dict[int, tuple[View, ...]]  # by modality: every image of a batch appears once in each
    accumulate: int = 1  # batches whose gradients make one step


@dataclass(frozen=True, eq=False)
class EpochLabels:
    """Pseudo labels of one epoch by global sample id; what was not clustered is NOISE.

    Attributes:
        visible: int64 [N], clusters of the visible samples.
        infrared: int64 [N], clusters of the infrared samples.
        shared: int64 [N], joint clusters of both modalities.
    """

    visible: torch.Tensor
    infrared: torch.Tensor
    shared: torch.Tensor


@dataclass(eq=False)
class TrainingState:
    """All that changes while a network trains, so that a run can be left and taken up between any two iterations."""

    network: TwoStreamNetwork
    optimizer: torch.optim.Adam | None = None
    stage: int = 0
    epoch: int = 0  # of the stage, from 0
    iteration: int = 0  # of the epoch, from 0: the next one to do
    labels: EpochLabels | None = None  # None before the epoch has begun
    memories: dict[str, Memory] = field(default_factory=dict)
    record: Record = field(default_factory=dict)  # of the epoch, as far as it has come

    @property
    def is_new(self) -> bool:
        return self.labels is None and self.stage == self.epoch == 0


@dataclass(frozen=True)
class Hooks:
    """Calls from the loop. Except by raising, they change nothing: what they return goes into the records."""

    evaluate: Callable[[int], Record] = lambda epoch: {}  # before training (epoch 0), and after each epoch (from 1)
    inspect: Callable[[EpochLabels], Record] = lambda labels: {}  # after each clustering
    log: Callable[[Record], None] = lambda record: None  # once before training, then once an epoch
    after_epoch: Callable[[TrainingState], None] = lambda state: None  # the state is that before the next epoch
    after_iteration: Callable[[TrainingState], None] = lambda state: None
    progress: Callable[[str, int, int], None] | None = None  # (phase, done, total); may raise to stop
    enter: Callable[[str], None] = lambda phase: None  # before "embed", "cluster", "train" and "evaluate"


def train(
    state: TrainingState,
    gallery: Gallery,
    stages: Iterable[Stage],
    batches: Batches,
    *,
    weight_decay: float,
    warmup: int = 0,
    seed: int = 0,
    hooks: Hooks | None = None,
    ranks: Group = None,
) -> None:
    """Train the network of `state` in place on a gallery without identities, from where the state is.

    On one machine and with one number of threads and ranks, equal arguments give equal bits, also if the state was
    saved and restored on the way. Another number of ranks changes nothing but the rounding of sums over a batch.

    Args:
        state: new, or restored from a checkpoint. Its network is left in evaluation mode.
        gallery: images, cameras and modalities; it has no field that says who is in an image.
        stages: one after the other.
        batches: the steps of every epoch.
        weight_decay: of Adam.
        warmup: iterations at the start of the first stage in which the learning rate rises to its value.
        seed: of batches, views and memory updates.
        hooks: what looks on.
        ranks: processes that train together; all pass equal states and arguments, but for hooks.

    Raises:
        ValueError: the gallery is empty, an epoch leaves nothing to train on, a loss is not finite, or an argument is
            out of range. The state is then that of an unfinished iteration: go back to a saved one.
    """
    if len(gallery) == 0:
        raise ValueError("train: gallery must hold images, got none")
    stages, hooks = tuple(stages), hooks or Hooks()
    network = state.network
    network.eval()
    if ranks is not None:
        share_statistics(network, ranks)
    if state.is_new:
        hooks.enter("evaluate")
        hooks.log({"epoch": 0, **hooks.evaluate(0)})
    for stage in stages[state.stage :]:
        state.optimizer = state.optimizer or make_optimizer(network, weight_decay)
        for epoch in range(state.epoch, stage.num_epochs):
            if state.labels is None:
                state.record = {"epoch": 1 + sum(s.num_epochs for s in stages[: state.stage]) + epoch}
                state.record |= {"stage": state.stage + 1, "seconds": {}, "loss": {}}
                hooks.enter("embed")
                with _timed(state.record, "embed"):
                    features = embed(network, gallery, progress=hooks.progress, group=ranks)
                hooks.enter("cluster")
                with _timed(state.record, "cluster"):
                    state.labels = refresh_labels(features, gallery, stage, epoch, hooks.progress, ranks)
                    refresh_memories(state, features, gallery, stage.objective, ranks)
                state.record |= describe_labels(state.labels, gallery) | hooks.inspect(state.labels)
            rising = warmup if state.stage == 0 and epoch == 0 else 0
            hooks.enter("train")
            _train_epoch(state, gallery, stage, batches, rising, seed, hooks, ranks)
            hooks.enter("evaluate")
            with _timed(state.record, "evaluate"):
                state.record |= hooks.evaluate(state.record["epoch"])
            hooks.log(state.record | {"peak_bytes": _peak_bytes(network)})
            state.epoch, state.iteration, state.labels = epoch + 1, 0, None
            hooks.after_epoch(state)
        state.stage, state.epoch, state.optimizer, state.memories = state.stage + 1, 0, None, {}


def make_optimizer(network: TwoStreamNetwork, weight_decay: float) -> torch.optim.Adam:
    """Adam over all weights that train; its learning rate is set before every step."""
    return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], weight_decay=weight_decay)


def refresh_labels(
    features: torch.Tensor,
    gallery: Gallery,
    stage: Stage,
    epoch: int,
    progress: Callable[[str, int, int], None] | None = None,
    ranks: Group = None,
) -> EpochLabels:
    """Cluster each modality alone and, if the stage has a joint step, both together.

    One process compares every two samples once for all three. Ranks do so once for each: what they share is a search of
    consecutive rows.

    Args:
        features: float32 [N, d] by global sample id.
        gallery: the cameras and modalities of the samples.
        stage, epoch: what to cluster with.
        progress: of `pseudo_labels`.
        ranks: share the work.
    """
    sides = tuple((gallery.modality_ids == modality).nonzero().flatten() for modality in MODALITIES.values())
    alone, lists = stage.per_modality(epoch), (None, None, None)
    joint = None if stage.objective.joint == "none" else stage.joint(epoch)
    if joint is not None and ranks is None:
        k1 = min(joint["k1"], len(gallery))
        given = tuple(side.to(features.device) for side in sides)
        lists = search_two_sides(features, given, alone["k1"], k1, min(joint["k2"], k1), joint["eps"], progress)
    found = []
    clusterings = (*sides, torch.arange(len(gallery))), (alone, alone, joint), lists
    for sample_idx, settings, neighbor_idx in zip(*clusterings, strict=True):
        labels = torch.full((len(gallery),), NOISE, device=features.device)
        if len(sample_idx) and settings is not None:
            arguments = {**settings, "neighbor_idx": neighbor_idx, "progress": progress}
            labels[sample_idx.to(features.device)] = cluster(features, gallery, sample_idx, ranks, **arguments)
        found.append(labels)
    return EpochLabels(*found)


def cluster(
    features: torch.Tensor,
    gallery: Gallery,
    sample_idx: torch.Tensor,
    ranks: Group = None,
    *,
    expansion: str,
    k1: int,
    **settings: Any,
) -> torch.Tensor:
    """`pseudo_labels` of some samples, int64 [n]; each rank finds those of its share, and all get all of them.

    Args:
        features: float32 [N, d] by global sample id.
        gallery: the cameras and modalities of the samples.
        sample_idx: int64 [n], which of them.
        ranks: every rank has all features.
        expansion: "plain" ignores ids, "camera" and "modality" balance one of them, "mie" both.
        k1: kept at or below n, so that a gallery smaller than the neighbourhood is one neighbourhood.
        settings: k2, eps, min_samples, and neighbor_idx and progress of `pseudo_labels`.
    """
    own = sample_idx[slice(*process_group.share(len(sample_idx), ranks))]
    k1 = min(k1, len(sample_idx))
    settings |= {"k1": k1, "k2": min(settings["k2"], k1)}
    if expansion in ("camera", "mie"):
        settings["camera_ids"] = gallery.camera_ids[own]
    if expansion in ("modality", "mie"):
        settings["modality_ids"] = gallery.modality_ids[own]
    found = pseudo_labels(features[own.to(features.device)], **settings, process_group=ranks)
    return process_group.all_gather_rows(found.labels, ranks)


def refresh_memories(
    state: TrainingState, features: torch.Tensor, gallery: Gallery, objective: Objective, ranks: Group = None
) -> None:
    """New cluster memories from the labels of the epoch; instance memories live as long as the stage, relabelled.

    New rows come from rank 0: the sums of centroids on a GPU have no fixed order.
    """
    labels, momentum = state.labels, objective.momentum
    kinds = {"visible": labels.visible, "infrared": labels.infrared}
    if objective.joint != "none":
        kinds["shared"] = labels.shared
    for name, found in kinds.items():
        state.memories[f"cluster_{name}"] = ClusterMemory.from_features(features, found, momentum=momentum)
        process_group.broadcast(state.memories[f"cluster_{name}"].rows, ranks)
        if objective.instances:
            if f"instance_{name}" not in state.memories:
                own = gallery.modality_ids == MODALITIES.get(name, gallery.modality_ids)
                held = own.nonzero().flatten().to(features.device)
                state.memories[f"instance_{name}"] = InstanceMemory.from_features(features, held, momentum=momentum)
                process_group.broadcast(state.memories[f"instance_{name}"].rows, ranks)
            state.memories[f"instance_{name}"].refresh(found)


def describe_labels(labels: EpochLabels, gallery: Gallery) -> Record:
    """Clusters, outliers and mean cameras per cluster of each clustering; for the joint one, the mixed share.

    The joint clustering counts every sample, the others those of their modality. Means are None without clusters.
    """
    everything = torch.ones_like(gallery.modality_ids, dtype=torch.bool)
    clustered = {
        "visible": (labels.visible, gallery.modality_ids == VISIBLE),
        "infrared": (labels.infrared, gallery.modality_ids == INFRARED),
        "shared": (labels.shared, everything),
    }
    record: Record = {}
    for name, (found, mask) in clustered.items():
        cameras = _kinds_per_cluster(found, gallery.camera_ids)
        record[name] = {
            "clusters": len(cameras),
            "outliers": int((found.cpu()[mask] == NOISE).sum()),
            "cameras_per_cluster": cameras.mean().item() if len(cameras) else None,
        }
    modalities = _kinds_per_cluster(labels.shared, gallery.modality_ids)
    record["shared"]["mixed_share"] = (modalities == 2).double().mean().item() if len(modalities) else None
    return record


def _kinds_per_cluster(labels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """How many different ids each cluster holds, float64 [num_clusters]."""
    labels = labels.cpu()
    clustered = labels != NOISE
    pairs = torch.stack([labels[clustered], ids[clustered]]).unique(dim=1)
    return pairs[0].bincount().double()


# ------------------------------------------------------------------------------------------------------- one epoch


@dataclass(frozen=True, eq=False)
class _Share:
    """What a rank sees of the samples of one modality in a batch, one view after the other; alone it sees them all."""

    pixels: torch.Tensor  # float32 [views * n, C, H, W]
    own_idx: torch.Tensor  # int64 [views * n], their sample ids
    sample_idx: torch.Tensor  # int64 [views * N], those of the whole batch
    num_views: int

    def gather(self, embeddings: torch.Tensor, ranks: Group) -> torch.Tensor:
        """Embeddings [views * N, d] of the whole batch from those of this rank, without gradients."""
        if ranks is None:
            return embeddings.detach()
        shape = self.num_views, len(self.own_idx) // self.num_views, embeddings.shape[1]
        by_sample = embeddings.detach().view(shape).transpose(0, 1)
        return process_group.all_gather_rows(by_sample, ranks).transpose(0, 1).flatten(0, 1)


Batch = dict[int, _Share]  # by modality


@dataclass(frozen=True, eq=False)
class _Term:
    """One loss: the samples of one modality against one memory."""

    name: str
    modality: int
    weight: float
    memory: Memory


@dataclass(frozen=True, eq=False)
class _Group:
    """Losses that share a forward pass of one batch of each modality."""

    samplers: dict[int, CameraCrossingSampler]
    terms: list[_Term]
    seed: int

    def draw(self, number: int, gallery: Gallery, batches: Batches, device: torch.device, ranks: Group) -> Batch:
        """This rank's share of batch `number` of the epoch; the batch depends on nothing else."""
        drawn = {}
        for modality, sampler in self.samplers.items():
            sample_idx = sampler.batch(number)
            views = batches.views[modality]
            draws = generator(self.seed, "views", number, modality)
            begin, end = process_group.share(len(sample_idx), ranks)
            own_idx = sample_idx[begin:end]
            pixels = gallery.images[own_idx].to(device, non_blocking=True)
            drawn[modality] = _Share(
                torch.cat([view(pixels, draws, begin, len(sample_idx)) for view in views]),
                own_idx.repeat(len(views)),
                sample_idx.repeat(len(views)),
                len(views),
            )
        return drawn

    def losses(
        self, network: torch.nn.Module, batch: Batch, temperature: float
    ) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor]]:
        """Every loss by name, as this rank's part of the sum over the ranks, and its embeddings of each modality."""
        pixels = [batch[modality].pixels if modality in batch else None for modality in (VISIBLE, INFRARED)]
        device = next(network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeddings = network(*pixels)
        split = embeddings.split([len(batch[modality].own_idx) for modality in sorted(batch)])
        by_modality = dict(zip(sorted(batch), split, strict=True))
        losses = {}
        for term in self.terms:
            seen, own = batch[term.modality], by_modality[term.modality]
            if len(own):
                mean = term.memory.loss(own, seen.own_idx.to(own.device), temperature)
                losses[term.name] = mean * (len(own) / len(seen.sample_idx))
            else:
                losses[term.name] = own.sum()  # 0, and backward meets the other ranks in the batch norms all the same
        return losses, by_modality

    def update(self, number: int, seen: list[tuple[Batch, dict[int, torch.Tensor]]]) -> None:
        """The random-sample update of every memory, which sees what all batches of the step held for it."""
        for position, memory in enumerate(dict.fromkeys(term.memory for term in self.terms)):
            modalities = [term.modality for term in self.terms if term.memory is memory]
            pairs = [(embeddings[m], batch[m].sample_idx) for batch, embeddings in seen for m in modalities]
            joined = torch.cat([x for x, _ in pairs])
            sample_idx = torch.cat([ids for _, ids in pairs]).to(joined.device)
            memory.update(joined, sample_idx, generator(self.seed, "memory", number, position))


def _plan_steps(
    state: TrainingState, gallery: Gallery, objective: Objective, batches: Batches, seed: int
) -> tuple[list[list[_Group]], list[str]]:
    """The optimiser steps of an iteration, each a list of groups, and the names of losses that have nothing to learn.

    A loss needs a cluster of its modality to draw from and two classes in its memory to tell apart.
    """
    alone = [("cluster_{}", "cluster_{}", 1.0), ("instance_{}", "instance_{}", objective.instance_weight)]
    scale = objective.combined_weight if objective.joint == "combined" else 1.0
    joint = [
        ("shared_{}", "cluster_shared", scale),
        ("instance_shared_{}", "instance_shared", scale * objective.joint_instance_weight),
    ]
    labels, skipped, groups = state.labels, [], []
    shared = _mixed(labels.shared, gallery) if objective.mixed_only else labels.shared
    for kind, terms, drawn_from in (
        ("alone", alone, {"visible": labels.visible, "infrared": labels.infrared}),
        ("joint", joint, {"visible": shared, "infrared": shared}),
    ):
        group = _Group({}, [], derive_seed(seed, state.stage, state.epoch, kind))
        for name, modality in MODALITIES.items():
            own = torch.where(gallery.modality_ids == modality, drawn_from[name].cpu(), NOISE)
            for title, memory_name, weight in terms:
                memory = state.memories.get(memory_name.format(name))
                if memory is None or weight == 0:
                    continue
                if memory.num_classes < 2 or not bool((own != NOISE).any()):
                    skipped.append(title.format(name))
                    continue
                group.terms.append(_Term(title.format(name), modality, weight, memory))
                if modality not in group.samplers:
                    group.samplers[modality] = CameraCrossingSampler(
                        own,
                        gallery.camera_ids,
                        num_classes=batches.num_classes,
                        num_samples=batches.num_samples,
                        seed=derive_seed(group.seed, name),
                    )
        if group.terms:
            groups.append(group)
    return [groups] if objective.joint == "combined" and groups else [[group] for group in groups], skipped


def _mixed(labels: torch.Tensor, gallery: Gallery) -> torch.Tensor:
    """The labels of clusters that hold both modalities, NOISE elsewhere."""
    kinds = _kinds_per_cluster(labels, gallery.modality_ids)
    labels = labels.cpu()
    return torch.where((labels != NOISE) & (kinds[labels.clamp(min=0)] == 2), labels, NOISE) if len(kinds) else labels


def _train_epoch(
    state: TrainingState,
    gallery: Gallery,
    stage: Stage,
    batches: Batches,
    warmup: int,
    seed: int,
    hooks: Hooks,
    ranks: Group,
) -> None:
    """Do what is left of the epoch's iterations; the record gets the mean of every loss."""
    network, record, objective = state.network, state.record, stage.objective
    steps, record["skipped"] = _plan_steps(state, gallery, objective, batches, seed)
    if not steps:
        raise ValueError(
            f"train: epoch {record['epoch']} has nothing to train on: no clustering found two classes with "
            f"{stage.per_modality(state.epoch)}; start again and raise eps or lower min_samples"
        )
    rate = record["learning_rate"] = stage.learning_rate(state.epoch)
    if not 0 <= rate <= torch.finfo(torch.float32).max / 10:  # Adam divides it by 0.1 in its first step
        raise ValueError(f"train: learning_rate must be a finite number from 0, got {rate} in epoch {record['epoch']}")
    for name in (term.name for step in steps for group in step for term in group.terms):
        record["loss"].setdefault(name, 0.0)
    order = [group for step in steps for group in step]
    device = next(network.parameters()).device
    drawn = (
        group.draw(number, gallery, batches, device, ranks)
        for iteration in range(state.iteration, batches.num_iterations)
        for group in order
        for number in range(iteration * batches.accumulate, (iteration + 1) * batches.accumulate)
    )
    if device.type != "cpu" or not isinstance(gallery.images, torch.Tensor):
        drawn = prefetch(drawn, depth=2)
    network.train()
    trained = network if ranks is None else _distributed(network, order, ranks)
    with closing(drawn):
        while state.iteration < batches.num_iterations:
            state.optimizer.param_groups[0]["lr"] = rate * min(1.0, (state.iteration + 1) / max(1, warmup))
            with _timed(record, "load"):
                loaded = iter([next(drawn) for _ in order for _ in range(batches.accumulate)])
            with _timed(record, "train"):
                for step in steps:
                    _step(state, trained, step, loaded, batches, objective, ranks)
            state.iteration += 1
            hooks.after_iteration(state)
            if hooks.progress:
                hooks.progress("train", state.iteration, batches.num_iterations)
    network.eval()


def _distributed(network: TwoStreamNetwork, groups: list[_Group], ranks: Group) -> DistributedDataParallel:
    """The network with gradients that are means over ranks; weights are those of rank 0."""
    one_stem = any(len(group.samplers) < len(MODALITIES) for group in groups)
    return DistributedDataParallel(network, process_group=ranks, find_unused_parameters=one_stem)


def _step(
    state: TrainingState,
    network: torch.nn.Module,
    step: list[_Group],
    loaded: Iterator[Batch],
    batches: Batches,
    objective: Objective,
    ranks: Group,
) -> None:
    """One step of the optimiser, then one update of every memory that took part."""
    state.optimizer.zero_grad()
    seen: list[list[tuple[Batch, dict[int, torch.Tensor]]]] = []
    for group in step:
        seen.append([])
        for number in range(1, batches.accumulate + 1):
            batch = next(loaded)
            is_last = group is step[-1] and number == batches.accumulate
            with nullcontext() if ranks is None or is_last else network.no_sync():
                losses, own = group.losses(network, batch, objective.temperature)
                # the gradients become means over ranks, and the losses are to be summed
                total = sum(losses[term.name] * term.weight for term in group.terms) * process_group.size(ranks)
                (total / batches.accumulate).backward()
            values = torch.stack(list(losses.values())).detach()
            process_group.all_reduce(values, ranks)
            embeddings = {modality: batch[modality].gather(x, ranks) for modality, x in own.items()}
            for name, value in zip(losses, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise ValueError(
                        f"train: {name} is {value} in epoch {state.record['epoch']}, iteration {state.iteration + 1}; "
                        "lower the learning rate or lengthen the warm-up, and start again"
                    )
                state.record["loss"][name] += value / (batches.num_iterations * batches.accumulate)
            seen[-1].append((batch, embeddings))
    state.optimizer.step()
    for group, batches_seen in zip(step, seen, strict=True):
        group.update(state.iteration, batches_seen)


@contextmanager
def _timed(record: Record, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        record["seconds"][phase] = record["seconds"].get(phase, 0.0) + time.perf_counter() - start


def _peak_bytes(network: TwoStreamNetwork) -> int:
    """Peak memory of the GPU that the network is on, or of the process."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
