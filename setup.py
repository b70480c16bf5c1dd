"""Builds dmic._C, nothing else: CPU kernels always, CUDA kernels wherever nvcc is found (a GPU need not be there).

Switches: DMIC_CUDA=0 leaves CUDA out, DMIC_CUDA_ARCH="80;90" chooses architectures (the last also as PTX),
DMIC_WERROR=1 makes warnings errors, MAX_JOBS bounds parallel compilers.
"""

import hashlib
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
                ext.extra_objects += pool.map(self.compile_kernel, sorted(CSRC.glob("cuda/kernels/*.cu")))
        super().build_extension(ext)

    def compile_kernel(self, source):
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        targets.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
        strict = ["-Werror", "all-warnings"] if WERROR else []
        command = [str(TOOLKIT[0]), *NVCC_FLAGS, *strict, *targets, "-c", str(source)]
        settings = hashlib.sha256(repr((command, TOOLKIT)).encode()).hexdigest()[:12]  # other settings, another object
        output = Path(self.build_temp).resolve() / f"{source.stem}.{settings}.o"
        headers = [*CSRC.glob("canonical/*"), *CSRC.glob("cuda/kernels/*.cuh"), *CSRC.glob("cuda/compat/*")]
        newest = max(path.stat().st_mtime for path in [source, *headers])
        if output.exists() and output.stat().st_mtime > newest:
            return str(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        command += ["-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        sys.stdout.write(done.stdout)
        sys.stderr.write(kernel_table(source, done.stderr) if done.returncode == 0 else done.stderr)
        done.check_returncode()
        return str(output)


def kernel_table(source, ptxas):
    """One line per kernel and architecture from ptxas -v: registers, shared memory, spills."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n"
    )
    lines = []
    for name, arch, stores, loads, registers, rest in re.findall(pattern, ptxas, re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        end = name.index("_kernel") + len("_kernel")  # mangled names carry their length before them
        kernel = next(name[i:end] for i in range(end) if name[:i].endswith(str(end - i)))
        lines.append(
            f"dmic: {kernel} {arch}: {registers} registers, {shared[1] if shared else 0} bytes shared, "
            f"{int(stores) + int(loads)} bytes spilled\n"
        )
    warnings = [line + "\n" for line in ptxas.splitlines() if "warning" in line.lower() and "ptxas" not in line]
    return "".join(lines + warnings)


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
