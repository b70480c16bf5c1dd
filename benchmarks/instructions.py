"""Instructions that every CPU op executes on a small fixed input, counted by callgrind: a time that repeats.

    python -m benchmarks.instructions            # counts, against what is recorded
    python -m benchmarks.instructions --write    # records; for a change that is worth its instructions

One thread and AVX2 (valgrind knows no AVX-512), without torch, whose start takes minutes under valgrind. Another
compiler makes other instructions, so a record holds for one major version of one compiler.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "csrc" / "cpu").glob("*.cpp")), Path(__file__).parent / "callgrind" / "driver.cpp"]
OUTPUT = ROOT / "build" / "instructions"
RECORD = Path(__file__).parent / "results" / "instructions.json"
CXX = shlex.split(os.environ.get("CXX", "c++"))
FLAGS = (
    f"-std=c++20 -O3 -g0 -ffp-contract=off -fvisibility=hidden -I{Path(__file__).parent / 'callgrind'}"  # setup.py's
)
LEVEL = "avx2"
MAX_GROWTH = 1.10
COUNT = re.compile(r"^\s*([\d,]+) .*:measured_(\w+) ", re.MULTILINE)


def compiler() -> str:
    """Its first line about itself, such as `c++ (Debian 12.2.0-14) 12.2.0`."""
    return subprocess.run([*CXX, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def major(description: str) -> str:
    """The compiler without its minor versions: `gcc 12`, `clang 16`."""
    numbers = re.findall(r"(?<![\d.])(\d+)\.\d+", description)
    return f"{'clang' if 'clang' in description else 'gcc'} {numbers[-1] if numbers else description}"


def recorded() -> dict:
    return json.loads(RECORD.read_text())


def reason_not_to_count() -> str | None:
    """What this machine lacks, with the next step."""
    for program, package in (("valgrind", "valgrind"), ("callgrind_annotate", "valgrind"), ("ninja", "ninja-build")):
        if not find(program):
            return f"{program} was not found; on Debian and Ubuntu: apt install {package}"
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or LEVEL not in cpuinfo.read_text():
        return f"this processor has no {LEVEL}"
    return None


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def build() -> Path:
    """The driver with every CPU op, up to date."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    lines = [
        "rule compile",
        f"  command = {shlex.join(CXX)} {FLAGS} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {shlex.join(CXX)} $in -o $out",
        *(f"build {source.stem}.o: compile {source}" for source in SOURCES),
        f"build driver: link {' '.join(f'{source.stem}.o' for source in SOURCES)}",
    ]
    (OUTPUT / "build.ninja").write_text("\n".join(lines) + "\n")
    done = subprocess.run([find("ninja"), "driver"], cwd=OUTPUT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"building {OUTPUT / 'driver'} failed:\n{done.stdout}{done.stderr}")
    return OUTPUT / "driver"


def count(driver: Path) -> dict[str, int]:
    """Instructions by op."""
    profile = OUTPUT / "callgrind.out"
    collect = ["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=measured_*"]
    commands = (
        [find("valgrind"), *collect, f"--callgrind-out-file={profile}", driver, LEVEL],
        [find("callgrind_annotate"), "--inclusive=yes", "--threshold=100", profile],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return {op: int(number.replace(",", "")) for number, op in COUNT.findall(done.stdout)}


def grown(counts: dict[str, int], before: dict[str, int]) -> list[str]:
    """A line for every op that now needs more than MAX_GROWTH of what it needed, or that only one of the two has."""
    lines = [f"{op}: only {'counted' if op in counts else 'recorded'}" for op in sorted(counts.keys() ^ before.keys())]
    for op in sorted(counts.keys() & before.keys()):
        if counts[op] > MAX_GROWTH * before[op]:
            lines.append(
                f"{op}: {counts[op]:,} instructions, recorded {before[op]:,}, {counts[op] / before[op] - 1:+.1%}"
            )
    return lines


def main(arguments: list[str]) -> int:
    if reason := reason_not_to_count():
        print(f"benchmarks.instructions: {reason}", file=sys.stderr)
        return 1
    before = recorded()["instructions"]
    counts = count(build())
    for op, number in sorted(counts.items()):
        change = f" {number / before[op] - 1:+.2%}" if op in before else ""
        print(f"{op:32} {number:>15,}{change}")
    if arguments == ["--write"]:
        document = {
            "command": "python -m benchmarks.instructions --write",
            "compiler": compiler(),
            "simd": LEVEL,
            "instructions": dict(sorted(counts.items())),
        }
        RECORD.write_text(json.dumps(document, indent=2) + "\n")
        return 0
    return int(bool(grown(counts, before)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
