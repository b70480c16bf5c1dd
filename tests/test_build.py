"""What setup.py says of the CUDA kernels: registers, shared memory and spills, and when they fail the build."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import warnings
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]

PREFIX = "_ZN4dmic45_GLOBAL__N__03742104_12_knn_graph_cu_1b029ca6"
PLAIN = f"{PREFIX}23knn_graph_finish_kernelEPKfPKdlllPKmlPKiS2_PKhPiPfSB_Py"
TEMPLATE = f"{PREFIX}24knn_graph_compare_kernelINS0_4TileILi2ELi4ELi4ELi8EEEEEvPKtlllllPKNS0_5BoundEPKfPmlPi"


def report(name: str, arch: str, registers: int, shared: str = "", stack: int = 0, spilled: int = 0) -> str:
    """As ptxas -v of CUDA 13 prints it."""
    return (
        f"ptxas info    : Compiling entry function '{name}' for '{arch}'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"    {stack} bytes stack frame, {spilled} bytes spill stores, {2 * spilled} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers, {shared}440 bytes cmem[0]\n"
        "ptxas info    : Compile time = 284.907 ms\n"
    )


@pytest.fixture
def build(monkeypatch, tmp_path):
    """The functions of setup.py, which is run without its last call and writes to an empty folder."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = runpy.run_path(str(ROOT / "setup.py"))
    functions = names["report_usage"].__globals__
    monkeypatch.setitem(functions, "ROOT", tmp_path)
    return functions


def test_every_kernel_and_architecture_is_reported(build):
    text = (
        "ptxas info    : 0 bytes gmem\n"
        + report(TEMPLATE, "sm_80", 225)
        + report(PLAIN, "sm_80", 96, "1072 bytes smem, ")
    )
    text += report(TEMPLATE, "sm_90", 226, stack=8, spilled=4)
    assert build["kernel_usage"](Path("knn_graph.cu"), text) == [
        usage("knn_graph_compare_kernel<Tile<2, 4, 4, 8>>", "sm_80", 225),
        usage("knn_graph_finish_kernel", "sm_80", 96, shared_bytes=1072),
        usage("knn_graph_compare_kernel<Tile<2, 4, 4, 8>>", "sm_90", 226, stack_bytes=8, spilled_bytes=12),
    ]


def usage(kernel: str, arch: str, registers: int, **others: int) -> dict:
    return (
        {"kernel": kernel, "arch": arch, "registers": registers}
        | dict.fromkeys(("shared_bytes", "stack_bytes", "spilled_bytes"), 0)
        | others
    )


def test_a_report_that_is_not_understood_is_no_report_without_spills(build):
    with pytest.raises(RuntimeError, match=r"knn_graph\.cu in a way that is not understood"):
        build["kernel_usage"](Path("knn_graph.cu"), report(PLAIN, "sm_80", 96).replace("registers", "regs"))


@pytest.mark.parametrize(
    ("readable", "name"),
    [
        (
            "void dmic::(anonymous namespace)::join_kernel<true, (dmic::Mode)1>(float, dmic::List<3> const*)",
            "join_kernel<true, (Mode)1>",
        ),
        ("dmic::_GLOBAL__N__1b029ca6::join_kernel(dmic::List<3> const*)", "join_kernel"),
    ],
)
def test_names_are_short(build, monkeypatch, readable, name):
    done = type("Done", (), {"stdout": readable + "\n"})
    monkeypatch.setattr(shutil, "which", lambda _: "c++filt")
    monkeypatch.setattr(build["subprocess"], "run", lambda *_, **__: done)
    assert build["kernel_names"](["_Z"]) == [name]


def test_names_without_the_tool_that_makes_them_readable(build, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert build["kernel_names"]([PLAIN, TEMPLATE]) == ["knn_graph_finish_kernel", "knn_graph_compare_kernel"]


def test_a_table_and_a_file_say_the_same(build, tmp_path, capsys):
    uses = [usage("a_kernel", "sm_80", 40), usage("b_kernel<int>", "sm_80", 255, shared_bytes=16)]
    uses += [usage("a_kernel", "sm_90", 41), usage("b_kernel<int>", "sm_90", 254)]
    build["report_usage"](uses, True)
    header, a, b, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["dmic:", "kernel", "arch", "registers", "shared", "stack", "spilled"]
    assert a.split() == ["dmic:", "a_kernel", "sm_80", "sm_90", "40", "41", *["0"] * 6]
    assert b.split() == ["dmic:", "b_kernel<int>", "sm_80", "sm_90", "255", "254", "16", *["0"] * 5]
    assert total == "dmic: 2 kernels, at most 255 registers, none spills; see build/kernels.json"
    assert json.loads((tmp_path / "build" / "kernels.json").read_text()) == uses
    build["report_usage"](uses, False)
    assert capsys.readouterr().out == total + "\n"


@pytest.mark.parametrize("excused", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_a_kernel_that_spills_fails_a_strict_build(build, monkeypatch, capsys, strict, excused):
    monkeypatch.setitem(build, "WERROR", strict)
    monkeypatch.setitem(build, "MAY_SPILL", {"b_kernel": "runs once"} if excused else {})
    uses = [usage("a_kernel", "sm_80", 40), usage("b_kernel<int>", "sm_90", 255, spilled_bytes=8)]
    if strict and not excused:
        with pytest.raises(RuntimeError, match=r"kernels must not spill registers: b_kernel<int>$"):
            build["report_usage"](uses, False)
    else:
        build["report_usage"](uses, False)
    assert "these spill: b_kernel<int>;" in capsys.readouterr().out


def test_every_kernel_of_this_build_is_in_the_file():
    output = ROOT / "build" / "kernels.json"
    if not output.exists():
        pytest.skip("this build has no CUDA kernels")
    built = {use["kernel"].partition("<")[0] for use in json.loads(output.read_text())}
    definition = re.compile(r"__global__ void\s+(?:__launch_bounds__\([^()]*\)\s+)?(\w+)\(")
    sources = (ROOT / "csrc" / "cuda" / "kernels").glob("*.cu")
    assert built == {name for path in sources for name in definition.findall(path.read_text())}
