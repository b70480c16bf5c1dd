"""The training loop: embed, refresh the pseudo labels, train against their memories, evaluate, log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .constants import INFRARED, NOISE, VISIBLE
from .data import CameraCrossingSampler, Gallery
from .losses import cluster_loss
from .memory import ClusterMemory
from .models import TwoStreamNetwork, embed
from .pseudo_labels import pseudo_labels

View = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Record = dict[str, Any]


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


def train(
    network: TwoStreamNetwork,
    gallery: Gallery,
    *,
    num_epochs: int,
    num_iterations: int,
    per_modality: Callable[[int], dict[str, Any]],
    joint: Callable[[int], dict[str, Any] | None],
    invariant: bool,
    views: dict[int, tuple[View, ...]],
    num_classes: int,
    num_samples: int,
    temperature: float,
    momentum: float,
    learning_rate: Callable[[int], float],
    weight_decay: float,
    seed: int,
    evaluate: Callable[[TwoStreamNetwork], Record] | None = None,
    inspect: Callable[[EpochLabels], Record] | None = None,
    log: Callable[[Record], None] | None = None,
) -> None:
    """Train `network` in place on a gallery without identities.

    On one machine and with one number of threads, equal arguments give equal bits. The callbacks only look: what they
    return goes into the records and nowhere else.

    Args:
        network: left in evaluation mode.
        gallery: images, cameras and modalities; it has no field that says who is in an image.
        num_epochs: epochs, from 0 for the functions of the epoch.
        num_iterations: optimiser steps of each kind (per modality; joint) in an epoch.
        per_modality: epoch to the keyword arguments of `pseudo_labels` for one modality alone.
        joint: the same for both modalities together; None where there is no joint clustering yet.
        invariant: whether the expansions know cameras and modalities (MIE), or ignore them (plain).
        views: for each modality, the views of every image in a batch.
        num_classes, num_samples: P clusters x K images per modality in a batch.
        temperature: of the losses.
        momentum: of the memories.
        learning_rate: epoch to the learning rate of Adam, reached linearly over the first epoch.
        weight_decay: of Adam.
        seed: of batches, views and memory updates.
        evaluate: called with the network in evaluation mode before training and after each epoch.
        inspect: called with the labels of each epoch.
        log: called with one record before training (epoch 0) and one after each epoch (from 1): clusters, outliers,
            losses, seconds per phase, and what the other callbacks return.

    Raises:
        ValueError: the gallery is empty, an epoch leaves no cluster to train on, or an argument is out of range.
    """
    if len(gallery) == 0:
        raise ValueError("train: gallery must hold images, got none")
    generator = torch.Generator().manual_seed(seed)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=learning_rate(0), weight_decay=weight_decay)
    batch_shape = {"num_classes": num_classes, "num_samples": num_samples}
    log = log or (lambda record: None)
    network.eval()
    log({"epoch": 0, **(evaluate(network) if evaluate else {})})

    for epoch in range(num_epochs):
        record: Record = {"epoch": epoch + 1, "seconds": {}}
        with _timed(record, "embed"):
            features = embed(network, gallery)
        with _timed(record, "cluster"):
            labels = refresh_labels(features, gallery, per_modality(epoch), joint(epoch), invariant=invariant)
        record |= describe_labels(labels, gallery) | (inspect(labels) if inspect else {})
        steps, record["skipped"] = _plan_steps(features, labels, gallery, momentum, generator, **batch_shape)
        if not any(steps):
            raise ValueError(
                f"train: epoch {epoch + 1} has no cluster to train on, every sample is an outlier with "
                f"{per_modality(epoch)}; raise eps or lower min_samples"
            )
        record["learning_rate"] = learning_rate(epoch)
        warmup = [(i + 1) / num_iterations if epoch == 0 else 1.0 for i in range(num_iterations)]
        with _timed(record, "train"):
            record["loss"] = _train_epoch(
                network,
                gallery,
                optimizer,
                steps,
                views,
                generator,
                [learning_rate(epoch) * w for w in warmup],
                temperature,
            )
        with _timed(record, "evaluate"):
            record |= evaluate(network) if evaluate else {}
        log(record)


def refresh_labels(
    features: torch.Tensor,
    gallery: Gallery,
    per_modality: dict[str, Any],
    joint: dict[str, Any] | None,
    *,
    invariant: bool,
) -> EpochLabels:
    """Cluster each modality alone, with camera-invariant distances, and both together, with MIE ones.

    Args:
        features: float32 [N, d] by global sample id.
        gallery: the cameras and modalities of the samples.
        per_modality, joint: keyword arguments of `pseudo_labels`; no joint clustering if None.
        invariant: whether the expansions know cameras and modalities.
    """
    labels = []
    for modality in (VISIBLE, INFRARED):
        sample_idx = (gallery.modality_ids == modality).nonzero().flatten()
        found = torch.full((len(gallery),), NOISE)
        if len(sample_idx):
            camera_ids = gallery.camera_ids[sample_idx] if invariant else None
            found[sample_idx] = pseudo_labels(features[sample_idx], camera_ids=camera_ids, **per_modality).labels
        labels.append(found)
    shared = torch.full((len(gallery),), NOISE)
    if joint is not None:
        ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids} if invariant else {}
        shared = pseudo_labels(features, **ids, **joint).labels
    return EpochLabels(*labels, shared)


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
            "outliers": int((found[mask] == NOISE).sum()),
            "cameras_per_cluster": cameras.mean().item() if len(cameras) else None,
        }
    modalities = _kinds_per_cluster(labels.shared, gallery.modality_ids)
    record["shared"]["mixed_share"] = (modalities == 2).double().mean().item() if len(modalities) else None
    return record


def _kinds_per_cluster(labels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """How many different ids each cluster holds, float64 [num_clusters]."""
    clustered = labels != NOISE
    pairs = torch.stack([labels[clustered], ids[clustered]]).unique(dim=1)
    return pairs[0].bincount().double()


@dataclass(eq=False)
class _Term:
    """One loss: the samples of one modality against one memory."""

    name: str
    modality: int
    labels: torch.Tensor  # int64 [N] by global sample id
    memory: ClusterMemory
    sampler: CameraCrossingSampler


def _plan_steps(
    features: torch.Tensor,
    labels: EpochLabels,
    gallery: Gallery,
    momentum: float,
    generator: torch.Generator,
    **batch_shape: int,
) -> tuple[list[list[_Term]], list[str]]:
    """The terms of the two optimiser steps (per modality; joint), and the names of those that have no cluster."""
    joint_started = bool((labels.shared != NOISE).any())
    shared = ClusterMemory(features, labels.shared, momentum=momentum) if joint_started else None
    planned = [
        [("cluster_visible", VISIBLE, labels.visible, None), ("cluster_infrared", INFRARED, labels.infrared, None)],
        [("shared_visible", VISIBLE, labels.shared, shared), ("shared_infrared", INFRARED, labels.shared, shared)],
    ]
    steps: list[list[_Term]] = []
    skipped = []
    for terms in planned:
        step = []
        for name, modality, found, memory in terms:
            own = torch.where(gallery.modality_ids == modality, found, NOISE)
            if not bool((own != NOISE).any()):
                skipped.append(name)
                continue
            if memory is None:
                memory = ClusterMemory(features, found, momentum=momentum)
            sampler = CameraCrossingSampler(own, gallery.camera_ids, generator=generator, **batch_shape)
            step.append(_Term(name, modality, found, memory, sampler))
        steps.append(step)
    return steps, skipped


def _train_epoch(
    network: TwoStreamNetwork,
    gallery: Gallery,
    optimizer: torch.optim.Optimizer,
    steps: list[list[_Term]],
    views: dict[int, tuple[View, ...]],
    generator: torch.Generator,
    learning_rates: list[float],
    temperature: float,
) -> dict[str, float]:
    """Train for an epoch of one iteration per learning rate; the mean of every loss."""
    steps = [step for step in steps if step]
    sums = {term.name: 0.0 for step in steps for term in step}
    network.train()
    for optimizer.param_groups[0]["lr"] in learning_rates:
        for step in steps:
            batches = [_draw(gallery, term, views[term.modality], generator) for term in step]
            images = {term.modality: batch[0] for term, batch in zip(step, batches, strict=True)}
            labels = [batch[1] for batch in batches]
            embeddings = network(images.get(VISIBLE), images.get(INFRARED)).split([len(found) for found in labels])
            losses = [
                cluster_loss(x, y, term.memory.rows, temperature)
                for term, x, y in zip(step, embeddings, labels, strict=True)
            ]
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            for memory in dict.fromkeys(term.memory for term in step):  # a shared memory sees both modalities at once
                used = [i for i, term in enumerate(step) if term.memory is memory]
                joined = torch.cat([embeddings[i] for i in used]), torch.cat([labels[i] for i in used])
                memory.update(*joined, generator)
            for term, loss in zip(step, losses, strict=True):
                sums[term.name] += loss.item() / len(learning_rates)
    network.eval()
    return sums


def _draw(
    gallery: Gallery, term: _Term, views: tuple[View, ...], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every view of one batch, and the labels of each."""
    sample_idx = term.sampler.batch()
    images = gallery.images[sample_idx]
    return torch.cat([view(images, generator) for view in views]), term.labels[sample_idx].repeat(len(views))


@contextmanager
def _timed(record: Record, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    record["seconds"][phase] = time.perf_counter() - start
