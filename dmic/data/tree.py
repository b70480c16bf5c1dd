"""What the readers of data sets share: lists of ids and images, problems with their paths, the data set at the end."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..constants import INFRARED, VISIBLE
from .gallery import Dataset
from .image_files import probe_images
from .protocol import Protocol, Trial
from .samples import Samples

ERROR, COUNT, NOTE = "error", "count", "note"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
MODALITY_NAMES = {VISIBLE: "visible", INFRARED: "infrared"}
EXPECTED = ", expected "  # between what is missing and the layout that it is missing from
MOST_SHOWN = 10  # problems in one error message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set on disk.

    Attributes:
        severity: "error": must be mended before training; "count": differs from the published data set, which does not
            keep a part of it or another tree of its layout from training; "note": worth knowing.
        path: the file or folder; of a list, with the line, as in "idx/test_id.txt:3".
        message: what is wrong, and what to do where that is not obvious.
    """

    severity: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """What is listed on disk, before any image is opened.

    Attributes:
        root: the folder or manifest.
        train: rows that train; their identities may be unknown.
        test: rows with identities that are tested; may have no rows.
        problems: found on the way; rows with an error are left out of the tables.
    """

    root: str
    train: Samples
    test: Samples
    problems: tuple[Problem, ...]


def raise_errors(name: str, problems: Iterable[Problem]) -> None:
    """ValueError with the first ten problems of severity "error", if there is one."""
    errors = [problem for problem in problems if problem.severity == ERROR]
    if errors:
        shown = "; ".join(_expected_once(errors[:MOST_SHOWN]))
        more = len(errors) - MOST_SHOWN
        raise ValueError(f"{name}: {shown}" + (f"; and {more} more, `dmic data check` lists all" if more > 0 else ""))


def _expected_once(problems: Iterable[Problem]) -> Iterator[str]:
    """Their texts; the layout that several expect is said with the first of them only."""
    said = set()
    for problem in problems:
        text, _, layout = str(problem).partition(EXPECTED)
        yield text if layout in said else str(problem)
        said.add(layout)


def absent_modalities(root: str, samples: Samples, split: str) -> list[Problem]:
    """An error for each modality without a single row."""
    return [
        Problem(ERROR, root, f"has no {name} {split} image")
        for modality, name in MODALITY_NAMES.items()
        if not bool((samples.modality_ids == modality).any())
    ]


def build_dataset(
    name: str,
    scan: Scan,
    protocols: Callable[[Samples], tuple[Protocol, ...]],
    *,
    height: int,
    width: int,
    cache_bytes: int = 0,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """The data set of a scan; every reader has these arguments and errors.

    Args:
        name: for people.
        scan: what is on disk.
        protocols: from the rows that are tested to how they are scored; not called if there are none.
        height, width: of the images, in pixels.
        cache_bytes: most memory for decoded images; training images first, test images have what is left.
        num_workers: threads that decode; None for as many as torch has.
        skip_unreadable: decode every image now, log and leave out what cannot be read. Test images that are left out
            change the draws of a protocol, so its name says how many are missing. Without it, an unreadable image is an
            error when it is first asked for.

    Raises:
        ValueError: the scan found errors, or a split has no image of one modality.
    """
    raise_errors(name, scan.problems)
    train, test, suffix = scan.train, scan.test, ""
    if skip_unreadable:
        train, test = (_readable(samples, num_workers) for samples in (train, test))
        if len(test) < len(scan.test):
            suffix = f", {len(scan.test) - len(test)} unreadable left out"
    raise_errors(name, absent_modalities(scan.root, train, "training"))
    size = {"height": height, "width": width, "num_workers": num_workers}
    training = train.gallery(**size, cache_bytes=cache_bytes)
    if not len(scan.test):
        return Dataset(name, training, train.person_ids, None, ())
    raise_errors(name, absent_modalities(scan.root, test, "test"))
    testing = test.labeled_gallery(**size, cache_bytes=cache_bytes - training.images.max_cached_bytes)
    scored = tuple(replace(protocol, name=protocol.name + suffix) for protocol in protocols(test))
    return Dataset(name, training, train.person_ids, testing, scored)


def both_directions(name: str, test: Samples) -> tuple[Protocol, ...]:
    """Each modality searches the whole of the other; nothing is removed, CMC ranks images."""
    visible, infrared = ((test.modality_ids == modality).nonzero().flatten() for modality in (VISIBLE, INFRARED))
    return (
        Protocol(f"{name}, visible to infrared", (Trial(visible, infrared),)),
        Protocol(f"{name}, infrared to visible", (Trial(infrared, visible),)),
    )


def _readable(samples: Samples, num_workers: int | None) -> Samples:
    probes = probe_images(samples.paths, num_workers=num_workers)
    for path, probe in zip(samples.paths, probes, strict=True):
        if probe.fault:
            logger.warning("left out: %s %s", path, probe.fault)
    return samples.select(torch.tensor([probe.fault is None for probe in probes], dtype=torch.bool))


def list_images(folder: str, problems: list[Problem]) -> list[str]:
    """Image files of a folder, by name; nothing if there is no such folder. Other visible files become notes."""
    if not os.path.isdir(folder):
        return []
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    images = [path for path in paths if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES]
    strays = sorted(set(paths) - set(images))
    problems += [Problem(NOTE, path, "is not an image file and is ignored") for path in strays]
    return images


def read_id_list(path: Path, layout: str, problems: list[Problem]) -> list[int]:
    """Ids of a file of comma-separated integers, ascending; `layout` is shown where the file is missing."""
    ids: set[int] = set()
    for number, line in _read_lines(path, layout, problems):
        for text in filter(None, (part.strip() for part in line.split(","))):
            if not (text.isascii() and text.isdigit()):
                problems.append(Problem(ERROR, f"{path}:{number}", f"ids must be integers from 0, got {text!r}"))
            elif int(text) in ids:
                problems.append(Problem(ERROR, f"{path}:{number}", f"id {int(text)} is listed twice"))
            else:
                ids.add(int(text))
    return sorted(ids)


def read_image_list(
    path: Path, root: Path, layout: str, problems: list[Problem], missing: set[str]
) -> list[tuple[str, str, int]]:
    """Rows (place, image file, label) of a file with lines `relative/path label`; place is "list:line".

    Files that do not exist are left out, reported once and collected in `missing`.
    """
    rows, seen = [], set()
    for number, line in _read_lines(path, layout, problems):
        place = f"{path}:{number}"
        name, _, label = line.rpartition(" ")
        name, image = name.strip(), os.path.join(root, name.strip())
        if not name or not (label.isascii() and label.isdigit()):
            problems.append(Problem(ERROR, place, f"must be `relative/path label`, got {line!r}"))
        elif image in seen:
            problems.append(Problem(ERROR, place, f"{name} is listed twice"))
        elif not os.path.isfile(image):
            if image not in missing:
                problems.append(Problem(ERROR, image, f"does not exist, listed in {place}"))
            missing.add(image)
        else:
            rows.append((place, image, int(label)))
        seen.add(image)
    return rows


def _read_lines(path: Path, layout: str, problems: list[Problem]) -> list[tuple[int, str]]:
    """Numbered lines that are not blank; a file that is missing, unreadable or empty is a problem."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problems.append(Problem(ERROR, str(path), f"is missing{EXPECTED}{layout}"))
        return []
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(ERROR, str(path), f"cannot be read ({error})"))
        return []
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        problems.append(Problem(ERROR, str(path), "is empty"))
    return lines


def camera_folders_rows(
    cameras: Iterable[tuple[str, int, int]], ids: Iterable[int], problems: list[Problem]
) -> list[tuple[str, int, int, int]]:
    """Rows of `<camera folder>/<4-digit id>/<image>`, by id, then camera in the order given, then file name.

    Args:
        cameras: folder, camera id and modality id of each.
        ids: persons, ascending; those without a folder in a camera were not seen there.
        problems: collects stray files.
    """
    cameras = list(cameras)
    return [
        (path, person, camera, modality)
        for person in ids
        for folder, camera, modality in cameras
        for path in list_images(os.path.join(folder, f"{person:04d}"), problems)
    ]


def camera_folder_problems(
    cameras: Iterable[tuple[str, int, int]], rows: Iterable[tuple[str, int, int, int]], layout: str
) -> list[Problem]:
    """An error for each camera folder that is missing or holds no image of the rows."""
    used = {(camera, modality) for _, _, camera, modality in rows}
    problems = []
    for folder, camera, modality in cameras:
        if not os.path.isdir(folder):
            problems.append(Problem(ERROR, folder, f"is missing{EXPECTED}{layout}"))
        elif (camera, modality) not in used:
            problems.append(Problem(ERROR, folder, "has no image of a listed id"))
    return problems


def person_problems(list_path: Path, ids: Iterable[int], rows: Iterable[tuple[str, int, int, int]]) -> list[Problem]:
    """Listed persons without an image (count), and persons that only one modality has seen (note)."""
    seen: dict[int, set[int]] = defaultdict(set)
    for _, person, _, modality in rows:
        seen[person].add(modality)
    absent = [person for person in ids if person not in seen]
    return [
        *(Problem(COUNT, str(list_path), f"id {person} is listed but has no image") for person in absent),
        *one_modality_notes(str(list_path), seen),
    ]


def one_modality_notes(path: str, seen: dict[int, set[int]]) -> list[Problem]:
    """A note for each person whose modalities, `seen[person]`, are not both."""
    return [
        Problem(NOTE, path, f"id {person} has no {name} image")
        for person in sorted(seen)
        for modality, name in MODALITY_NAMES.items()
        if modality not in seen[person]
    ]
