"""The layout is a promise: dependencies point one way, an op is one word-stem, no trace of a machine is tracked."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "dmic"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
OPS = re.findall(r'm\.def\(\s*"(\w+)\(', (CSRC / "registration.cpp").read_text())

# Ops that are pieces of another op and share its code: their files are those of the other one.
PIECES = dict.fromkeys(("k_reciprocal_sets", "sampled_dots", "k_reciprocal_weights"), "k_reciprocal_encoding")
STEMS = {op: PIECES.get(op, op) for op in OPS}

# What the ops are made of. The rest of the package may use these; they know nothing of the rest.
FOUNDATION = {"_version", "constants", "_arrays", "csr", "reference", "_native", "directions", "ops"}
MAY_LOAD_THE_LIBRARY = {"__init__", "ops", "doctor", "_native"}


@cache
def project_files() -> list[Path]:
    """What is tracked, or would be if it were added: no build products, nothing ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def text_files() -> list[tuple[Path, str]]:
    contents = ((path, path.read_bytes()) for path in project_files())
    return [(path.relative_to(ROOT), data.decode()) for path, data in contents if b"\0" not in data]


def imported(module: str, nested: bool = True) -> set[str]:
    """Modules of the package that a module imports; `nested` also counts imports inside functions."""
    tree = ast.parse(MODULES[module].read_text())
    is_package = MODULES[module].name == "__init__.py"
    own_package = [part for part in module.split(".") if part != "__init__"][: None if is_package else -1]
    found: set[str] = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("dmic.") for alias in node.names if alias.name.startswith("dmic.")}
        elif isinstance(node, ast.ImportFrom):
            path = node.module.split(".") if node.module else []
            if node.level:
                base = own_package[: len(own_package) - node.level + 1] + path
            elif path[:1] == ["dmic"]:
                base = path[1:]
            else:
                continue
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.add(inner if inner in MODULES or inner == "_C" else ".".join(base))
    return found - {""}


def included(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".inl"}]


def test_there_is_something_to_check():
    assert {"knn_graph", "k_reciprocal_encoding", "invariant_expansion", "jaccard_distance", "dbscan"} <= set(OPS)
    assert set(MODULES) >= FOUNDATION
    assert imported("ops") >= {"_arrays", "_native", "csr"}
    assert len(sources(CSRC)) > 10


@pytest.mark.parametrize("folder", ["cuda/kernels", "cuda/compat", "canonical"])
def test_kernels_know_no_torch_and_no_python(folder):
    assert sources(CSRC / folder)
    for path in sources(CSRC / folder):
        wrong = [name for name in included(path) if re.match(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h", name)]
        assert not wrong, f"{path.relative_to(ROOT)} includes {wrong}"


def test_kernels_include_only_kernels_compat_and_canonical_headers():
    for path in sources(CSRC / "cuda" / "kernels"):
        local = [name for name in included(path) if (path.parent / name).exists()]
        for name in local:
            folder = (path.parent / name).resolve().parent.relative_to(CSRC).as_posix()
            assert folder in {"cuda/kernels", "cuda/compat", "canonical"}, f"{path.name} includes {name}"


def test_the_cpu_does_not_depend_on_cuda():
    for folder in ("cpu", "ops", "canonical"):
        for path in sources(CSRC / folder):
            wrong = [name for name in included(path) if "cuda" in name]
            assert not wrong, f"{path.relative_to(ROOT)} includes {wrong}"


def test_slow_and_unstable_headers_are_nowhere():
    banned = {"torch/extension.h", "torch/all.h", "torch/torch.h", "ATen/ATen.h", "ATen/cuda/CUDAContext.h"}
    for path in sources(CSRC):
        assert not banned.intersection(included(path)), path.relative_to(ROOT)


@pytest.mark.parametrize("module", sorted(FOUNDATION))
def test_the_ops_know_no_training(module):
    assert imported(module) - {"_C"} <= FOUNDATION


def test_only_the_ops_and_the_doctor_load_the_library():
    for module in set(MODULES) - MAY_LOAD_THE_LIBRARY:
        assert not {"_native", "_C"} & imported(module), module
        if module not in FOUNDATION:
            assert "torch.ops" not in MODULES[module].read_text(), f"{module} goes around dmic.ops"


def test_imports_have_no_cycle():
    TopologicalSorter({module: imported(module, nested=False) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_found_under_its_name_in_every_place(op):
    stem = STEMS[op]
    for place, wanted in (
        (CSRC / "ops" / f"{stem}.h", rf"// {op}\("),
        (CSRC / "ops" / f"{stem}.h", rf"void check_{op}_args\("),
        (CSRC / "cpu" / f"{stem}_cpu.cpp", rf'impl\("{op}"'),
        (CSRC / "cuda" / f"{stem}_cuda.cpp", rf'impl\("{op}"'),
        (ROOT / "tests" / "ops" / f"test_{stem}.py", rf"backend\.{op}\("),
        (ROOT / "tests" / "cuda_emulator" / "kernels" / f"{stem}.py", rf'"{op}"'),
    ):
        assert re.search(wanted, place.read_text()), f"{place.relative_to(ROOT)} has no {wanted}"
    for module in ("ops", "reference"):
        assert f"\ndef {op}(" in MODULES[module].read_text(), f"dmic/{module}.py has no function {op}"
    assert f'register_fake("dmic::{op}")' in MODULES["ops"].read_text()
    benchmarks = ROOT / "benchmarks"
    assert f'"{op}"' in (benchmarks / "suite.py").read_text()
    assert f"void measured_{op}(" in (benchmarks / "callgrind" / "driver.cpp").read_text()


def test_an_op_on_the_gpu_has_a_kernel_of_its_name_and_the_other_way_round():
    registered = {path.name.removesuffix("_cuda.cpp") for path in (CSRC / "cuda").glob("*_cuda.cpp")}
    kernels = {path.stem for path in (CSRC / "cuda" / "kernels").glob("*.cu")}
    assert "round_features" in registered
    assert registered == set(STEMS.values())
    assert kernels - registered == {"input_checks"}, "kernel files of no op"
    assert registered <= kernels
    assert {path.stem for path in (CSRC / "cuda" / "kernels").glob("*.cuh")} >= kernels


def test_every_source_of_an_op_belongs_to_a_schema():
    for folder, suffix in (("ops", ".h"), ("cpu", "_cpu.cpp"), ("cuda", "_cuda.cpp")):
        stems = {path.name.removesuffix(suffix) for path in (CSRC / folder).glob(f"*{suffix}")}
        assert stems - {"checks"} <= set(STEMS.values()), folder


def test_no_file_is_larger_than_a_megabyte():
    assert not [path.name for path in project_files() if path.stat().st_size > 1_000_000]


def test_no_path_of_a_machine_is_written_down():
    path_of_a_machine = re.compile(r"(?<![\w.}$-])/(work|opt|tmp|root|home|mnt)/\w")
    for path, text in text_files():
        found = path_of_a_machine.search(text)
        assert not found, f"{path} mentions {found[0]}"


def test_punctuation_is_plain():
    """Typographic dashes, quotes and spaces come from pasted text and break searches."""
    for path, text in text_files():
        found = re.search("[\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00a0\u200b]", text)
        assert not found, f"{path} has {found[0]!r} in {text[max(0, found.start() - 30) : found.end() + 30]!r}"
