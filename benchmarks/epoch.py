"""The three clusterings of an epoch, of each modality alone and of both: with one search, and with one each.

    python -m benchmarks.epoch --difficulties easy hard

Sizes are those of SYSU-MM01, settings those of the first epoch of the recipe's second stage. The two ways
take turns. Wall time, and processor time, which other work on the machine changes less. The exit status is 1 if
labels differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dmic.config import load_config
from dmic.constants import INFRARED, NOISE, VISIBLE
from dmic.data import Gallery
from dmic.run import build_stages
from dmic.train import EpochLabels, Stage, cluster, refresh_labels

from . import measuring
from .sizes import DIFFICULTY, DIM, generate_gallery

RESULTS = Path(__file__).parent / "results" / "epoch.json"
NUM_VISIBLE, NUM_INFRARED = 22_258, 11_909
NAMES = ("visible", "infrared", "shared")


def generate(num_visible: int, num_infrared: int, dim: int, difficulty: str) -> tuple[torch.Tensor, Gallery]:
    """Features, and a gallery whose images nobody looks at."""
    made = generate_gallery((num_visible + num_infrared) * 11 // 10 + 100, dim, difficulty)
    modality_ids = torch.from_numpy(made.modality_ids)
    parts = ((VISIBLE, num_visible), (INFRARED, num_infrared))
    chosen = torch.cat([(modality_ids == modality).nonzero().flatten()[:n] for modality, n in parts]).sort().values
    images = torch.zeros(len(chosen), 1, 1, 1, dtype=torch.uint8)
    gallery = Gallery(images, torch.from_numpy(made.camera_ids)[chosen], modality_ids[chosen])
    return torch.from_numpy(made.features)[chosen], gallery


def one_search_each(features: torch.Tensor, gallery: Gallery, stage: Stage) -> EpochLabels:
    """What `refresh_labels` finds, one clustering after the other."""
    labels = [torch.full((len(gallery),), NOISE) for _ in NAMES]
    for found, modality in zip(labels, (VISIBLE, INFRARED), strict=False):
        own = (gallery.modality_ids == modality).nonzero().flatten()
        found[own] = cluster(features, gallery, own, **stage.per_modality(0))
    labels[2] = cluster(features, gallery, torch.arange(len(gallery)), **stage.joint(0))
    return EpochLabels(*labels)


def measure(features: torch.Tensor, gallery: Gallery, stage: Stage, repeats: int) -> dict:
    ways = {
        "one search": lambda: refresh_labels(features, gallery, stage, 0),
        "one search each": lambda: one_search_each(features, gallery, stage),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in ways}
    found = {}
    for _ in range(repeats):
        for name, run in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            found[name] = run()
            seconds[name]["wall"].append(time.perf_counter() - wall)
            seconds[name]["processor"].append(time.process_time() - processor)
    one, each = found.values()
    measured = {name: {kind: measuring.spread(s) for kind, s in kinds.items()} for name, kinds in seconds.items()}
    ratio = {
        kind: measured["one search each"][kind]["median"] / measured["one search"][kind]["median"]
        for kind in ("wall", "processor")
    }
    clusters = {name: int(getattr(one, name).max()) + 1 for name in NAMES}
    equal = all(torch.equal(getattr(one, name), getattr(each, name)) for name in NAMES)
    return {"seconds": measured, "ratio": ratio, "clusters": clusters, "equal": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-visible", type=int, default=NUM_VISIBLE)
    parser.add_argument("--num-infrared", type=int, default=NUM_INFRARED)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--difficulties", nargs="+", choices=DIFFICULTY, default=["easy"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    stage = build_stages(load_config("sysu_mm01"))[1]
    runs = []
    for difficulty in options.difficulties:
        case = {"num_visible": options.num_visible, "num_infrared": options.num_infrared, "dim": options.dim}
        features, gallery = generate(*case.values(), difficulty)
        settings = {"per_modality": stage.per_modality(0), "joint": stage.joint(0)}
        runs.append(
            {"difficulty": difficulty, **case, **settings, **measure(features, gallery, stage, options.repeats)}
        )
    table = Table("features", "one search, s", "one each, s", "ratio", "of processor time", "clusters", "labels")
    for run in runs:
        one, each = (run["seconds"][name]["wall"]["median"] for name in ("one search", "one search each"))
        ratio, verdict = run["ratio"], "equal" if run["equal"] else "WRONG"
        numbers = (f"{one:.2f}", f"{each:.2f}", f"{ratio['wall']:.2f}", f"{ratio['processor']:.2f}")
        table.add_row(run["difficulty"], *numbers, ", ".join(map(str, run["clusters"].values())), verdict)
    Console(width=120).print(table)
    about = {"command": f"python -m benchmarks.epoch {' '.join(sys.argv[1:])}".rstrip(), "commit": measuring.commit()}
    about |= {"machine": measuring.machine(), "versions": measuring.versions()}
    options.results.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
    if not all(run["equal"] for run in runs):
        raise SystemExit("labels differ")


if __name__ == "__main__":
    main()
