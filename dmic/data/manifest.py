"""Anyone's own gallery: a table of image files, as CSV or Parquet."""

from __future__ import annotations

import csv
import difflib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..constants import INFRARED, VISIBLE
from .gallery import Dataset
from .samples import Samples
from .tree import ERROR, MODALITY_NAMES, Problem, Scan, both_directions, build_dataset, one_modality_notes

SUFFIXES = (".csv", ".parquet")
FILE_NAMES = tuple(f"manifest{suffix}" for suffix in SUFFIXES)  # looked for in a folder
REQUIRED, OPTIONAL = ("path", "modality", "camera"), ("identity", "split")
MODALITIES = {"visible": VISIBLE, "infrared": INFRARED, str(VISIBLE): VISIBLE, str(INFRARED): INFRARED}
SPLITS = ("train", "test")


def read_manifest(
    path: str | os.PathLike[str],
    *,
    height: int,
    width: int,
    cache_bytes: int = 0,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """A gallery from a table with a header, one row per image; other columns are ignored.

    | column | values |
    |---|---|
    | path | an image file, relative to the manifest's folder |
    | modality | visible or infrared, or 0 or 1 |
    | camera | any integer or text; ids from 0 in sorted order, numbers by value if all are numbers |
    | identity | optional, like camera: of all training images or of none, and of all test images |
    | split | optional, train or test; train where it is empty |

    With test rows there are two protocols: each modality searches the whole of the other, and nothing is removed.

    Args:
        path: a .csv file (UTF-8), a .parquet file (needs pyarrow), or a folder with a manifest.csv or manifest.parquet.

    The other arguments and errors are those of `build_dataset`.

    Raises:
        ValueError: bad rows, each with file, line (in Parquet the row, from 1) and value; a missing column; a suffix
            that is not known.
    """
    path = find_manifest(path)
    return build_dataset(
        path.name,
        scan_manifest(path),
        partial(both_directions, path.name),
        height=height,
        width=width,
        cache_bytes=cache_bytes,
        num_workers=num_workers,
        skip_unreadable=skip_unreadable,
    )


def find_manifest(path: str | os.PathLike[str]) -> Path:
    """The manifest itself, or that of a folder; ValueError if there is none."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if len(found) != 1:
            raise ValueError(f"read_manifest: {path} must hold one of {', '.join(FILE_NAMES)}, found {len(found)}")
        return found[0]
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"read_manifest: {path} must be one of {', '.join(SUFFIXES)}, got {path.suffix!r}")
    if not path.is_file():
        raise ValueError(f"read_manifest: {path} does not exist")
    return path


def scan_manifest(path: str | os.PathLike[str]) -> Scan:
    """What the manifest lists, with a problem for every bad row."""
    path = find_manifest(path)
    problems: list[Problem] = []
    rows = _good_rows(path, problems)
    camera_ids = _numbered(row["camera"] for row in rows)
    person_ids = _numbered(row["identity"] for row in rows if row["identity"])
    tables = {}
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        unknown = [row for row in own if not row["identity"]]
        if unknown and (split == "test" or len(unknown) < len(own)):
            whose = "test images need one" if split == "test" else "other training images have one"
            places = [row["place"] for row in unknown] if person_ids else [str(path)]
            problems += [Problem(ERROR, place, f"identity is empty, {whose}") for place in places]
            own = [row for row in own if row["identity"]]
        known = bool(own) and bool(own[0]["identity"])
        table = Samples.from_rows(
            (
                row["file"],
                person_ids[row["identity"]] if known else 0,
                camera_ids[row["camera"]],
                MODALITIES[row["modality"]],
            )
            for row in own
        )
        tables[split] = table if known else table.without_identities()
        seen = defaultdict(set)
        for row in own if known else ():
            seen[row["identity"]].add(MODALITIES[row["modality"]])
        problems += one_modality_notes(str(path), seen)
    trained = {row["identity"] for row in rows if row["split"] == "train" and row["identity"]}
    tested = {row["identity"]: row["place"] for row in reversed(rows) if row["split"] == "test"}
    for identity in sorted(trained & tested.keys()):
        problems.append(Problem(ERROR, tested[identity], f"identity {identity} is for training and for test"))
    return Scan(str(path), tables["train"], tables["test"], tuple(problems))


def _good_rows(path: Path, problems: list[Problem]) -> list[dict[str, str]]:
    """Rows without a fault, texts by column, and their `place` and `file`."""
    rows: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    header: set[str] = set()
    for place, values in _read_table(path, problems):
        if not header:
            header = set(values)
            problems += _column_problems(path, header)
            if not header.issuperset(REQUIRED):
                return []
        row = {column: _text(values.get(column)) for column in (*REQUIRED, *OPTIONAL)}
        row |= {"place": place, "file": os.path.normpath(os.path.join(path.parent, row["path"]))}
        row["modality"], row["split"] = row["modality"].lower(), row["split"].lower() or "train"
        faults = [f"{column} is empty" for column in REQUIRED if not row[column]]
        if row["modality"] and row["modality"] not in MODALITIES:
            known = ", ".join(MODALITY_NAMES.values())
            faults.append(f"modality must be one of {known}, 0, 1, got {_text(values['modality'])!r}")
        if row["split"] not in SPLITS:
            faults.append(f"split must be train or test, got {_text(values['split'])!r}")
        if None in values:
            faults.append(f"has more values than columns, from {values[None][0]!r} on; quote values that hold a comma")
        if row["path"] and not os.path.isfile(row["file"]):
            faults.append(f"path does not exist, got {row['path']!r}")
        elif row["path"] and seen.setdefault(row["file"], place) != place:
            faults.append(f"path is listed twice, got {row['path']!r}, first in {seen[row['file']]}")
        problems += [Problem(ERROR, place, fault) for fault in faults]
        if not faults:
            rows.append(row)
    return rows


def _column_problems(path: Path, header: set[str]) -> list[Problem]:
    problems = [
        Problem(ERROR, str(path), f"has no column {column!r}, got {', '.join(map(repr, sorted(filter(None, header))))}")
        for column in REQUIRED
        if column not in header
    ]
    absent = [column for column in OPTIONAL if column not in header]
    for column in sorted(filter(None, header - {*REQUIRED, *OPTIONAL})):
        near = difflib.get_close_matches(column.lower(), absent, n=1, cutoff=0.8)
        if near:
            problems.append(Problem(ERROR, str(path), f"has a column {column!r}, did you mean {near[0]!r}?"))
    return problems


def _read_table(path: Path, problems: list[Problem]) -> Iterator[tuple[str, dict[str | None, Any]]]:
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    empty = True
    try:
        for row in rows:
            empty = False
            yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(ERROR, str(path), f"cannot be read ({error})"))
        return
    if empty:
        problems.append(Problem(ERROR, str(path), f"has no rows, expected columns {', '.join(REQUIRED)}"))


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str | None, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, skipinitialspace=True)
        for row in reader:
            yield f"{path}:{reader.line_num}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str | None, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or use a CSV file") from None
    try:
        columns = parquet.read_table(path)
    except ArrowException as error:
        raise OSError(str(error)) from None
    start = 0
    for batch in columns.to_batches():
        for number, row in enumerate(batch.to_pylist(), start + 1):
            yield f"{path}:{number}", row
        start += len(batch)


def _text(value: Any) -> str:
    """A cell as text; empty for none, 3 for 3.0."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Ids from 0 of the distinct names in sorted order; integers by value if all are integers."""
    distinct = set(names)
    try:
        ordered = sorted(distinct, key=lambda name: (int(name), name))
    except ValueError:
        ordered = sorted(distinct)
    return {name: number for number, name in enumerate(ordered)}
