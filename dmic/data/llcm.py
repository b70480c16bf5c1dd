"""LLCM (Zhang and Wang, CVPR 2023) in its original tree, and both directions."""

from __future__ import annotations

import os
import re
from collections import defaultdict
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
    one_modality_notes,
    person_problems,
    read_id_list,
    read_image_list,
)

NAME = "LLCM"
LAYOUT = "idx/{train_vis,train_nir,test_id}.txt, test_vis/cam1..9/<4-digit id>/<image> and test_nir/cam{1,2,4..9}/..."
WORDS = {VISIBLE: "vis", INFRARED: "nir"}
CAMERAS = {VISIBLE: (1, 2, 3, 4, 5, 6, 7, 8, 9), INFRARED: (1, 2, 4, 5, 6, 7, 8, 9)}
NUM_TRIALS = 10
CAMERA_IN_NAME = re.compile(r"_c0*(\d+)_")  # 0001_c01_s185535_f7010_nir.jpg is of camera 1
MAX_CAMERA = 9


def read_llcm(
    root: str | os.PathLike[str],
    *,
    height: int,
    width: int,
    cache_bytes: int = 0,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """The training images of the two lists, the test ids of test_id.txt, and both directions of search.

    Queries are all test images of one modality; the gallery is one random image of every id and camera of the other,
    ten trials seeded 0 to 9 (`random_gallery`), and a query does not see its own id from its own camera. A training
    image's camera is in its name (`..._c01_...`), its person id the label of the list. Camera ids are the data set's
    cameras minus 1; the same camera can see both modalities.

    The arguments and errors are those of `build_dataset`.
    """
    return build_dataset(
        NAME,
        scan_llcm(root),
        llcm_protocols,
        height=height,
        width=width,
        cache_bytes=cache_bytes,
        num_workers=num_workers,
        skip_unreadable=skip_unreadable,
    )


def scan_llcm(root: str | os.PathLike[str]) -> Scan:
    """What the tree lists; training rows in the order of the lists, test rows by id, modality, camera and file name."""
    root, problems, missing = Path(root), [], set()
    test_ids = read_id_list(root / "idx" / "test_id.txt", LAYOUT, problems)
    tested = {f"{person:04d}" for person in test_ids}
    train, seen = [], defaultdict(set)
    for modality, word in WORDS.items():
        path = root / "idx" / f"train_{word}.txt"
        for place, image, person in read_image_list(path, root, LAYOUT, problems, missing):
            camera = _camera_number(image)
            folder = os.path.basename(os.path.dirname(image))
            if camera is None:
                message = (
                    f"the name of {image} must hold its camera, 1 to {MAX_CAMERA}, as in 0001_c01_s1_f1_{word}.jpg"
                )
                problems.append(Problem(ERROR, place, message))
            elif folder in tested:
                problems.append(Problem(ERROR, place, f"id {int(folder)} trains and is also in idx/test_id.txt"))
            else:
                train.append((image, person, camera - 1, modality))
                seen[person].add(modality)
    problems += one_modality_notes(str(root / "idx" / "train_*.txt"), seen)
    cameras = [
        (str(root / f"test_{word}" / f"cam{number}"), number - 1, modality)
        for modality, word in WORDS.items()
        for number in CAMERAS[modality]
    ]
    test = camera_folders_rows(cameras, test_ids, problems)
    problems += camera_folder_problems(cameras, test, LAYOUT)
    problems += person_problems(root / "idx" / "test_id.txt", test_ids, test)
    return Scan(str(root), Samples.from_rows(train), Samples.from_rows(test), tuple(problems))


def _camera_number(image: str) -> int | None:
    found = CAMERA_IN_NAME.search(os.path.basename(image))
    return int(found[1]) if found and 1 <= int(found[1]) <= MAX_CAMERA else None


def llcm_protocols(test: Samples) -> tuple[Protocol, ...]:
    """Both directions, over test rows that are sorted by file name within an id and camera."""
    directions = (("visible to infrared", VISIBLE, INFRARED), ("infrared to visible", INFRARED, VISIBLE))
    return tuple(
        Protocol(
            name=f"{NAME}, {direction}",
            trials=tuple(Trial(query_idx, _draw(test, gallery_modality, seed=trial)) for trial in range(NUM_TRIALS)),
            same_camera_ignored=True,
            unique_ids=True,
        )
        for direction, query_modality, gallery_modality in directions
        for query_idx in [(test.modality_ids == query_modality).nonzero().flatten()]
    )


def _draw(test: Samples, modality: int, *, seed: int) -> torch.Tensor:
    cameras = [number - 1 for number in CAMERAS[modality]]
    return random_gallery(test, modality=modality, camera_ids=cameras, num_shots=1, seed=seed)


def known_counts(scan: Scan) -> list[tuple[str, int, int]]:
    """What, how many there are, and how many the published data set has."""
    ids = len(scan.train.person_ids.unique()) + len(scan.test.person_ids.unique())
    return [("ids", ids, 1_064), ("images", len(scan.train) + len(scan.test), 46_767)]
