"""`dmic train` with the true identities for pseudo labels: what the network could learn if no label was wrong.

    python -m experiments.oracle --mixed 1 train pedestrians --data ped

The package keeps identities from its training loop, so they are put there from outside. Every identity is a cluster and
there are no outliers; memories, batches, losses and learning rates stay as they are. In the joint clustering a share of
the identities can be two clusters, one of each modality: pure, but not what the joint memory is for.
"""

from __future__ import annotations

import argparse
import sys

import torch

import dmic.run
import dmic.train
from dmic.cli import main
from dmic.config import Config
from dmic.constants import NOISE
from dmic.data import Dataset, Gallery
from dmic.train import MODALITIES, EpochLabels, Stage


def true_labels(person_ids: torch.Tensor, gallery: Gallery, joint: bool, mixed: float = 1.0) -> EpochLabels:
    """Identities as clusters, numbered from 0: those of each modality and, if `joint`, of both.

    In the joint clustering the first `mixed` of the identities have one cluster, the others one for each modality.
    """
    identities, labels = person_ids.unique(return_inverse=True)[1], {}
    for name, modality in MODALITIES.items():
        own = gallery.modality_ids == modality
        labels[name] = torch.full_like(identities, NOISE)
        labels[name][own] = identities[own].unique(return_inverse=True)[1]
    apart = identities >= mixed * (int(identities.max()) + 1)
    shared = (2 * identities + apart * gallery.modality_ids).unique(return_inverse=True)[1]
    return EpochLabels(**labels, shared=shared if joint else torch.full_like(shared, NOISE))


def use_identities(mixed: float = 1.0) -> None:
    """Let every training of this process be given the identities of its data set."""
    build_dataset, known = dmic.run.build_dataset, {}

    def remember(config: Config) -> Dataset:
        dataset = build_dataset(config)
        known["person_ids"] = dataset.train_person_ids
        return dataset

    def refresh_labels(features: torch.Tensor, gallery: Gallery, stage: Stage, *_) -> EpochLabels:
        return true_labels(known["person_ids"], gallery, stage.objective.joint != "none", mixed)

    dmic.run.build_dataset, dmic.train.refresh_labels = remember, refresh_labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mixed", type=float, default=1.0)
    own, command = parser.parse_known_args()
    use_identities(own.mixed)
    sys.exit(main(command))
