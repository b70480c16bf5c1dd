"""Tiny data sets in the official layouts, with random pixels; the same arguments give the same bytes."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SYSU_CAMERAS = {1: "visible", 2: "visible", 3: "infrared", 4: "visible", 5: "visible", 6: "infrared"}
LLCM_CAMERAS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}


def write_image(path: Path, person: int | None = None, *, width: int = 9, height: int = 20) -> Path:
    """Random pixels that depend on the file's place in its tree alone; of a person, their two colours under noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list("/".join(path.parts[-3:]).encode()))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if person is not None:
        colors = np.random.default_rng(person).integers(0, 224, (2, 1, 3), dtype=np.uint8)
        pixels = pixels // 8 + colors.repeat((height + 1) // 2, axis=0)[:height]
    Image.fromarray(pixels).save(path)
    return path


def truncate(path: Path) -> None:
    """What an interrupted copy leaves: a header and some pixels."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def count_of(person: int, camera: int) -> int:
    """Images of a person in a camera: 0 to 12, so that some are absent and some have more than ten."""
    return (5 * person + 7 * camera) % 13


def sysu_mm01(root: Path, *, train=(3, 11), val=(7,), test=(2, 30, 100), count=count_of) -> Path:
    """Listed ids in unsorted order, as in the original; files are numbered from 0001."""
    (root / "exp").mkdir(parents=True)
    for split, ids in (("train", train), ("val", val), ("test", test)):
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, reversed(ids))))
    for person in (*train, *val, *test):
        for camera in SYSU_CAMERAS:
            for number in range(1, count(person, camera) + 1):
                write_image(root / f"cam{camera}" / f"{person:04d}" / f"{number:04d}.jpg", person)
    return root


def regdb(root: Path, *, persons: int = 6, images: int = 2, trials: Iterable[int] = range(1, 11)) -> Path:
    """Half of the persons train in each trial; labels start from 0 in every list."""
    (root / "idx").mkdir(parents=True)
    for person in range(1, persons + 1):
        for folder, letter in (("Visible", "v"), ("Thermal", "t")):
            for number in range(images):
                write_image(root / folder / str(person) / f"male_front_{letter}_{number:05d}_{person}.bmp", person)
    for trial in trials:
        order = random.Random(trial).sample(range(1, persons + 1), persons)
        for split, own in (("train", order[: persons // 2]), ("test", order[persons // 2 :])):
            for folder, letter, word in (("Visible", "v", "visible"), ("Thermal", "t", "thermal")):
                lines = [
                    f"{folder}/{person}/male_front_{letter}_{number:05d}_{person}.bmp {label}"
                    for label, person in enumerate(sorted(own))
                    for number in range(images)
                ]
                (root / "idx" / f"{split}_{word}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root


def llcm(root: Path, *, train=(1, 4, 5), test=(2, 3, 60)) -> Path:
    """Training images in vis/ and nir/ with two per person and camera, test images in camera folders."""
    (root / "idx").mkdir(parents=True)
    for word, cameras in LLCM_CAMERAS.items():
        lines = []
        for label, person in enumerate(train):
            for camera in cameras[person % 2 :: 2]:
                for number in range(2):
                    name = f"{word}/{person:04d}/{person:04d}_c{camera:02d}_s{number}_f1_{word}.jpg"
                    write_image(root / name, person)
                    lines.append(f"{name} {label}")
        (root / "idx" / f"train_{word}.txt").write_text("\n".join(lines) + "\n")
        for person in test:
            for camera in cameras:
                for number in range(count_of(person, camera) // 3):
                    name = f"{person:04d}_c{camera:02d}_s{number}_f9_{word}.jpg"
                    write_image(root / f"test_{word}" / f"cam{camera}" / f"{person:04d}" / name, person)
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, reversed(test))))
    return root


def manifest_rows(folder: Path) -> list[dict[str, str]]:
    """Eight rows with images of two training and two test persons, two cameras a modality."""
    rows = []
    for split, person in (("train", "ann"), ("train", "bob"), ("test", "cy"), ("test", "dee")):
        for modality, camera in (("visible", "10"), ("infrared", "9")):
            path = Path("images") / f"{person}_{modality}.png"
            write_image(folder / path)
            row = {"path": str(path), "modality": modality, "camera": camera, "identity": person, "split": split}
            rows.append(row)
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
