"""`make gpu-check` before there is a GPU: all of it with the emulator in place of one, and every way it can end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from generators import gallery

import dmic
from benchmarks import costs, gpu_baselines, gpu_check
from benchmarks.gpu_device import Gpu, StandIn
from benchmarks.sizes import generate_gallery_on

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("build", "tests", "sanitizer", "kernels", "pipeline")
OPS = ("round_features", "knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan")


# ---- the whole command ----------------------------------------------------------------------------------------------


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, arguments)]
    options = {"env": {**os.environ, **environment}, "capture_output": True, "text": True, "timeout": 900}
    return subprocess.run(command, cwd=ROOT, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    """Everything, once: what it printed, its documents and the arguments that compute-sanitizer was given."""
    folder = tmp_path_factory.mktemp("results")
    log = folder / "sanitizer.log"
    done = run("--stand-in", "--output", folder, FAKE_SANITIZER_LOG=str(log))
    assert done.returncode == 0, done.stdout + done.stderr
    documents = {part: json.loads((folder / f"gpu_{part}.json").read_text()) for part in PARTS}
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    return SimpleNamespace(text=done.stdout, documents=documents, sanitizer_calls=calls)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_says_what_it_did_and_where(finished, part):
    document = finished.documents[part]
    assert document["benchmark"] == f"gpu_{part}"
    assert (document["status"], document["failures"], document["not_reached"]) == ("passed", [], [])
    assert document["results"]
    assert document["stand_in"] is True
    assert set(document) >= {"command", "commit", "date", "machine", "versions", "seconds", "seconds_allowed"}
    assert document["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert f"gpu-check {part}: passed in " in finished.text


def test_the_build_lists_its_kernels(finished):
    (result,) = finished.documents["build"]["results"]
    assert result["exit_status"] == 0
    assert any("dmic: building CPU kernels" in line for line in result["report"])


def test_tests_really_run(finished):
    (result,) = finished.documents["tests"]["results"]
    assert result["failed"] == 0
    assert result["passed"] > 20


def test_every_sanitizer_runs_every_op(finished):
    results = {result["tool"]: result for result in finished.documents["sanitizer"]["results"]}
    assert set(results) == set(gpu_check.SANITIZER_TOOLS)
    assert {result["exit_status"] for result in results.values()} == {0}
    ran = results["memcheck"]["report"]
    assert ran.count("the bits of the CPU") == 9
    assert "OTHER" not in ran
    program = [sys.executable, "-m", "benchmarks.every_op", "--device", "emulated"]
    given = {call[call.index("--tool") + 1]: call for call in finished.sanitizer_calls if "--tool" in call}
    for tool in gpu_check.SANITIZER_TOOLS:
        options = ["--tool", tool, "--error-exitcode", "86", "--print-limit", "20"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        options += [] if tool == "initcheck" else ["--kernel-name", "kns=4dmic"]
        assert given[tool] == [*options, *program]


def test_every_op_is_measured_at_every_size(finished):
    results = finished.documents["kernels"]["results"]
    found = {(r["op"], r["num_samples"], r["dim"], r.get("k1")) for r in results}
    searches = [k1 for k1, _ in StandIn.searches]
    sizes = [(n, dim) for n in StandIn.sizes for dim in StandIn.dims]
    want = {(op, *size, k1) for op in OPS[1:] for size in sizes for k1 in searches}
    assert found == want | {("round_features", *size, None) for size in sizes}
    for result in results:
        seconds = result["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert len(seconds["repeats"]) == StandIn.repeats
        assert 0 < result["floor_seconds"] <= result["expected_seconds"]
        assert result["fraction_of_floor"] == result["floor_seconds"] / seconds["median"]
        assert result["peak_bytes"] >= 0
        assert (result["op"] == "knn_graph") == ("num_redone" in result)


def test_the_pipeline_is_compared_with_every_baseline(finished):
    results = finished.documents["pipeline"]["results"]
    ours = [r for r in results if r["method"] == "dmic"]
    assert len(ours) == len(StandIn.sizes) * len(StandIn.dims) * len(StandIn.searches)
    for result in ours:
        assert tuple(result["stages_s"]) == OPS[1:]
        assert result["num_clusters"] > 1
    small = {r["method"]: r for r in results if r["num_samples"] == StandIn.sizes[0] and r["method"] != "dmic"}
    searches = {f"torch float{bits} mm and topk" for bits in (16, 32)}
    exact = {"published dense pipeline on torch", "dmic on the CPU", "sparse matrices of cupy"}
    assert set(small) == searches | exact
    for name, result in small.items():
        assert result["rows_searched"] == StandIn.sizes[0]
        assert result["seconds"] > 0
        assert result["labels_against_dmic"]["equal"] or name not in exact
    large = {r["method"]: r for r in results if r["num_samples"] == StandIn.sizes[1] and r["method"] != "dmic"}
    assert set(large) == searches
    scaled = large["torch float32 mm and topk"]
    assert scaled["rows_searched"] < StandIn.sizes[1]
    assert (scaled["seconds"], scaled["labels_against_dmic"]) == (None, None)
    assert scaled["search_seconds"] > 0


# ---- how it can end -------------------------------------------------------------------------------------------------


def part_of(tmp_path: Path, name: str, seconds: float = 60) -> gpu_check.Part:
    class Device(StandIn):
        def prepare(self) -> None:
            """The CPU will do."""

    Device.seconds = dict.fromkeys(PARTS, seconds)
    return gpu_check.Part(name, Device(), tmp_path / f"gpu_{name}.json", "python -m benchmarks.gpu_check")


def run_part(part: gpu_check.Part) -> dict:
    status = gpu_check.run_part(part.name, lambda: part.device, part.output.parent, part.command)
    document = json.loads(part.output.read_text())
    assert status == (document["status"] == "failed")
    return document


def test_a_part_without_time_reaches_nothing_and_says_so(tmp_path, capsys):
    document = run_part(part_of(tmp_path, "kernels", seconds=0))
    assert document["not_reached"] == [f"N={n:,} d={dim}" for n in StandIn.sizes for dim in StandIn.dims]
    assert document["failures"] == ["nothing was reached"]
    assert "not reached: N=60 d=16" in capsys.readouterr().out


def test_time_that_is_up_in_the_middle_stops_an_op_and_keeps_what_was_found(tmp_path, monkeypatch):
    """The ops call back while they run: here the second op of the first size."""
    part = part_of(tmp_path, "kernels")

    def slow(*_, progress, **__):
        part.device.seconds = {"kernels": 0}
        progress("k_reciprocal_encoding", 0, 1)
        raise AssertionError("was not stopped")

    monkeypatch.setattr(dmic.ops, "k_reciprocal_encoding", slow)
    document = run_part(part)
    assert document["status"] == "passed"
    assert [result["op"] for result in document["results"]] == ["round_features", "knn_graph"]
    assert document["not_reached"][0] == "N=60 d=16 k1=6 k2=3, in part"
    assert len(document["not_reached"]) == 5


def test_an_op_that_fails_fails_its_part_and_keeps_what_was_found(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(dmic.ops, "invariant_expansion", broken)
    document = run_part(part_of(tmp_path, "kernels"))
    assert document["failures"] == ["RuntimeError: an illegal memory access was encountered"]
    assert len(document["results"]) == 3


def test_labels_that_differ_from_the_cpu_fail_the_pipeline(tmp_path, monkeypatch):
    compare = gpu_baselines.compare_labels
    monkeypatch.setattr(
        gpu_baselines, "compare_labels", lambda *labels: compare(*labels) | {"equal": False, "differing_samples": 7}
    )
    document = run_part(part_of(tmp_path, "pipeline"))
    assert document["failures"] == ["N=60        d=16    k1=6 k2=3  : other labels than on the CPU"]


def test_a_baseline_that_fails_is_a_note(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr(gpu_baselines, "published", broken)
    document = run_part(part_of(tmp_path, "pipeline"))
    assert document["status"] == "passed"
    (note,) = document["notes"]
    assert note.endswith("published dense pipeline on torch: OutOfMemoryError: CUDA out of memory.")


def test_a_sanitizer_that_finds_something_fails_its_part(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SANITIZER_FINDS", "racecheck")
    monkeypatch.setattr(gpu_check, "SANITIZER_TOOLS", ("racecheck", "synccheck"))
    document = run_part(part_of(tmp_path, "sanitizer"))
    assert {r["tool"]: r["exit_status"] for r in document["results"]} == {"racecheck": 86, "synccheck": 0}
    (failure,) = document["failures"]
    assert re.match(r"racecheck: =+ ERROR SUMMARY: 1 error", failure)


def test_no_sanitizer_is_a_note(tmp_path):
    part = part_of(tmp_path, "sanitizer")
    part.device.sanitizer = lambda: None
    assert run_part(part)["notes"] == ["skipped: compute-sanitizer was not found on PATH or beside nvcc"]


def test_a_sanitizer_without_filters_checks_everything():
    for option in ("--kernel-name", "--kernel-regex"):
        assert gpu_check.kernels_only([sys.executable, "-c", f"print('{option}')"]) == [option, "kns=4dmic"]
    assert gpu_check.kernels_only([sys.executable, "-c", ""]) == []


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (
            "import sys; print('dmic: kernels'); sys.exit('no compiler')",
            r"the build ended with status 1\n.*no compiler",
        ),
        ("import time; time.sleep(60)", r"stopped after 1 s: .*"),
    ],
)
def test_a_build_that_fails_or_takes_too_long(tmp_path, code, failure):
    part = part_of(tmp_path, "build", seconds=1.4)
    part.device.build_command = lambda: [sys.executable, "-c", code]
    (found,) = run_part(part)["failures"]
    assert re.match(failure, found, re.DOTALL)


def test_a_part_that_crashes_or_hangs_is_ended_and_named(tmp_path, monkeypatch, capsys):
    """The processes of the parts: one builds, one is killed, one has no time, one passes, one ends without a word."""
    codes = ["passed", "os.abort()", "time.sleep(60)", "passed", "pass"]
    start = subprocess.Popen

    def popen(command, **options):
        name = command[-1]
        path = tmp_path / f"gpu_{name}.json"
        write = f"open({str(path)!r}, 'w').write(json.dumps(dict(status='passed', failures=[])))"
        code = codes[PARTS.index(name)].replace("passed", write)
        return start([sys.executable, "-c", f"import json, os, time; {code}"], **options)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    monkeypatch.setattr(gpu_check, "GRACE_SECONDS", 0)
    device = type("Device", (StandIn,), {"seconds": dict.fromkeys(PARTS, 2)})
    assert gpu_check.run_all(device, tmp_path, ["--stand-in"], "command") == 1
    documents = [json.loads((tmp_path / f"gpu_{part}.json").read_text()) for part in PARTS]
    assert [document["status"] for document in documents] == ["passed", "failed", "failed", "passed", "failed"]
    assert documents[1]["failures"] == ["ended with status -6"]
    assert documents[2]["failures"] == ["stopped: its time was up"]
    assert documents[4]["failures"] == ["ended with status 0"]
    assert "gpu-check: FAILED" in capsys.readouterr().out


def test_results_name_no_folder_of_the_machine(tmp_path):
    folder = "/" + "opt"
    written = {"failures": [f'File "{folder}/torch/.venv/lib/x.py", line 3', "tests/ops/test_dbscan.py failed, 1/2"]}
    gpu_check.write_json(tmp_path / "a.json", written | {"command": f"{folder}/bin/python3 -m benchmarks.every_op"})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "failures": ['File "x.py", line 3', "tests/ops/test_dbscan.py failed, 1/2"],
        "command": "python3 -m benchmarks.every_op",
    }


def test_without_a_gpu_it_says_what_is_missing():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("--part", "kernels")
    assert done.returncode == 1
    assert re.fullmatch(r"gpu-check: torch (finds no GPU; .*|.* has no CUDA)\n", done.stdout)


def test_the_stand_in_writes_no_results_of_its_own_accord():
    assert "--output must name a folder away from the results" in run("--stand-in").stderr


# ---- what only a GPU would run --------------------------------------------------------------------------------------


def test_the_parts_fit_in_eight_minutes():
    most = sum(Gpu.seconds.values()) + len(PARTS) * gpu_check.GRACE_SECONDS
    assert set(Gpu.seconds) == set(PARTS)
    assert most <= 8 * 60


def test_the_gpu_is_asked_for_what_torch_has(monkeypatch):
    """Every call of the real device, on a torch whose GPU is made up of the names that torch knows."""
    known = torch._C._CudaDeviceProperties if torch.version.cuda else None
    asked: dict[str, object] = {"name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132}
    asked |= {"total_memory": 80 << 30, "L2_cache_size": 50 << 20}
    assert known is None or all(hasattr(known, name) for name in asked)

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None: ...

        def elapsed_time(self, end: object) -> float:
            assert end is not self
            return 12.5

    memory = iter([100, 350])
    for name, stand_in in {
        "get_device_properties": lambda _: SimpleNamespace(**asked),
        "synchronize": lambda _: None,
        "Event": Event,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda _: None,
        "memory_allocated": lambda _: next(memory),
        "max_memory_allocated": lambda _: next(memory),
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, stand_in)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: empty(16, dtype=dtype))
    gpu = Gpu()
    gpu.prepare()
    assert gpu.run_timed(lambda: "result") == ("result", 0.0125)
    gpu.reset_peak()
    assert gpu.peak_bytes() == 250
    described = gpu.describe()
    assert described["device"] == "NVIDIA H100"
    assert described["architecture"] == "sm_90"
    assert set(described) >= {"driver", "cuda", "memory_bytes", "multiprocessors"}


def test_a_driver_is_found_where_there_is_one(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$*" = "--query-gpu=driver_version --format=csv,noheader --id=0" ] && echo 580.1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert Gpu._driver() == "580.1"
    monkeypatch.setenv("PATH", "")
    assert Gpu._driver() is None


def test_the_sanitizer_is_found_beside_nvcc(monkeypatch, tmp_path):
    for name in ("nvcc", "compute-sanitizer"):
        (tmp_path / "toolkit").mkdir(exist_ok=True)
        (tmp_path / "toolkit" / name).write_text("#!/bin/sh\n")
        (tmp_path / "toolkit" / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(tmp_path / "toolkit" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert Gpu.sanitizer() == [str(tmp_path / "toolkit" / "compute-sanitizer")]
    (tmp_path / "toolkit" / "compute-sanitizer").unlink()
    assert Gpu.sanitizer() is None


def test_what_the_gpu_runs_exists():
    paths = [argument for argument in Gpu.tests if argument.startswith("tests/")]
    assert paths
    assert all((ROOT / path).exists() for path in paths)
    assert Gpu.build_command()[1:] == ["setup.py", "build_ext", "--inplace"]
    assert len(Gpu.sizes) == len(set(Gpu.sizes)) == 5
    assert set(Gpu.published_sizes) | set(Gpu.sparse_sizes) | set(gpu_check.TARGETS) <= set(Gpu.sizes)


# ---- baselines ------------------------------------------------------------------------------------------------------


def test_the_published_pipeline_gives_our_labels():
    made = gallery(400, 24, noise=1.0)
    inputs = {name: torch.from_numpy(getattr(made, name)) for name in ("features", "camera_ids", "modality_ids")}
    settings = {"k1": 20, "k2": 6, "eps": 0.55, "min_samples": 3}
    labels = gpu_baselines.published(**inputs, **settings)
    assert len(labels.unique()) > 10
    assert torch.equal(labels, dmic.pseudo_labels(**inputs, **settings).labels)


def test_a_gallery_on_a_device_is_like_the_benchmarks_gallery():
    made = generate_gallery_on(torch.device("cpu"), 500, 48, images_per_identity=20)
    again = generate_gallery_on(torch.device("cpu"), 500, 48, images_per_identity=20)
    assert torch.equal(made.features, again.features)
    assert (made.features.norm(dim=1) < 1).all()
    labels = dmic.pseudo_labels(made.features, k1=15, k2=5).labels
    assert 15 < len(labels.unique()) < 40
    assert set(made.camera_ids.tolist()) == set(range(6))


@pytest.mark.parametrize(
    ("labels", "want", "equal", "differing"),
    [
        ([0, 0, 1, 1, -1], [0, 0, 1, 1, -1], True, 0),
        ([0, 0, 1, 1, -1], [1, 1, 0, 0, -1], False, 0),
        ([0, 0, 1, 1, -1], [0, 0, 1, -1, -1], False, 1),
        ([0, 0, 0, 0, 0], [0, 0, 0, 1, 1], False, 2),
        ([-1, -1, -1], [0, 0, 0], False, 3),
    ],
)
def test_labels_are_compared_up_to_renumbering(labels, want, equal, differing):
    found = gpu_baselines.compare_labels(torch.tensor(labels), torch.tensor(want))
    assert (found["equal"], found["differing_samples"]) == (equal, differing)
    assert found["equal_up_to_renumbering"] == (differing == 0)


# ---- predictions ----------------------------------------------------------------------------------------------------


def test_the_page_of_the_kernels_has_the_numbers_of_the_table():
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert page == costs.page_with_prediction(), "run python -m benchmarks.costs --write"
    assert costs.BEGIN in page
    assert costs.END in page


def test_every_kernel_has_its_costs():
    definition = re.compile(r"__global__ void\s+(?:__launch_bounds__\([^()]*\)\s+)?(\w+)\(")
    sources = (ROOT / "csrc" / "cuda" / "kernels").glob("*.cu")
    kernels = {name for path in sources for name in definition.findall(path.read_text())}
    assert {kernel.name for kernel in costs.KERNELS} == kernels
    assert {kernel.op for kernel in costs.KERNELS} == set(OPS)


def test_more_work_takes_longer_and_no_prediction_beats_its_floor():
    for kernel in costs.KERNELS:
        small, large = costs.Size(10_000, 512, num_redone=1), costs.Size(100_000, 2048, num_redone=10)
        assert kernel.floor_seconds(small) <= kernel.floor_seconds(large)
        assert kernel.floor_seconds(large) <= kernel.expected_seconds(large)
        assert set(kernel.work(large)) <= set(costs.PEAK)
    assert all(costs.EXPECTED[rate] <= peak for rate, peak in costs.PEAK.items())


def test_the_search_of_a_million_is_as_fast_as_one_triangle_allows():
    """N^2 d operations at the peak of the tensor cores."""
    size = costs.Size(1_000_000, 2048)
    compare = next(kernel for kernel in costs.KERNELS if kernel.name == "knn_graph_compare_kernel")
    assert compare.work(size)["tensor"] == 1e12 * 2048
    assert compare.expected_seconds(size) > 1e12 * 2048 / 450e12


# ---- tests on a machine that lacks packages -------------------------------------------------------------------------


def test_tests_of_an_absent_package_are_skipped_by_name(tmp_path):
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport absent\n"
        "plugin = absent.Plugin(('nosuch',))\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(plugin)\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import importlib, pytest\n"
        "import nosuch.inner\n"
        "from nosuch import given, settings, strategies as st\n"
        "DATA = nosuch.inner.matrix((2, 2))\n"
        "@settings(max_examples=3)\n@given(st.integers(1, 2))\n"
        "def test_decorated(number): assert False\n"
        "def test_calls(): assert nosuch.inner.function(3) == 4\n"
        "def test_imports(): import nosuch\n"
        "@pytest.mark.parametrize('data', [DATA])\n"
        "def test_is_given(data): assert False\n"
        "@pytest.fixture\ndef made(): return importlib.import_module('nosuch.inner')\n"
        "def test_fixture(made): assert False\n"
        "def test_needs_nothing(): pass\n"
        "def test_other_packages_are_errors(): import nosuch_either\n"
    )
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed, 5 skipped" in done.stdout, done.stdout
    assert "PASSED test_it.py::test_needs_nothing" in done.stdout
    assert "FAILED test_it.py::test_other_packages_are_errors" in done.stdout
    assert len(re.findall(r"nosuch is not installed$", done.stdout, re.M)) >= 1
    assert "not installed, and tests that use them are skipped: nosuch" in done.stdout
