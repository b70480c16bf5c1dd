"""Synthetic pedestrians: people who do not exist, as six cameras would see them, in the layout of SYSU-MM01.

Every surface has a visible colour and a near-infrared reflectance that hardly depends on it, as with real fabrics and
dyes: an infrared image is painted from reflectances under the camera's own lamp and is no function of the visible one.
Shape, cut, accessories, woven patterns and relief survive the change of modality; colours and printed patterns do not.

An image depends on (seed, identity, camera, image), its size and the difficulty alone, so the number of workers and the
order of work change nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont

from .._version import __version__
from .pedestrian_draws import CAMERAS, Difficulty, Pedestrian, draw_identity, draw_shot
from .pedestrian_painting import Canvas, expose, folds, paint_body, paint_occluder, paint_scene

NOTICE = "SYNTHETIC.txt"
MIN_HEIGHT, MIN_WIDTH = 32, 16  # pixels
MAX_NUMBER = 9999  # names of folders and files have four digits
TEST_SHARE = 0.2  # of the identities, unless the caller says how many
VAL_SHARE = 0.25  # of the identities that are not for testing, as in SYSU-MM01
COUNT_SPREAD = 0.25  # numbers of images are uniform in images_per_camera * (1 -+ this)
WALKS = 2  # past each camera; images are of one and the other by turns
DEFAULT = Difficulty()

_SCENE, _IDENTITY, _WALK, _IMAGE, _COUNT, _SPLIT = range(6)  # streams of random numbers under one seed
_SCENES = tuple(dict.fromkeys(camera.scene for camera in CAMERAS.values()))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=16)
def _scene(seed: int, kind: str, infrared: bool, height: int, width: int) -> np.ndarray:
    return paint_scene(_generator(seed, _SCENE, _SCENES.index(kind)), kind, infrared, height, width)


@lru_cache(maxsize=256)
def _identity(seed: int, identity: int, diversity: float) -> Pedestrian:
    return draw_identity(_generator(seed, _IDENTITY, identity), diversity=diversity)


def draw_pedestrian(
    identity: int,
    camera: int,
    image: int,
    *,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT,
) -> np.ndarray:
    """One image of a person who does not exist: a pure function of its arguments.

    Args:
        identity, image: any numbers from 0; every identity has endless images in every camera.
        camera: 1 to 6; 3 and 6 are infrared.
        height, width: pixels.
        seed: a world with its own people and scenes.
        difficulty: spread within and between identities.

    Returns:
        uint8 [height, width, 3], RGB; the channels of an infrared image are equal.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value in (("identity", identity), ("image", image), ("seed", seed)):
        if value < 0:
            raise ValueError(f"draw_pedestrian: {name} must not be negative, got {value}")
    if camera not in CAMERAS:
        raise ValueError(f"draw_pedestrian: camera must be in [1, {len(CAMERAS)}], got {camera}")
    _check_size("draw_pedestrian", height, width)
    view = CAMERAS[camera]
    rng = _generator(seed, _IMAGE, identity, camera, image)
    shot = draw_shot(_generator(seed, _WALK, identity, camera, image % WALKS), rng, view, difficulty)
    scene = _scene(seed, view.scene, view.infrared, height, width)
    behind = _part(scene, height, width, shot.scene_y, shot.scene_x)
    relief = _part(folds(height, width), height, width, rng.random(), rng.random())
    canvas = Canvas(behind.copy(), view, relief)
    paint_body(canvas, _identity(seed, identity, difficulty.diversity), shot)
    if rng.random() < difficulty.occlusion:
        paint_occluder(canvas, shot, rng)
    return expose(canvas, shot, rng)


def _part(whole: np.ndarray, height: int, width: int, down: float, right: float) -> np.ndarray:
    """The part of an image of that size at `down` and `right` of what is left over, both in [0, 1]."""
    y, x = round(down * (whole.shape[0] - height)), round(right * (whole.shape[1] - width))
    return whole[y : y + height, x : x + width]


def write_pedestrians(
    root: str | os.PathLike[str],
    *,
    num_identities: int,
    images_per_camera: int,
    num_test_identities: int | None = None,
    camera_share: float = 0.85,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT,
    num_workers: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Write a data set of synthetic pedestrians in SYSU-MM01's original layout.

    That is `cam1..cam6/<4-digit id>/<4-digit image>.jpg`, `exp/{train,val,test}_id.txt`, and SYNTHETIC.txt, which says
    that no person is shown and how to make the same again. Ids count from 1; image 7 of id 3 in camera 2 is
    `draw_pedestrian(3, 2, 7)` as JPEG. The tree appears at once when it is complete; until then it has another name
    beside its place, and whatever stops the work removes it, but for a killed process.

    Args:
        root: a folder that does not exist or is empty.
        num_identities: 3 or more; a quarter of those that are not for testing are in val_id.txt.
        images_per_camera: mean number of images of an identity in a camera that has seen it; they spread by a quarter.
        num_test_identities: None for a fifth.
        camera_share: chance that a camera has seen an identity. Every identity is seen in both modalities, and one for
            training and one for testing by every camera.
        height, width: pixels.
        seed: of the people, the scenes, the split, and everything else.
        difficulty: spread within and between identities.
        num_workers: processes that draw; 0 to draw in this one. With more, a script needs `if __name__ == "__main__"`.
        progress: called as progress("drawing", images done, images in all) from this thread; what it raises stops the
            work.

    Returns:
        The number of images.

    Raises:
        ValueError: a root that is not an empty folder, or an argument out of its range.
        OSError: it cannot be written; nothing of it is left.
    """
    root = Path(root)
    for name, value, least, most in (
        ("num_identities", num_identities, 3, MAX_NUMBER),
        ("images_per_camera", images_per_camera, 1, math.floor(MAX_NUMBER / (1 + COUNT_SPREAD))),
    ):
        if not least <= value <= most:
            raise ValueError(f"write_pedestrians: {name} must be in [{least}, {most}], got {value}")
    num_test = max(1, round(TEST_SHARE * num_identities)) if num_test_identities is None else num_test_identities
    if not 1 <= num_test <= num_identities - 2:
        wanted = f"in [1, {num_identities - 2}] with num_identities={num_identities}"
        raise ValueError(f"write_pedestrians: num_test_identities must be {wanted}, got {num_test}")
    if not 0 <= camera_share <= 1:
        raise ValueError(f"write_pedestrians: camera_share must be in [0, 1], got {camera_share}")
    for name, value in (("seed", seed), ("num_workers", num_workers)):
        if value < 0:
            raise ValueError(f"write_pedestrians: {name} must not be negative, got {value}")
    _check_size("write_pedestrians", height, width)
    if root.is_symlink() or (root.exists() and not root.is_dir()) or (root.is_dir() and any(root.iterdir())):
        raise ValueError(f"write_pedestrians: root must not exist or be an empty folder, got {str(root)!r}")

    splits = _split(seed, num_identities, num_test)
    everywhere = {splits["train"][0], splits["test"][0]}
    counts = {
        identity: _count_images(seed, identity, images_per_camera, 1.0 if identity in everywhere else camera_share)
        for identity in range(1, num_identities + 1)
    }
    num_images = sum(sum(of_identity.values()) for of_identity in counts.values())
    with _appears_when_complete(root) as tree:
        for camera in CAMERAS:
            (tree / f"cam{camera}").mkdir()
        (tree / "exp").mkdir()
        for split, identities in splits.items():
            (tree / "exp" / f"{split}_id.txt").write_text(",".join(map(str, identities)) + "\n", encoding="ascii")
        settings = {
            "num_identities": num_identities,
            "images_per_camera": images_per_camera,
            "num_test_identities": num_test,
            "camera_share": camera_share,
            "height": height,
            "width": width,
            "seed": seed,
            "difficulty": difficulty,
        }
        (tree / NOTICE).write_text(_notice(settings, num_images), encoding="ascii")
        write = partial(_write_identity, tree, height=height, width=width, seed=seed, difficulty=difficulty)
        done = 0
        for written in _map(write, list(counts.items()), num_workers):
            done += written
            if progress is not None:
                progress("drawing", done, num_images)
    return num_images


def _split(seed: int, num_identities: int, num_test: int) -> dict[str, list[int]]:
    order = (1 + _generator(seed, _SPLIT).permutation(num_identities)).tolist()
    num_val = max(1, round(VAL_SHARE * (num_identities - num_test)))
    test, val, train = order[:num_test], order[num_test : num_test + num_val], order[num_test + num_val :]
    return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


def _count_images(seed: int, identity: int, images_per_camera: int, camera_share: float) -> dict[int, int]:
    """Images of an identity in each camera that has seen it."""
    rng = _generator(seed, _COUNT, identity)
    spread = math.floor(COUNT_SPREAD * images_per_camera)
    images = rng.integers(images_per_camera - spread, images_per_camera + spread + 1, len(CAMERAS)).tolist()
    seen = {camera for camera in CAMERAS if rng.random() < camera_share}
    for infrared in (False, True):
        of_modality = [camera for camera, view in CAMERAS.items() if view.infrared == infrared]
        fallback = int(rng.choice(of_modality))
        if not seen.intersection(of_modality):
            seen.add(fallback)
    return {camera: number for camera, number in zip(CAMERAS, images, strict=True) if camera in seen}


def _write_identity(
    tree: Path,
    identity_counts: tuple[int, dict[int, int]],
    *,
    height: int,
    width: int,
    seed: int,
    difficulty: Difficulty,
) -> int:
    identity, counts = identity_counts
    for camera, num_images in counts.items():
        folder = tree / f"cam{camera}" / f"{identity:04d}"
        folder.mkdir()
        for image in range(1, num_images + 1):
            pixels = draw_pedestrian(
                identity, camera, image, height=height, width=width, seed=seed, difficulty=difficulty
            )
            Image.fromarray(pixels).save(folder / f"{image:04d}.jpg", quality=CAMERAS[camera].quality)
    return sum(counts.values())


def _map(function: Callable, items: list, num_workers: int) -> Iterator:
    """function(item) for every item, in order; in processes if there are workers."""
    if num_workers == 0:
        yield from map(function, items)
        return
    # Spawned, because a fork of a process with torch's threads may hang. An interrupt is the parent's to handle.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _appears_when_complete(root: Path) -> Iterator[Path]:
    """A new folder beside `root` that takes its name at the end, and is removed if there is an error before."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}.incomplete-", dir=root.parent))
        try:
            tree = beside / "tree"
            tree.mkdir()  # mkdtemp's own folder is closed to others
            yield tree
            if root.exists():
                root.rmdir()  # empty, or this raises
            tree.rename(root)
        finally:
            shutil.rmtree(beside)
    except OSError as error:
        raise OSError(f"{root}: could not be written ({error.strerror or error}); nothing of it is left") from error


def _notice(settings: dict, num_images: int) -> str:
    arguments = "".join(f"    {name}={value!r},\n" for name, value in settings.items())
    return (
        "Synthetic pedestrians\n\n"
        f"All {num_images} images in this folder are synthetic: a program drew them from random numbers.\n"
        "No person is shown, and no image of a person was used to make them. The layout is that of SYSU-MM01; nothing\n"
        "in this folder is from SYSU-MM01, and results on it say nothing about results there.\n\n"
        "Made by dmic.data.pedestrians with\n\n"
        f"write_pedestrians(\n    root,\n{arguments})\n\n"
        f"and dmic {__version__}, numpy {np.__version__}, Pillow {PIL.__version__}; the same call writes the same.\n"
    )


def contact_sheet(
    *,
    num_identities: int = 8,
    images_per_camera: int = 1,
    first_identity: int = 1,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
    difficulty: Difficulty = DEFAULT,
) -> Image.Image:
    """A picture of identities, one a row, before the six cameras; its title says that they are synthetic.

    Args:
        num_identities: rows.
        images_per_camera: images side by side.
        first_identity: number of the first row's.
        height, width, seed, difficulty: as for `draw_pedestrian`.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value in (("num_identities", num_identities), ("images_per_camera", images_per_camera)):
        if value < 1:
            raise ValueError(f"contact_sheet: {name} must be at least 1, got {value}")
    _check_size("contact_sheet", height, width)
    size, gap = max(9, width // 6), max(2, width // 16)
    column, top = images_per_camera * width + gap, 5 * size
    sheet = Image.new("RGB", (len(CAMERAS) * column - gap, top + num_identities * (height + gap) - gap), "white")
    text = ImageDraw.Draw(sheet)
    title = f"synthetic pedestrians (seed {seed}), no person is shown"
    text.text((gap, size // 2), title, "black", ImageFont.load_default(min(1.4 * size, 1.7 * sheet.width / len(title))))
    for x, (camera, view) in enumerate(CAMERAS.items()):
        label = f"{camera} {'infrared' if view.infrared else 'visible'}"
        text.text((x * column + gap, 3 * size), label, "black", ImageFont.load_default(size))
        for y in range(num_identities):
            for image in range(images_per_camera):
                pixels = draw_pedestrian(
                    first_identity + y, camera, image, height=height, width=width, seed=seed, difficulty=difficulty
                )
                sheet.paste(Image.fromarray(pixels), (x * column + image * width, top + y * (height + gap)))
    return sheet


def _check_size(function: str, height: int, width: int) -> None:
    for name, value, least in (("height", height, MIN_HEIGHT), ("width", width, MIN_WIDTH)):
        if value < least:
            raise ValueError(f"{function}: {name} must be at least {least} pixels, got {value}")
