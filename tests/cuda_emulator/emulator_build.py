"""Builds the emulator with ninja under build/emulator: its own programs and the op library dmic_emu, incrementally.

The op layer is compiled a second time, as `dmic_emu`: its CPU dispatch key runs the CUDA wrappers, and their kernels
run in the emulator. Only kernels are instrumented for a sanitizer, so its libraries share every other object.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
OUTPUT = ROOT / "build" / "emulator"
KERNELS = sorted((CSRC / "cuda" / "kernels").glob("*.cu"))
# Stands in for torch's library, which is loaded when ours is: to link against its 450 MB takes longer than all the rest
TORCH = OUTPUT / "libtorch_cpu.so"
FAILING_MEMORY = OUTPUT / "libfailing_memory.so"
WRAPPERS = [HERE / "poll.cpp", CSRC / "registration.cpp", *sorted((CSRC / "cuda").glob("*.cpp"))]

CXX = os.environ.get("CXX", "c++")
WARNINGS = "-Wall -Wextra -Wno-unused-parameter -Wno-unknown-pragmas -Werror"
CXX_FLAGS = f"-O1 -g1 -fPIC -fvisibility=hidden -ffp-contract=off {WARNINGS}"
EMULATED_FLAGS = f"-std=c++17 -DDMIC_EMU -I{HERE} -I{CSRC / 'cuda' / 'kernels'} -x c++"
# -Ddmic=dmic_emu renames the library that the op layer registers, and its namespace
WRAPPER_FLAGS = "-std=c++20 -DDMIC_EMU -Ddmic=dmic_emu -DTORCH_TARGET_VERSION=0x020b000000000000 " + " ".join(
    f"-isystem {path}" for path in include_paths()
)
SANITIZERS = {
    "plain": "",
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer",
    "thread": "-fsanitize=thread",
}
RUNTIMES = {"plain": [], "address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
EXIT_CODE = 66  # of a process that a sanitizer stops


class BuildFile:
    """A ninja file in the making."""

    def __init__(self):
        self.lines = [
            f"cxx = {CXX}",
            "rule compile",
            f"  command = $cxx {CXX_FLAGS} $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $out",
            "rule link",
            "  command = $cxx $flags $in -o $out $libraries",
            "  description = link $out",
        ]

    def compile(self, output: Path, source: Path, flags: str) -> Path:
        self.lines += [f"build {output}: compile {source}", f"  flags = {flags}"]
        return output

    def link(self, output: Path, objects: Iterable[Path], flags: str, libraries: str) -> Path:
        self.lines += [f"build {output}: link {' '.join(map(str, objects))}"]
        self.lines += [f"  flags = {flags}", f"  libraries = {libraries}"]
        return output

    def kernel(self, output: Path, source: Path, sanitizer: str, flags: str = "") -> Path:
        return self.compile(output, source, f"{SANITIZERS[sanitizer]} {EMULATED_FLAGS} {flags}")

    def op_library(self, output: Path, kernels: Iterable[Path], sanitizer: str) -> Path:
        objects = [*kernels, *(OUTPUT / f"{source.stem}.o" for source in WRAPPERS), OUTPUT / "emulator.o", TORCH]
        return self.link(output, objects, f"-shared -Wl,--no-as-needed {SANITIZERS[sanitizer]}", "-lpthread -ldl")


def library(sanitizer: str = "plain") -> Path:
    return OUTPUT / sanitizer / "libdmic_emu.so"


def program(name: str, sanitizer: str = "plain") -> Path:
    return OUTPUT / sanitizer / name


def mutant_library(name: str, sanitizer: str) -> Path:
    return OUTPUT / "mutants" / name / f"{sanitizer}.so"


@dataclass(frozen=True)
class MutantSource:
    """A kernel file with one mistake, in itself or in a header that it includes."""

    stem: str
    file: str
    text: str
    sanitizer: str

    def write(self, folder: Path) -> Path:
        """Returns the kernel file, which finds the mutated header beside it."""
        kernel = next(path for path in KERNELS if path.stem == self.stem)
        texts = {kernel.name: kernel.read_text(), self.file: self.text}
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.cu*"):
            if path.name not in texts:  # of an older mutant with this name
                path.unlink()
        for name, text in texts.items():
            path = folder / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
        return folder / kernel.name


def build(targets: Iterable[Path], mutants: dict[str, MutantSource] | None = None) -> dict[str, str]:
    """Bring targets up to date. mutants: by name. Returns {name of a mutant that does not compile: the messages}."""
    ninja = BuildFile()
    ninja.compile(OUTPUT / "emulator.o", HERE / "emulator.cpp", "-std=c++20 -O2")
    ninja.compile(OUTPUT / "emulator_ucontext.o", HERE / "emulator.cpp", "-std=c++20 -O2 -DDMIC_EMU_UCONTEXT")
    ninja.link(TORCH, [], f"-shared -Wl,-soname,{TORCH.name} -x c++ {os.devnull}", "")
    failing_memory = ninja.compile(OUTPUT / "failing_memory.o", HERE / "failing_memory.cpp", "-std=c++20 -O2")
    ninja.link(FAILING_MEMORY, [failing_memory], "-shared", "-lpthread")
    for source in WRAPPERS:
        ninja.compile(OUTPUT / f"{source.stem}.o", source, WRAPPER_FLAGS)
    for sanitizer, flags in SANITIZERS.items():
        folder = OUTPUT / sanitizer
        for name in ("selftest", "bugs"):
            ninja.kernel(folder / f"{name}.o", HERE / f"{name}.cu", sanitizer)
            ninja.link(folder / name, [folder / f"{name}.o", OUTPUT / "emulator.o"], flags, "-lpthread")
        kernels = [ninja.kernel(folder / f"{source.stem}.o", source, sanitizer) for source in KERNELS]
        ninja.op_library(library(sanitizer), kernels, sanitizer)
    plain = OUTPUT / "plain"
    ninja.link(plain / "selftest_ucontext", [plain / "selftest.o", OUTPUT / "emulator_ucontext.o"], "", "-lpthread")
    for name, mutant in (mutants or {}).items():
        source, sanitizer = mutant.write(OUTPUT / "mutants" / name), mutant.sanitizer
        kernel = ninja.kernel(source.with_suffix(f".{sanitizer}.o"), source, sanitizer, "-g0 -w")
        others = [OUTPUT / sanitizer / f"{other.stem}.o" for other in KERNELS if other.stem != mutant.stem]
        ninja.op_library(mutant_library(name, sanitizer), [kernel, *others], sanitizer)
    messages = run_ninja("\n".join(ninja.lines) + "\n", targets)
    failed = [Path(line.split()[-1]) for line in messages.splitlines() if line.startswith("FAILED: ")]
    broken = {
        name: messages for name in mutants or {} if any(path.parent == OUTPUT / "mutants" / name for path in failed)
    }
    if messages and len(broken) < len(failed):
        raise RuntimeError(f"building the emulator failed:\n{messages}")
    return broken


def run_ninja(text: str, targets: Iterable[Path]) -> str:
    """Returns the messages if anything failed; builds what does not."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be at it
        (OUTPUT / "build.ninja").write_text(text)
        command = [find_ninja(), "-f", OUTPUT / "build.ninja", "-k", "0", "-j", str(os.cpu_count()), *targets]
        done = subprocess.run(command, cwd=OUTPUT, capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


def find_ninja() -> str:
    beside_python = Path(sys.executable).parent / "ninja"
    ninja = str(beside_python) if beside_python.exists() else shutil.which("ninja")
    if ninja is None:
        raise RuntimeError("building the emulator needs ninja: pip install ninja")
    return ninja


def runtime_path(name: str) -> str:
    """Of a library that comes with the compiler; its bare name if there is none."""
    command = [*shlex.split(CXX), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@cache
def absent_runtime(sanitizer: str) -> str | None:
    return next((name for name in RUNTIMES[sanitizer] if not Path(runtime_path(name)).is_absolute()), None)


def build_programs() -> None:
    """selftest and bugs, under every sanitizer that the compiler has."""
    targets = [program("selftest_ucontext")]
    for sanitizer in SANITIZERS:
        if not absent_runtime(sanitizer):
            targets += [program("selftest", sanitizer), program("bugs", sanitizer)]
    build(targets)


@cache
def missing(sanitizer: str) -> str | None:
    """Why programs under this sanitizer cannot run here, or None."""
    if absent := absent_runtime(sanitizer):
        return f"{CXX} has no {absent}"
    build_programs()
    done = run(program("bugs", sanitizer), sanitizer=sanitizer)
    return None if done.returncode == 0 else f"{sanitizer} sanitizer does not start here: {done.stderr.strip()[:200]}"


def environment(sanitizer: str, preload: bool = False) -> dict[str, str]:
    """The environment of a program under a sanitizer; `preload` for one that was not linked for it, such as Python."""
    options = f"exitcode={EXIT_CODE}"
    result = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # what is not instrumented must not look like a race
        "ASAN_OPTIONS": f"{options}:detect_leaks=0",  # Python and torch never free all they have
        "UBSAN_OPTIONS": f"{options}:print_stacktrace=1",
        "TSAN_OPTIONS": f"{options}:halt_on_error=1:die_after_fork=0",
    }
    if preload:
        result["LD_PRELOAD"] = " ".join(map(runtime_path, RUNTIMES[sanitizer]))
    return result


def run(*command, sanitizer: str = "plain", preload: bool = False, timeout: float = 600) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)),
        env=environment(sanitizer, preload),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
