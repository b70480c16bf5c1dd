"""RegDB (Nguyen et al., Sensors 2017) in its original tree: one of its ten trials, and both directions."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import partial
from pathlib import Path

from ..constants import INFRARED, VISIBLE
from .gallery import Dataset
from .samples import Samples
from .tree import ERROR, Problem, Scan, both_directions, build_dataset, one_modality_notes, read_image_list

NAME = "RegDB"
LAYOUT = "idx/{train,test}_{visible,thermal}_{1..10}.txt"
NUM_TRIALS = 10
LISTS = {VISIBLE: "visible", INFRARED: "thermal"}
CAMERA = 0  # the data set does not tell its cameras apart


def read_regdb(
    root: str | os.PathLike[str],
    *,
    trial: int,
    height: int,
    width: int,
    cache_bytes: int = 0,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """The images that the lists of one trial name, and both directions of search.

    A published result is the mean over networks trained on each of the trials 1 to 10. The gallery is the whole test
    set of the other modality, in the order of its list. person_ids are the labels of the lists, which start from 0 in
    training and again in test; every image is of camera 0.

    The other arguments and errors are those of `build_dataset`.

    Raises:
        ValueError: trial is not in 1..10.
    """
    check_trial(trial)
    return build_dataset(
        f"{NAME}, trial {trial}",
        scan_regdb(root, trial),
        partial(both_directions, f"{NAME}, trial {trial}"),
        height=height,
        width=width,
        cache_bytes=cache_bytes,
        num_workers=num_workers,
        skip_unreadable=skip_unreadable,
    )


def check_trial(trial: int) -> None:
    if trial not in range(1, NUM_TRIALS + 1):
        raise ValueError(f"read_regdb: trial must be in 1..{NUM_TRIALS}, got {trial}")


def scan_regdb(root: str | os.PathLike[str], trial: int, missing: set[str] | None = None) -> Scan:
    """What the lists of a trial name, visible rows first; images in `missing` are known and not reported again."""
    root, problems = Path(root), []
    missing = set() if missing is None else missing
    rows = {"train": [], "test": []}
    persons: dict[str, dict[str, str]] = {"train": {}, "test": {}}  # and the first place that lists one
    for split, found in rows.items():
        seen = defaultdict(set)
        for modality, word in LISTS.items():
            path = root / "idx" / f"{split}_{word}_{trial}.txt"
            for place, image, person in read_image_list(path, root, LAYOUT, problems, missing):
                found.append((image, person, CAMERA, modality))
                seen[person].add(modality)
                persons[split].setdefault(_person(image), place)
        problems += one_modality_notes(str(root / "idx" / f"{split}_*_{trial}.txt"), seen)
    for person in sorted(persons["train"].keys() & persons["test"].keys()):
        place = persons["train"][person]
        problems.append(Problem(ERROR, persons["test"][person], f"person {person} is also for training, in {place}"))
    train, test = (Samples.from_rows(found) for found in rows.values())
    return Scan(str(root), train, test, tuple(problems))


def _person(image: str) -> str:
    """The number of the folder, the same in both modalities and all lists, which labels are not; or else the file."""
    folder = os.path.basename(os.path.dirname(image))
    return folder if folder.isdigit() else image


def known_counts(scan: Scan) -> list[tuple[str, int, int]]:
    """What, how many a trial has, and how many the published data set has."""
    counts = []
    for split, samples in (("training", scan.train), ("test", scan.test)):
        counts.append((f"{split} ids", len(samples.person_ids.unique()), 206))
        for modality, word in LISTS.items():
            counts.append((f"{word} {split} images", int((samples.modality_ids == modality).sum()), 2_060))
    return counts
