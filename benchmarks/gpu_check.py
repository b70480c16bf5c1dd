"""Everything that needs a GPU, in one command and under 8 minutes: `make gpu-check`.

    python -m benchmarks.gpu_check                  # all parts, each in a process of its own
    python -m benchmarks.gpu_check --part kernels   # one of build, tests, sanitizer, kernels, pipeline
    python -m benchmarks.gpu_check --stand-in       # the same code with the emulator as the GPU: measures nothing

A part prints what it finds as it finds it, stops when its time is up, says what it did not reach, and writes
benchmarks/results/gpu_<part>.json. The exit status is 1 if any part failed. Needs torch, nvcc, a C++ compiler and
pytest; compute-sanitizer, cupy, hypothesis, scipy and scikit-learn are used if they are there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from . import costs, gpu_baselines, measuring
from .gpu_device import DEVICES, ROOT, Gpu
from .sizes import EPS, MIN_SAMPLES, DeviceGallery, generate_gallery_on

RESULTS = ROOT / "benchmarks" / "results"
GRACE_SECONDS = 6  # after which a part that does not see that its time is up is ended
PACKAGES = ("torch", "numpy", "cupy-cuda13x", "cupy-cuda12x", "hypothesis", "scipy", "scikit-learn", "pytest")
TARGETS = {34_167: 0.040, 126_441: 0.3, 1_000_000: 8.0}  # seconds on an H100, d = 2048, k1 = 40, k2 = 32
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_STATUS = 86


class OutOfTimeError(Exception):
    """The time of a part is up."""


@dataclass
class Part:
    """A part while it runs: its device, its clock and what it has found."""

    name: str
    device: Gpu
    output: Path
    command: str
    started: float = field(default_factory=time.monotonic)
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def circumstances(self) -> dict[str, Any]:
        return {
            "stand_in": self.device.name != "cuda",
            "command": self.command,
            "commit": measuring.commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": self.device.describe() | {"cpu": measuring.machine()["cpu"], "cores": os.cpu_count()},
            "versions": versions(),
        }

    @property
    def seconds_left(self) -> float:
        return self.started + self.device.seconds[self.name] - time.monotonic()

    def check_time(self, *_: object) -> None:
        """Also a progress callback of the ops, which stops one that takes too long."""
        if self.seconds_left <= 0:
            raise OutOfTimeError

    def add(self, result: dict[str, Any], line: str) -> None:
        print(f"  {line}", flush=True)
        self.results.append(result)
        self.write("running")

    def fail(self, text: str) -> None:
        print(f"  FAILED {text}", flush=True)
        self.failures.append(text)

    def skip(self, text: str) -> None:
        print(f"  not reached: {text}", flush=True)
        self.not_reached.append(text)

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)
        self.notes.append(text)

    def write(self, status: str) -> None:
        document = {
            "benchmark": f"gpu_{self.name}",
            "status": status,
            **self.circumstances,
            "seconds": round(time.monotonic() - self.started, 1),
            "seconds_allowed": self.device.seconds[self.name],
            "failures": self.failures,
            "not_reached": self.not_reached,
            "notes": self.notes,
            "results": self.results,
        }
        write_json(self.output, document)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """At once or not at all, and without the folders of the machine: results are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"(?<![\w.}$-])/(?:[\w.+@-]+/)+(?=[\w.])", "", json.dumps(document, indent=1))
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


# ---- build ----------------------------------------------------------------------------------------------------------


def build(part: Part) -> None:
    """In place, strictly, for the architectures of setup.py: what the other parts import."""
    start = time.monotonic()
    environment = {**os.environ, "DMIC_WERROR": "1"}
    done = subprocess.run(
        part.device.build_command(),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=part.seconds_left,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("dmic:")]
    kernels = ROOT / "build" / "kernels.json"
    result = {
        "seconds": round(time.monotonic() - start, 1),
        "exit_status": done.returncode,
        "report": lines,
        "kernels": json.loads(kernels.read_text()) if kernels.exists() else [],
    }
    part.add(result, "\n  ".join([*lines, f"built in {result['seconds']} s"]))
    if done.returncode:
        part.fail(f"the build ended with status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


# ---- tests ----------------------------------------------------------------------------------------------------------


class Recorder:
    """A pytest plugin: notes every outcome, and skips what is left when the time is up."""

    def __init__(self, part: Part):
        self.part = part
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, int] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        import pytest

        if self.part.seconds_left <= 0:
            self.part.not_reached.append(item.nodeid)
            pytest.skip("not reached: the time is up")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if report.failed:
            self.part.failures.append(f"{report.nodeid} ({report.when}): {str(report.longrepr)[-1500:]}")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.part.failures.append(f"collecting {report.nodeid}: {str(report.longrepr)[-1500:]}")


def tests(part: Part) -> None:
    """The tests of the ops and of the GPU, those that run on the device."""
    import pytest

    recorder = Recorder(part)
    status = pytest.main([*part.device.tests, "-p", "no:cacheprovider", "--rootdir", str(ROOT)], [recorder])
    counts = {kind: list(recorder.outcomes.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    part.add({"exit_status": int(status), **counts, "skipped_because": recorder.reasons}, text)
    if part.not_reached:
        part.note(f"{len(part.not_reached)} tests not reached")
    if not counts["passed"]:
        part.fail("no test passed")
    if status and not part.failures:
        part.fail(f"pytest ended with status {int(status)}")


# ---- compute-sanitizer ----------------------------------------------------------------------------------------------


def sanitizer_command(sanitizer: list[str], tool: str, kernels_only: list[str], device: str) -> list[str]:
    """Which checks `benchmarks.every_op` under one tool."""
    options = ["--tool", tool, "--error-exitcode", str(SANITIZER_STATUS), "--print-limit", "20"]
    if tool == "memcheck":  # torch asks the driver things that it expects to fail; our launches check themselves
        options += ["--report-api-errors", "no"]
    if tool != "initcheck":  # what it does not watch it takes for unwritten, also when torch's kernels write it
        options += kernels_only
    return [*sanitizer, *options, sys.executable, "-m", "benchmarks.every_op", "--device", device]


def kernels_only(sanitizer: list[str]) -> list[str]:
    """The option that leaves out other kernels than ours; its name differs between releases."""
    text = subprocess.run([*sanitizer, "--help"], capture_output=True, text=True, timeout=60)
    known = text.stdout + text.stderr
    option = next((name for name in ("--kernel-name", "--kernel-regex") if name in known), None)
    return [option, "kns=4dmic"] if option else []  # a part of every mangled name in our namespace


def sanitizer(part: Part) -> None:
    """memcheck, racecheck, initcheck and synccheck of every op at small sizes, at the same time."""
    found = part.device.sanitizer()
    if found is None:
        part.note("skipped: compute-sanitizer was not found on PATH or beside nvcc")
        return
    ours = kernels_only(found)
    # Every tensor in an allocation of its own, so that what is beside it is not another tensor
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}

    def check(tool: str) -> tuple[str, dict[str, Any]]:
        command = sanitizer_command(found, tool, ours, part.device.name)
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=part.seconds_left
            )
        except subprocess.TimeoutExpired:
            return tool, {"seconds": round(time.monotonic() - start, 1), "exit_status": None}
        seconds = round(time.monotonic() - start, 1)
        return tool, {
            "seconds": seconds,
            "exit_status": done.returncode,
            "command": shlex.join(command),
            "report": (done.stdout + done.stderr)[-6000:],
        }

    with ThreadPoolExecutor(min(len(SANITIZER_TOOLS), os.cpu_count() or 1)) as pool:
        for future in as_completed([pool.submit(check, tool) for tool in SANITIZER_TOOLS]):
            tool, result = future.result()
            if result["exit_status"] is None:
                part.skip(f"{tool}, stopped after {result['seconds']} s")
                continue
            verdict = "clean" if result["exit_status"] == 0 else f"exit status {result['exit_status']}"
            part.add({"tool": tool, **result}, f"{tool:<10} {verdict}, {result['seconds']} s")
            if result["exit_status"]:
                part.fail(f"{tool}: {result['report']}")


# ---- kernels --------------------------------------------------------------------------------------------------------


def measure(part: Part, function: Callable[[], Any], most_seconds: float = 1.5) -> tuple[Any, dict[str, Any]]:
    """The result, the spread of several runs, and the peak memory of a first one, which is timed only if it is long."""
    part.check_time()
    part.device.reset_peak()
    result, first = part.device.run_timed(function)
    peak = part.device.peak_bytes()
    repeats = int(min(part.device.repeats, max(1, most_seconds / max(first, 1e-9))))
    seconds = [first] if first > most_seconds else []
    repeats += len(seconds)
    while len(seconds) < repeats and part.seconds_left > 2 * first:
        del result
        result, took = part.device.run_timed(function)
        seconds.append(took)
    return result, {"seconds": measuring.spread(seconds or [first]), "peak_bytes": peak}


@contextmanager
def until_out_of_time(part: Part, what: str) -> Iterator[None]:
    try:
        yield
    except OutOfTimeError:
        part.skip(what)


def release(part: Part) -> None:
    """Memory of the round before back to the device, which a baseline may want."""
    part.device.reset_peak()


def kernels(part: Part) -> None:
    """Every op at every size; the largest sizes last."""
    import dmic.ops

    part.device.prepare()
    for n in part.device.sizes:
        for dim in part.device.dims:
            what = f"N={n:,} d={dim}"
            with until_out_of_time(part, what):
                part.check_time()
                gallery = generate_gallery_on(part.device.device, n, dim)
                measure_rounding(part, gallery)
                for k1, k2 in part.device.searches:
                    with until_out_of_time(part, f"{what} k1={k1} k2={k2}, in part"):
                        measure_ops(part, gallery, k1, k2, dmic.ops)
                del gallery
                release(part)


def report_op(part: Part, op: str, size: costs.Size, found: dict[str, Any], **facts: Any) -> None:
    median = found["seconds"]["median"]
    floor, expected = costs.floor_seconds(op, size), costs.expected_seconds(op, size)
    result = {
        "op": op,
        "num_samples": size.num_samples,
        "dim": size.dim,
        **found,
        **facts,
        "floor_seconds": floor,
        "expected_seconds": expected,
        "fraction_of_floor": floor / median if median else None,
    }
    spread = found["seconds"]
    extra = " ".join(
        f"{name}={value:,}" if isinstance(value, int) else f"{name}={value}" for name, value in facts.items()
    )
    part.add(
        result,
        f"N={size.num_samples:<9,} d={size.dim:<5} {op:<22} {1e3 * median:10.3f} ms "
        f"({1e3 * spread['min']:.3f} to {1e3 * spread['max']:.3f})  predicted {1e3 * expected:.3f}  "
        f"floor {1e3 * floor:.3f}  peak {found['peak_bytes'] / 1e6:.0f} MB  {extra}",
    )


def measure_rounding(part: Part, gallery: DeviceGallery) -> None:
    from dmic._native import call

    _, found = measure(part, lambda: call(None, torch.ops.dmic.round_features.default, gallery.features, 10))
    report_op(part, "round_features", costs.Size(*gallery.features.shape), found)


def measure_ops(part: Part, gallery: DeviceGallery, k1: int, k2: int, ops: Any) -> None:
    n, dim = gallery.features.shape
    ids, watch = (gallery.camera_ids, gallery.modality_ids), {"progress": part.check_time}
    search = {"k1": k1, "k2": k2}

    (neighbor_idx, _, redone), found = measure(part, lambda: ops.knn_graph_and_redone(gallery.features, k1, **watch))
    size = costs.Size(n, dim, k1, k2, num_redone=redone)
    report_op(part, "knn_graph", size, found, **search, num_redone=redone)

    encoding, found = measure(
        part, lambda: ops.k_reciprocal_encoding(gallery.features, neighbor_idx, round(k1 / 2), **watch)
    )
    size = costs.Size(n, dim, k1, k2, encoding_length=encoding.nnz / n)
    report_op(part, "k_reciprocal_encoding", size, found, **search, nnz=encoding.nnz)

    expanded, found = measure(part, lambda: ops.invariant_expansion(encoding, neighbor_idx, k2, *ids, **watch))
    size = costs.Size(n, dim, k1, k2, encoding.nnz / n, expanded.nnz / n)
    report_op(part, "invariant_expansion", size, found, **search, nnz=expanded.nnz)

    distance, found = measure(part, lambda: ops.jaccard_distance(expanded, EPS, **watch))
    size = costs.Size(n, dim, k1, k2, encoding.nnz / n, expanded.nnz / n, num_pairs=distance.nnz / n)
    report_op(part, "jaccard_distance", size, found, **search, nnz=distance.nnz)

    (labels, _), found = measure(part, lambda: ops.dbscan(distance, EPS, MIN_SAMPLES, **watch))
    report_op(part, "dbscan", size, found, **search, num_clusters=int(labels.max()) + 1)


# ---- pipeline -------------------------------------------------------------------------------------------------------


def pipeline(part: Part) -> None:
    """From features to labels, and what one would run instead; the largest sizes last."""
    part.device.prepare()
    for n in part.device.sizes:
        combinations = [(dim, search) for search in part.device.searches for dim in part.device.dims]
        for position, (dim, (k1, k2)) in enumerate(combinations):
            what = f"N={n:,} d={dim} k1={k1} k2={k2}"
            with until_out_of_time(part, what):
                measure_pipeline(part, n, dim, k1, k2, with_baselines=position == 0)
            release(part)


def measure_pipeline(part: Part, n: int, dim: int, k1: int, k2: int, with_baselines: bool) -> None:
    import dmic

    part.check_time()
    gallery = generate_gallery_on(part.device.device, n, dim)
    ids = {"camera_ids": gallery.camera_ids, "modality_ids": gallery.modality_ids}
    settings = {"k1": k1, "k2": k2, "eps": EPS, "min_samples": MIN_SAMPLES}
    what = f"N={n:<9,} d={dim:<5} k1={k1} k2={k2:<3}"

    def ours(**given: Any) -> Any:
        return dmic.pseudo_labels(gallery.features, **ids, **settings, **given, progress=part.check_time)

    found, spent = measure(part, ours)
    target = TARGETS.get(n) if (dim, k1, k2) == (2048, 40, 32) else None
    estimate = dmic.estimate_memory(n, dim, k1=k1, k2=k2, eps=EPS, device=part.device.device).peak_bytes
    median = spent["seconds"]["median"]
    result = {
        "num_samples": n,
        "dim": dim,
        **settings,
        "method": "dmic",
        **spent,
        "stages_s": found.seconds,
        "num_redone": found.num_redone,
        "num_clusters": found.num_clusters,
        "num_outliers": found.num_outliers,
        "estimated_bytes": estimate,
        "target_seconds": target,
    }
    verdict = "" if target is None else f"  target {1e3 * target:.0f} ms {'met' if median <= target else 'MISSED'}"
    stages = ", ".join(f"{stage} {1e3 * seconds:.2f}" for stage, seconds in found.seconds.items())
    part.add(
        result,
        f"{what} dmic {1e3 * median:.2f} ms ({stages})  peak {spent['peak_bytes'] / 1e6:.0f} MB of "
        f"{estimate / 1e6:.0f} estimated  redone {found.num_redone:,}  clusters {found.num_clusters:,}{verdict}",
    )
    if spent["peak_bytes"] > estimate and part.device.name == "cuda":
        part.fail(f"{what} took {spent['peak_bytes']:,} bytes, {estimate:,} were estimated")
    if with_baselines:
        for name, run in baselines(part, gallery, settings, ours).items():
            with until_out_of_time(part, f"{what} {name}"):
                measure_baseline(part, what, name, run, found, result)


# What a baseline gives: labels, or None if it has none; the rows that it searched; anything worth reporting.
Baseline = Callable[[], tuple[torch.Tensor | None, int, dict[str, Any]]]


def baselines(part: Part, gallery: DeviceGallery, settings: dict[str, Any], ours: Callable) -> dict[str, Baseline]:
    n, dim = gallery.features.shape
    rows = min(n, int(part.device.baseline_operations / (2 * n * dim)))

    def searched(dtype: torch.dtype) -> Baseline:
        def run() -> tuple[torch.Tensor | None, int, dict[str, Any]]:
            num_rows = min(n, 8 * rows) if dtype == torch.float16 else rows
            ranks, seconds = part.device.run_timed(
                lambda: gpu_baselines.search(gallery.features, settings["k1"], dtype, num_rows)
            )
            facts = {"search_seconds": seconds * n / num_rows}
            return (ours(neighbor_idx=ranks).labels if num_rows == n else None), num_rows, facts

        return run

    def published() -> tuple[torch.Tensor, int, dict[str, Any]]:
        return (
            gpu_baselines.published(*(getattr(gallery, f) for f in DeviceGallery.__dataclass_fields__), **settings),
            n,
            {},
        )

    def on_the_cpu() -> tuple[torch.Tensor, int, dict[str, Any]]:
        import dmic

        on_cpu = {f: getattr(gallery, f).cpu() for f in DeviceGallery.__dataclass_fields__}
        return dmic.pseudo_labels(**on_cpu, **settings).labels.to(part.device.device), n, {}

    found: dict[str, Baseline] = {
        "torch float16 mm and topk": searched(torch.float16),
        "torch float32 mm and topk": searched(torch.float32),
    }
    if n in part.device.published_sizes:
        found["published dense pipeline on torch"] = published
    if n in part.device.sparse_sizes:
        found["dmic on the CPU"] = on_the_cpu
        if library := part.device.sparse_library():
            found["sparse matrices of cupy"] = lambda: sparse_pipeline(part, gallery, settings, library)
    return found


def sparse_pipeline(
    part: Part, gallery: DeviceGallery, settings: dict[str, Any], library: tuple
) -> tuple[torch.Tensor, int, dict[str, Any]]:
    """Our neighbours and encoding; expansion and distances by sparse matrices; our labels of those."""
    import dmic

    arrays, sparse, to_tensor = library
    k1, k2 = settings["k1"], settings["k2"]
    neighbor_idx, _ = dmic.knn_graph(gallery.features, k1)
    encoding = dmic.k_reciprocal_encoding(gallery.features, neighbor_idx, round(k1 / 2)).to_float()
    weights, indices, row_ptr = (arrays.asarray(a) for a in (encoding.values, encoding.col_idx, encoding.row_ptr))
    listed = neighbor_idx[:, :k2].long()
    share = gpu_baselines.shares(listed, gallery.camera_ids, gallery.modality_ids)
    listed, share = arrays.asarray(listed.int()), arrays.asarray(share)

    def join() -> Any:
        rows = sparse.csr_matrix((weights, indices, row_ptr.astype(arrays.int32)), shape=encoding.shape)
        expanded = gpu_baselines.sparse_expand(rows, listed, share, arrays, sparse)
        return gpu_baselines.sparse_near_pairs(expanded, settings["eps"], arrays, sparse).tocsr()

    near, seconds = part.device.run_timed(join)
    near.sort_indices()
    tensors = [to_tensor(a) for a in (near.indptr, near.indices, near.data)]
    distance = dmic.Csr(tensors[0].long(), tensors[1].int(), tensors[2].float(), len(gallery.features))
    return (
        dmic.dbscan(distance, settings["eps"], settings["min_samples"])[0],
        len(gallery.features),
        {"expansion_and_distance_seconds": seconds},
    )


def measure_baseline(part: Part, what: str, name: str, run: Baseline, found: Any, ours: dict[str, Any]) -> None:
    """One run, warmed up by nothing but the runs before it; a baseline that fails is no failure of ours."""
    part.check_time()
    part.device.reset_peak()
    try:
        (labels, num_rows, facts), seconds = part.device.run_timed(run)
    except OutOfTimeError:
        raise
    except Exception as error:
        part.note(f"{what} {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    agreement = None if labels is None else gpu_baselines.compare_labels(labels, found.labels)
    result = {
        **{key: ours[key] for key in ("num_samples", "dim", "k1", "k2", "eps", "min_samples")},
        "method": name,
        "seconds": seconds if labels is not None else None,
        "peak_bytes": part.device.peak_bytes(),
        "rows_searched": num_rows,
        "labels_against_dmic": agreement,
        **facts,
    }
    parts = [f"{1e3 * seconds:.2f} ms"] if labels is not None else []
    parts += [f"{key.replace('_', ' ')} {value:.4f}" for key, value in facts.items()]
    if "search_seconds" in facts:
        parts.append(f"ours {ours['stages_s']['knn_graph']:.4f}")
    if num_rows < result["num_samples"]:
        parts.append(f"scaled from {num_rows:,} rows")
    if agreement:
        parts.append("labels equal" if agreement["equal"] else f"{agreement['differing_samples']:,} labels differ")
    part.add(result, f"{what} {name}: {', '.join(parts)}")
    if name == "dmic on the CPU" and not agreement["equal"]:
        part.fail(f"{what}: other labels than on the CPU")


# ---- all of them ----------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Part], None]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "kernels": kernels,
    "pipeline": pipeline,
}


def run_part(name: str, device: Callable[[], Gpu], folder: Path, command: str) -> int:
    """In this process. What has been found is on disk, whatever happens."""
    part = Part(name, device(), folder / f"gpu_{name}.json", command)
    print(f"gpu-check {name}: {part.device.describe()['device']}, {part.device.seconds[name]} s", flush=True)
    try:
        PARTS[name](part)
    except OutOfTimeError:
        part.skip("the rest")
    except subprocess.TimeoutExpired as error:
        part.fail(f"stopped after {error.timeout:.0f} s: {shlex.join(map(str, error.cmd))}")
    except Exception as error:
        traceback.print_exc()
        part.fail(f"{type(error).__name__}: {error}")
    if not (part.results or part.notes or part.failures):
        part.fail("nothing was reached")
    status = "failed" if part.failures else "passed"
    part.write(status)
    spent = time.monotonic() - part.started
    print(f"gpu-check {name}: {status} in {spent:.0f} s; {part.output.name}", flush=True)
    return int(bool(part.failures))


def run_all(device: type[Gpu], folder: Path, arguments: list[str], command: str) -> int:
    """Each part in a process of its own: one that crashes, hangs or loses the GPU is not the end of the others."""
    status = 0
    for name in PARTS:
        output = folder / f"gpu_{name}.json"
        output.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu_check", *arguments, "--part", name], cwd=ROOT)
        try:
            ended = process.wait(device.seconds[name] + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = None
        status |= int(ended != 0)
        document = json.loads(output.read_text()) if output.exists() else {"benchmark": f"gpu_{name}", "failures": []}
        if document.get("status") not in ("passed", "failed"):
            reason = "stopped: its time was up" if ended is None else f"ended with status {ended}"
            print(f"gpu-check {name}: {reason}", flush=True)
            write_json(output, document | {"status": "failed", "failures": [*document["failures"], reason]})
        if name == "build" and ended != 0:
            print("gpu-check: without a build there is nothing else to check")
            break
    print(f"gpu-check: {'all parts passed' if status == 0 else 'FAILED'}; results in {folder.name}", flush=True)
    return status


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="all", choices=("all", *PARTS), help="default: all, one after the other")
    parser.add_argument("--stand-in", action="store_true", help="the emulator in place of a GPU, at tiny sizes")
    parser.add_argument("--output", type=Path, help="folder; default: benchmarks/results, required with --stand-in")
    options = parser.parse_args(arguments)
    if options.stand_in and options.output is None:
        parser.error("--stand-in measures nothing: --output must name a folder away from the results")
    device = DEVICES["emulated" if options.stand_in else "cuda"]
    folder = (options.output or RESULTS).resolve()
    command = shlex.join(["python", "-m", "benchmarks.gpu_check", *arguments])
    if missing := device.missing():
        print(f"gpu-check: {missing}")
        return 1
    if options.part != "all":
        return run_part(options.part, device, folder, command)
    others = [argument for argument in arguments if argument not in ("--part", "all")]
    return run_all(device, folder, others, command)


if __name__ == "__main__":
    sys.exit(main())
