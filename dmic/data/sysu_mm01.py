"""SYSU-MM01 (Wu et al., ICCV 2017) in its original tree, and its four protocols."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..constants import INFRARED, VISIBLE
from .gallery import Dataset
from .protocol import Protocol, Trial
from .samples import Samples, random_gallery
from .tree import (
    ERROR,
    Problem,
    Scan,
    build_dataset,
    camera_folder_problems,
    camera_folders_rows,
    person_problems,
    read_id_list,
)

NAME = "SYSU-MM01"
LAYOUT = "exp/{train,val,test}_id.txt and cam1..cam6/<4-digit id>/<image>"
CAMERA_MODALITY = {1: VISIBLE, 2: VISIBLE, 3: INFRARED, 4: VISIBLE, 5: VISIBLE, 6: INFRARED}
SEARCHES = {"all": (1, 2, 4, 5), "indoor": (1, 2)}  # cameras of the gallery
SHOTS = {"single": 1, "multi": 10}  # images of a person and camera in the gallery
NUM_TRIALS = 10
SAME_ROOM = ((3, 2),)  # a query of camera 3 does not see what camera 2 took


def read_sysu_mm01(
    root: str | os.PathLike[str],
    *,
    height: int,
    width: int,
    cache_bytes: int = 0,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """The training ids of train_id.txt and val_id.txt, the test ids of test_id.txt, and four protocols.

    Queries are all infrared test images. The gallery of all search is drawn from cameras 1, 2, 4 and 5, of indoor
    search from 1 and 2; single shot is one image of every id and camera, multi shot ten, or all if there are fewer.
    Ten trials 0 to 9, each seeded with its number (`random_gallery`). A query of camera 3 does not see camera 2.
    person_ids are the data set's ids, camera ids its cameras minus 1.

    The arguments and errors are those of `build_dataset`.
    """
    return build_dataset(
        NAME,
        scan_sysu_mm01(root),
        sysu_mm01_protocols,
        height=height,
        width=width,
        cache_bytes=cache_bytes,
        num_workers=num_workers,
        skip_unreadable=skip_unreadable,
    )


def scan_sysu_mm01(root: str | os.PathLike[str]) -> Scan:
    """What the tree lists; rows by id, camera and file name."""
    root, problems = Path(root), []
    lists = {split: root / "exp" / f"{split}_id.txt" for split in ("train", "val", "test")}
    ids = {split: read_id_list(path, LAYOUT, problems) for split, path in lists.items()}
    training = {*ids["train"], *ids["val"]}
    for split in ("train", "val"):
        both = sorted({*ids["test"]} & {*ids[split]})
        problems += [Problem(ERROR, str(lists["test"]), f"id {person} is also in {lists[split]}") for person in both]
    cameras = [(str(root / f"cam{number}"), number - 1, modality) for number, modality in CAMERA_MODALITY.items()]
    train = camera_folders_rows(cameras, sorted(training), problems)
    test = camera_folders_rows(cameras, ids["test"], problems)
    problems += camera_folder_problems(cameras, [*train, *test], LAYOUT)
    for split, rows in (("train", train), ("val", train), ("test", test)):
        own = {*ids[split]}
        problems += person_problems(lists[split], ids[split], [row for row in rows if row[1] in own])
    return Scan(str(root), Samples.from_rows(train), Samples.from_rows(test), tuple(problems))


def sysu_mm01_protocols(test: Samples) -> tuple[Protocol, ...]:
    """All and indoor search, single and multi shot, over test rows that are sorted by file name."""
    query_idx = (test.modality_ids == INFRARED).nonzero().flatten()
    return tuple(
        Protocol(
            name=f"{NAME}, {search} search, {shot} shot",
            trials=tuple(Trial(query_idx, _draw(test, numbers, num_shots, seed=trial)) for trial in range(NUM_TRIALS)),
            ignored_cameras=tuple((query - 1, gallery - 1) for query, gallery in SAME_ROOM),
            unique_ids=True,
        )
        for search, numbers in SEARCHES.items()
        for shot, num_shots in SHOTS.items()
    )


def _draw(test: Samples, numbers: tuple[int, ...], num_shots: int, *, seed: int) -> torch.Tensor:
    cameras = [number - 1 for number in numbers]
    return random_gallery(test, modality=VISIBLE, camera_ids=cameras, num_shots=num_shots, seed=seed)


def known_counts(scan: Scan) -> list[tuple[str, int, int]]:
    """What, how many there are, and how many the published data set has."""
    train, test = scan.train, scan.test
    visible_places = {
        (person, camera)
        for person, camera, modality in zip(
            test.person_ids.tolist(), test.camera_ids.tolist(), test.modality_ids.tolist(), strict=True
        )
        if modality == VISIBLE
    }
    return [
        ("training ids", len(train.person_ids.unique()), 395),
        ("visible training images", int((train.modality_ids == VISIBLE).sum()), 22_258),
        ("infrared training images", int((train.modality_ids == INFRARED).sum()), 11_909),
        ("test ids", len(test.person_ids.unique()), 96),
        ("queries", int((test.modality_ids == INFRARED).sum()), 3_803),
        ("gallery images of all search, single shot", len(visible_places), 301),
    ]
