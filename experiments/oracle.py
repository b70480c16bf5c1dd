"""`dmic train` with the true identities for pseudo labels: what the network could learn if no label was wrong.

    python -m experiments.oracle train pedestrians --data ped

The package keeps identities from its training loop, so they are put there from outside. Every identity is a cluster and
there are no outliers; memories, batches, losses and learning rates stay as they are.
"""

from __future__ import annotations

import sys

import torch

import dmic.run
import dmic.train
from dmic.cli import main
from dmic.config import Config
from dmic.constants import NOISE
from dmic.data import Dataset, Gallery
from dmic.train import MODALITIES, EpochLabels, Stage


def true_labels(person_ids: torch.Tensor, gallery: Gallery, joint: bool) -> EpochLabels:
    """Identities as clusters, numbered from 0: those of each modality and, if `joint`, of both."""
    kinds = {name: gallery.modality_ids == modality for name, modality in MODALITIES.items()}
    kinds["shared"] = torch.full_like(gallery.modality_ids, joint, dtype=torch.bool)
    labels = {}
    for name, own in kinds.items():
        labels[name] = torch.full_like(person_ids, NOISE)
        labels[name][own] = person_ids[own].unique(return_inverse=True)[1]
    return EpochLabels(**labels)


def use_identities() -> None:
    """Let every training of this process be given the identities of its data set."""
    build_dataset, known = dmic.run.build_dataset, {}

    def remember(config: Config) -> Dataset:
        dataset = build_dataset(config)
        known["person_ids"] = dataset.train_person_ids
        return dataset

    def refresh_labels(features: torch.Tensor, gallery: Gallery, stage: Stage, *_) -> EpochLabels:
        return true_labels(known["person_ids"], gallery, stage.objective.joint != "none")

    dmic.run.build_dataset, dmic.train.refresh_labels = remember, refresh_labels


if __name__ == "__main__":
    use_identities()
    sys.exit(main())
