"""A visible-infrared gallery from real pixels: six registered sensor bands of one Landsat-7 scene.

An identity is a place (a tile of the scene), a camera is a sensor band, a modality is visible or infrared, and a sample
is a crop of the tile with a random shift, gain and noise. Places are split into training and unseen test places; a crop
never leaves its tile, so no pixel of a test place is seen in training.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from .cross_modality import cross_modality_protocols
from .gallery import Dataset, Gallery, LabeledGallery

TILE = 24  # pixels; 14 x 14 tiles in the scene
CROP = 22  # pixels: 3 x 3 possible shifts
MIN_CONTRAST = 2.0  # grey levels; below it a tile is water or another flat surface in that band
GAIN_SPREAD = 0.15  # gains are uniform in 1 -+ this
NOISE_STD = 1.0  # grey levels


def landsat_bands() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The scene: bands uint8 [6, 352, 349], modality of each band int64 [6], and the bands' names."""
    with (files("dmic.data") / "landsat7_etm.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["bands"], arrays["modality"], arrays["names"].tolist()


def tile_corner(place: int, num_columns: int) -> tuple[int, int]:
    """Top and left pixel of the tile that a place is; places are numbered row by row."""
    return place // num_columns * TILE, place % num_columns * TILE


def textured_places(bands: np.ndarray) -> np.ndarray:
    """Places that can be told apart: tiles whose pixels vary by MIN_CONTRAST or more in every band. int64, ascending.

    The sea has no texture in the infrared and is left out; so is one flat field.
    """
    num_bands, height, width = bands.shape
    rows, columns = height // TILE, width // TILE
    tiles = bands[:, : rows * TILE, : columns * TILE].reshape(num_bands, rows, TILE, columns, TILE)
    return np.flatnonzero(tiles.std(axis=(2, 4)).min(axis=0) >= MIN_CONTRAST)


def landsat_galleries(
    *, num_crops: int = 6, train_share: float = 2 / 3, validation: bool = False, seed: int = 0
) -> tuple[LabeledGallery, LabeledGallery]:
    """Training places and unseen test places of the embedded scene.

    Samples are stored in random order, so that a position says nothing about an identity.

    Args:
        num_crops: crops of a place per sensor band.
        train_share: share of the places that are for training, in (0, 1).
        validation: leave the test places out, and split the training places once more by the same share.
        seed: of the split, the crops, their gain and noise, and the order.

    Returns:
        Two galleries of crops uint8 [N, 1, 22, 22]; person_ids are tile numbers in the 14 x 14 grid.

    Raises:
        ValueError: num_crops below 1, or a share that leaves no place on one side.
    """
    if num_crops < 1:
        raise ValueError(f"landsat_galleries: num_crops must be at least 1, got {num_crops}")
    bands, modality, _ = landsat_bands()
    rng = np.random.default_rng(seed)
    places = rng.permutation(textured_places(bands))
    for _ in range(1 + validation):
        num_train = round(len(places) * train_share)
        if not 0 < num_train < len(places):
            raise ValueError(f"landsat_galleries: train_share must leave places on both sides, got {train_share}")
        places, test = places[:num_train], places[num_train:]
    return _crop_places(bands, modality, places, num_crops, rng), _crop_places(bands, modality, test, num_crops, rng)


def landsat_dataset(
    *, num_crops: int = 6, train_share: float = 2 / 3, validation: bool = False, seed: int = 0
) -> Dataset:
    """`landsat_galleries` as a data set that is scored across modalities, in both directions."""
    train, test = landsat_galleries(num_crops=num_crops, train_share=train_share, validation=validation, seed=seed)
    name = "Landsat places, validation split" if validation else "Landsat places"
    return Dataset(name, train.unlabeled, train.person_ids, test, cross_modality_protocols(test))


def _crop_places(
    bands: np.ndarray, modality: np.ndarray, places: np.ndarray, num_crops: int, rng: np.random.Generator
) -> LabeledGallery:
    num_columns = bands.shape[2] // TILE
    images, camera_ids, person_ids = [], [], []
    for place in places.tolist():
        top, left = tile_corner(place, num_columns)
        for camera, band in enumerate(bands):
            for _ in range(num_crops):
                down, right = rng.integers(0, TILE - CROP + 1, 2).tolist()
                crop = band[top + down : top + down + CROP, left + right : left + right + CROP]
                crop = crop * rng.uniform(1 - GAIN_SPREAD, 1 + GAIN_SPREAD)
                images.append((crop + rng.normal(0, NOISE_STD, crop.shape)).round().clip(0, 255).astype(np.uint8))
                camera_ids.append(camera)
                person_ids.append(place)
    order = rng.permutation(len(images))
    cameras = np.array(camera_ids)[order]
    gallery = Gallery(
        torch.from_numpy(np.stack(images)[order, None]),
        torch.from_numpy(cameras),
        torch.from_numpy(modality[cameras]),
    )
    return LabeledGallery(gallery, torch.from_numpy(np.array(person_ids)[order]))
