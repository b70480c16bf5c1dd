"""Builds dmic._C, nothing else: CPU kernels always, CUDA kernels wherever nvcc is found (a GPU need not be there).

Switches: DMIC_CUDA=0 leaves CUDA out, DMIC_CUDA_ARCH="80;90" chooses architectures (the last also as PTX),
DMIC_WERROR=1 makes warnings errors, and kernels that spill registers too, MAX_JOBS bounds parallel compilers.
What every kernel uses is written to build/kernels.json.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "dmic: building needs torch >= 2.11 in this environment: "
        "pip install torch, then pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
TORCH_TARGET = "0x020b000000000000"  # stable ABI of torch 2.11: the library loads there and in everything later
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-lineinfo",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden,-Wall",
    "-Xptxas",
    "-v",
]
WERROR = os.environ.get("DMIC_WERROR") == "1"
MAY_SPILL = {}  # {kernel: why it does not matter there}; every other kernel is taken for one whose time counts


def find_toolkit():
    """(nvcc, toolkit root, version) or None, and why."""
    if os.environ.get("DMIC_CUDA") == "0":
        return None, "DMIC_CUDA=0"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "bin", "nvcc")] if home else []
    candidates += [Path(found) for found in [shutil.which("nvcc")] if found] + [Path("/usr/local/cuda/bin/nvcc")]
    nvcc = next((path for path in candidates if path.exists()), None)
    if nvcc is None:
        return None, "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
    # nvcc may be a wrapper script somewhere else: it knows its own root
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    root = re.search(r"^#\$ TOP=(.*)$", dry_run, re.M)
    version = re.search(
        r"release (\d+)\.(\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    )
    if root is None or version is None:
        return None, f"{nvcc} does not answer like nvcc"
    return (nvcc, Path(root[1].strip()).resolve(), (int(version[1]), int(version[2]))), f"nvcc is {nvcc}"


TOOLKIT, REASON = find_toolkit()
ARCHITECTURES = os.environ.get("DMIC_CUDA_ARCH", "80;90").split(";") if TOOLKIT else []


class BuildExtensionAndKernels(BuildExtension):
    """Compiles the torch-free .cu files with nvcc itself, whatever build of torch is installed, and links them in."""

    def build_extension(self, ext):
        if TOOLKIT:
            nvcc, root, _ = TOOLKIT
            folders = (root / "lib64", root / "targets/x86_64-linux/lib", root / "lib")
            library = next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)
            if library is None:
                raise RuntimeError(
                    f"dmic: {nvcc} was found, but no libcudart_static.a under {root}; "
                    "install the CUDA runtime's development files or set DMIC_CUDA=0"
                )
            ext.library_dirs.append(str(library))
            ext.libraries += ["cudart_static", "rt", "pthread", "dl"]
            with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
                compiled = list(pool.map(self.compile_kernels, sorted(CSRC.glob("cuda/kernels/*.cu"))))
            ext.extra_objects += [str(output) for output, _, _ in compiled]
            report_usage([use for _, usage, _ in compiled for use in usage], any(is_new for _, _, is_new in compiled))
        super().build_extension(ext)

    def compile_kernels(self, source):
        """The object of a .cu file, what its kernels use, and whether it was compiled just now."""
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        targets.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
        strict = ["-Werror", "all-warnings"] if WERROR else []
        command = [str(TOOLKIT[0]), *NVCC_FLAGS, *strict, *targets, "-c", str(source)]
        settings = hashlib.sha256(repr((command, TOOLKIT)).encode()).hexdigest()[:12]  # other settings, another object
        output = Path(self.build_temp).resolve() / f"{source.stem}.{settings}.o"
        usage = output.with_suffix(".json")
        headers = [*CSRC.glob("canonical/*"), *CSRC.glob("cuda/kernels/*.cuh"), *CSRC.glob("cuda/compat/*")]
        newest = max(path.stat().st_mtime for path in [source, *headers])
        if output.exists() and usage.exists() and output.stat().st_mtime > newest:
            return output, json.loads(usage.read_text()), False
        output.parent.mkdir(parents=True, exist_ok=True)
        usage.unlink(missing_ok=True)
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        sys.stdout.write(done.stdout)
        if done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        warnings = (line for line in done.stderr.splitlines() if "warning" in line.lower() and "ptxas" not in line)
        sys.stderr.writelines(f"{line}\n" for line in warnings)
        uses = kernel_usage(source, done.stderr)
        usage.write_text(json.dumps(uses))
        return output, uses, True


def kernel_usage(source, ptxas):
    """What ptxas -v says of every kernel, once for each architecture."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n"
    )
    found = re.findall(pattern, ptxas, re.S)
    if len(found) != ptxas.count("Compiling entry function"):
        raise RuntimeError(f"dmic: ptxas reports on the kernels of {source.name} in a way that is not understood")
    names = kernel_names([name for name, *_ in found])
    uses = []
    for kernel, (_, arch, stack, stores, loads, registers, rest) in zip(names, found, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        uses.append(
            {
                "kernel": kernel,
                "arch": arch,
                "registers": int(registers),
                "shared_bytes": int(shared[1]) if shared else 0,  # dynamic shared memory is the launch's
                "stack_bytes": int(stack),
                "spilled_bytes": int(stores) + int(loads),
            }
        )
    return uses


def kernel_names(mangled):
    """`name_kernel<template arguments>` of every mangled name, without namespaces and parameters."""
    readable = mangled
    if tool := shutil.which("c++filt"):
        done = subprocess.run([tool], input="\n".join(mangled), capture_output=True, text=True, check=True)
        readable = done.stdout.splitlines()
    names = []
    for name in readable:
        end = name.index("_kernel") + len("_kernel")
        if name.startswith("_Z"):  # names have their length before them
            start = next(i for i in reversed(range(end)) if name[:i].endswith(str(end - i)))
            names.append(name[start:end])
            continue
        name = re.sub(r"\w+::|\(anonymous namespace\)::|^void ", "", name).replace(" >", ">")
        end, depth = name.index("_kernel") + len("_kernel"), 0
        while end < len(name) and (depth or name[end] != "("):
            depth += {"<": 1, ">": -1}.get(name[end], 0)
            end += 1
        names.append(name[:end])
    return names


def report_usage(uses, show_table):
    """Writes build/kernels.json; prints the table, a line for each kernel with one number for each architecture; fails
    where a kernel spills that should not."""
    output = ROOT / "build" / "kernels.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(uses, indent=1) + "\n")
    kernels = {}
    for use in uses:
        kernels.setdefault(use["kernel"], []).append(use)
    if show_table:
        sys.stdout.write(usage_table(kernels))
    registers = max((use["registers"] for use in uses), default=0)
    spilling = [name for name, of_kernel in kernels.items() if any(use["spilled_bytes"] for use in of_kernel)]
    spilled = f"these spill: {', '.join(spilling)}" if spilling else "none spills"
    print(f"dmic: {len(kernels)} kernels, at most {registers} registers, {spilled}; see build/kernels.json", flush=True)
    hot = [name for name in spilling if name.partition("<")[0] not in MAY_SPILL]
    if WERROR and hot:
        raise RuntimeError(f"dmic: kernels must not spill registers: {', '.join(hot)}")


def usage_table(kernels):
    columns = {"registers": "registers", "shared_bytes": "shared", "stack_bytes": "stack", "spilled_bytes": "spilled"}
    rows = [["kernel", "arch", *columns.values()]]
    for name, uses in kernels.items():
        cells = (" ".join(f"{use[column]:>5}" for use in uses) for column in columns)
        rows.append([name, " ".join(use["arch"] for use in uses), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, arch, *numbers in rows:
        padded = (number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), arch.ljust(widths[1]), *padded]))
    return "".join(f"dmic: {line}\n" for line in lines)


sources = [
    "csrc/registration.cpp",
    "csrc/python_module.cpp",
    *sorted(str(p.relative_to(ROOT)) for p in CSRC.glob("cpu/*.cpp")),
]
cxx = shlex.split(os.environ.get("CXX", "c++"))
if shutil.which(cxx[0]) is None:
    sys.exit(f"dmic: a C++20 compiler is needed and {cxx[0]} was not found; install one (g++ 11 or later) or set CXX")
compiler = subprocess.run([*cxx, "--version"], capture_output=True, text=True).stdout.splitlines()
macros = [("TORCH_TARGET_VERSION", TORCH_TARGET), ("DMIC_COMPILER", f'"{compiler[0]}"')]
if TOOLKIT:
    sources += sorted(str(p.relative_to(ROOT)) for p in CSRC.glob("cuda/*.cpp"))
    version = TOOLKIT[2]
    macros += [
        ("DMIC_CUDA_ARCHITECTURES", f'"{";".join(ARCHITECTURES)}"'),
        ("DMIC_CUDA_VERSION", str(version[0] * 1000 + version[1] * 10)),
    ]
    names = ", ".join(f"sm_{a}" for a in ARCHITECTURES)
    toolkit = f"{names}, PTX of {ARCHITECTURES[-1]}; CUDA {version[0]}.{version[1]}"
    print(f"dmic: building CPU kernels and CUDA kernels ({toolkit}): {REASON}", flush=True)
else:
    print(f"dmic: building CPU kernels only: {REASON}", flush=True)

extension = CppExtension(
    "dmic._C",
    sources,
    define_macros=macros,
    extra_compile_args=CXX_FLAGS + (["-Werror"] if WERROR else []),
    depends=sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*") if p.suffix in {".h", ".inl", ".cuh", ".cu"}),
    py_limited_api=True,
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtensionAndKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
