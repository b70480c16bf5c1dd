"""Everything that is wrong with a data set on disk, before a run depends on it."""

from __future__ import annotations

import os
from collections.abc import Callable

from . import llcm, manifest, regdb, sysu_mm01
from .image_files import Probe, probe_images
from .kinds import check_kind
from .tree import COUNT, ERROR, NOTE, Problem, Scan, absent_modalities

KNOWN_COUNTS: dict[str, Callable[[Scan], list[tuple[str, int, int]]]] = {
    "sysu_mm01": sysu_mm01.known_counts,
    "regdb": regdb.known_counts,
    "llcm": llcm.known_counts,
}


def check_dataset(
    kind: str,
    root: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Problem]:
    """Every problem of a data set, errors first; every listed image is decoded.

    Errors are folders, lists and images that are missing, unreadable or empty, bad lines, ids or files that are in both
    training and test (files by content), and cameras or modalities without an image. Counts are differences from the
    published data set. Notes are persons that only one modality has seen, and files that are ignored. RegDB is checked
    in all ten trials.

    Args:
        kind: "sysu_mm01", "regdb", "llcm" or "manifest"; `detect_dataset` finds it.
        root: the folder, or the manifest.
        num_workers: threads that decode; None for as many as torch has.
        progress: called as progress("decoding", done, total) from this thread; what it raises stops the check.

    Raises:
        ValueError: an unknown kind, no thread to decode, or a manifest that is not there or cannot be read without
            another package.
    """
    check_kind("check_dataset", kind)
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"check_dataset: num_workers must be at least 1, got {num_workers}")
    scans = _scan(kind, root)
    paths = list(dict.fromkeys(path for scan in scans.values() for path in (*scan.train.paths, *scan.test.paths)))
    probes = dict(zip(paths, probe_images(paths, num_workers=num_workers, progress=progress), strict=True))
    problems = [problem for scan in scans.values() for problem in scan.problems]
    problems += [Problem(ERROR, path, probe.fault) for path, probe in probes.items() if probe.fault]
    for name, scan in scans.items():
        listed = len(scan.train) + len(scan.test)
        if listed or not any(problem.severity == ERROR for problem in scan.problems):  # else that says why
            problems += absent_modalities(scan.root, scan.train, f"{name}training")
            if len(scan.test) or kind != "manifest":
                problems += absent_modalities(scan.root, scan.test, f"{name}test")
        problems += _shared_content(scan, probes)
        if kind in KNOWN_COUNTS:
            problems += [
                Problem(COUNT, scan.root, f"has {found:,} {name}{what}, the published data set has {known:,}")
                for what, found, known in KNOWN_COUNTS[kind](scan)
                if found != known
            ]
    order = (ERROR, COUNT, NOTE)
    return sorted(dict.fromkeys(problems), key=lambda problem: order.index(problem.severity))


def _scan(kind: str, root: str | os.PathLike[str]) -> dict[str, Scan]:
    """Scans by what messages say before "training" and "test"."""
    if kind == "regdb":
        missing: set[str] = set()
        trials = range(1, regdb.NUM_TRIALS + 1)
        return {f"trial {trial} ": regdb.scan_regdb(root, trial, missing) for trial in trials}
    scan = {"sysu_mm01": sysu_mm01.scan_sysu_mm01, "llcm": llcm.scan_llcm, "manifest": manifest.scan_manifest}[kind]
    return {"": scan(root)}


def _shared_content(scan: Scan, probes: dict[str, Probe]) -> list[Problem]:
    """An error for each test file with the bytes of a training file; a path in both splits is reported by the scan."""
    trained = {probes[path].digest: path for path in reversed(scan.train.paths)}
    trained.pop(b"", None)  # files that could not be read
    return [
        Problem(ERROR, path, f"has the same content as the training image {other}")
        for path in scan.test.paths
        if (other := trained.get(probes[path].digest)) not in (None, path)
    ]
