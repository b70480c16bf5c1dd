"""Trains the small network on visible images with identities, to stand in for ImageNet weights.

    python -m experiments.pretrain TREE -o weights.safetensors

The published method starts from weights that know images, not infrared and not the people of the gallery. A small
network for a CPU has none, so it gets them from labelled *visible* images of other people than those of the experiment;
both stems start as copies of the one that was trained. With `--infrared` it sees both modalities of those people, half
of every batch each, and knows more than published: something of what is the same in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dmic.checkpoint import atomic_write
from dmic.config import load_config
from dmic.constants import INFRARED, NOISE, VISIBLE
from dmic.data import CameraCrossingSampler
from dmic.run import build_batches, build_dataset, build_network, save_weights
from dmic.seeds import derive_seed, generator

SCALE = 16.0  # of the cosines that the classifier sees
PEAK_RATE, LAST_RATE = 3e-3, 1e-5  # of Adam, falling along a cosine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="TREE", help="a tree in the layout of SYSU-MM01")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.safetensors")
    parser.add_argument("--recipe", default="pedestrians")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--people", type=int, default=16, help="in a batch, four images each")
    parser.add_argument("--infrared", action="store_true", help="train on infrared images too")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights to start from; default: random ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = [f"data.root={options.data}", f"train.seed={options.seed}"]
    settings += [f"network.weights={options.weights}"] if options.weights else []
    config = load_config(options.recipe, settings)
    dataset = build_dataset(config)
    network = build_network(config, 3).train()
    modalities = (VISIBLE, INFRARED) if options.infrared else (VISIBLE,)
    identities, labels = dataset.train_person_ids.unique(return_inverse=True)
    samplers = {
        modality: CameraCrossingSampler(
            torch.where(dataset.train.modality_ids == modality, labels, NOISE),
            dataset.train.camera_ids,
            num_classes=options.people,
            num_samples=4 // len(modalities),
            seed=derive_seed(options.seed, "pretrain"),
        )
        for modality in modalities
    }
    views = build_batches(config, 3).views
    classifier = nn.Linear(network.neck.num_features, len(identities), bias=False)
    weights = [*(p for p in network.parameters() if p.requires_grad), *classifier.parameters()]
    optimizer = torch.optim.Adam(weights, weight_decay=config.train.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps, eta_min=LAST_RATE)
    optimizer.param_groups[0]["lr"] = PEAK_RATE
    schedule.base_lrs = [PEAK_RATE]
    right = 0.0
    for step in range(options.steps):
        draws = generator(options.seed, "pretrain views", step)
        batch, wanted = [None, None], []
        for modality, sampler in samplers.items():
            sample_idx = sampler.batch(step)
            pixels = dataset.train.images[sample_idx]
            first, last = views[modality][0], views[modality][-1]
            shown = torch.rand(len(pixels), 1, 1, 1, generator=draws) < 0.5
            batch[modality] = torch.where(shown, first(pixels, draws), last(pixels, draws))
            wanted.append(labels[sample_idx])
        target = torch.cat(wanted)
        logits = SCALE * network(*batch) @ F.normalize(classifier.weight).T
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right += float((logits.argmax(1) == target).double().mean()) / 100
        if step % 100 == 99:
            print(
                f"step {step + 1}: loss {loss.item():.2f}, {100 * right:.0f} % right over the last 100 steps",
                flush=True,
            )
            right = 0.0
    if not options.infrared:
        network.stems[INFRARED].load_state_dict(network.stems[VISIBLE].state_dict())
    with atomic_write(options.out) as file:
        file.write(save_weights({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
