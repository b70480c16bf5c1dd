# make demo    train on the embedded gallery and retrieve across modalities (a minute or two)
# make test    everything that is checked before a change lands
# make bench   measure every op against what is used instead, into benchmarks/results and docs/benchmarks.md
# make bench-quick   the same at one size, under 3 minutes; writes nothing
# make gpu-check    everything that needs a GPU, in under 8 minutes; PART=build|tests|sanitizer|kernels|pipeline for one
# make wheel-check  build the wheel, install it beside torch $(TORCH) and cluster with it
#
# Each target sets itself up in $(VENV) first: Python with venv, a C++20 compiler and make are enough. To use an
# environment that already has torch instead (no network needed): make test VENV= PYTHON=python3

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
JOBS        ?= $(shell nproc 2>/dev/null || echo 2)
PART        ?= all
TORCH       ?= 2.11.0

ifeq ($(VENV),)
PY    := $(PYTHON)
SETUP :=
DEV   :=
else
PY    := $(VENV)/bin/python
SETUP := $(VENV)/.setup
DEV   := $(VENV)/.setup-dev
export PATH := $(abspath $(VENV)/bin):$(PATH)
endif
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
RUFF := $(PY) -m ruff
BENCH := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(PY) -m benchmarks.suite

.PHONY: demo test bench bench-quick build lint unit smoke cpp wheel wheel-check gpu-check clean
.DELETE_ON_ERROR:

demo: build
	$(PY) -m dmic demo

test: export DMIC_WERROR = 1
test: lint build unit cpp smoke
	@echo "make test: all passed"

bench: $(DEV) build
	$(BENCH)

bench-quick: $(DEV) build
	$(BENCH) --quick

# In place, so that a checkout is its own installation; prints what it builds and why.
build: $(SETUP)
	@mkdir -p build; $(PY) setup.py build_ext --inplace >build/build.log 2>&1 || { cat build/build.log; exit 1; }
	@grep '^dmic:' build/build.log

lint: $(DEV)
	$(RUFF) check .
	$(RUFF) format --check .

unit: $(DEV) build
	$(PY) -m pytest tests

smoke: $(DEV) build
	$(PY) -m pytest benchmarks --benchmark-disable

# The torch-free half: kernels, emulator and C++ tests.
cpp:
	@if command -v cmake >/dev/null; then \
	  cmake -S . -B build/cmake -DCMAKE_BUILD_TYPE=Release >build/cmake.log 2>&1 || { cat build/cmake.log; exit 1; }; \
	  cmake --build build/cmake --parallel $(JOBS) >>build/cmake.log 2>&1 || { cat build/cmake.log; exit 1; }; \
	  ctest --test-dir build/cmake --output-on-failure; \
	else echo "make cpp: skipped, cmake was not found"; fi

wheel: $(SETUP)
	$(PY) -m pip --disable-pip-version-check wheel --no-build-isolation --no-deps --wheel-dir dist .

# With its own environment: pip chooses the build of torch, downloads it if it must, and it is gone afterwards.
wheel-check: wheel
	rm -rf build/wheel-check; $(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip --disable-pip-version-check install --quiet torch==$(TORCH) numpy
	build/wheel-check/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-index --find-links dist dmic
	build/wheel-check/bin/python tests/check_wheel.py
	rm -rf build/wheel-check

# Builds in place, needs no network with VENV= PYTHON=python3, and nothing but torch, numpy, nvcc, a C++ compiler and pytest.
gpu-check: $(SETUP)
	$(PY) -m benchmarks.gpu_check --part $(PART)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), f"dmic needs Python 3.10 or later, this is {sys.version.split()[0]}"'
	@$(PYTHON) -m venv $(VENV) || { echo "make: python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv python3-dev g++"; exit 1; }

$(VENV)/.setup: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "make: installing torch and torchvision into $(VENV), once; this downloads several GB and takes minutes"
	$(PIP) -c $(CONSTRAINTS) "setuptools>=77" wheel ninja torch torchvision
	$(PIP) -c $(CONSTRAINTS) --no-build-isolation --editable .
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(PIP) -c $(CONSTRAINTS) --no-build-isolation --editable ".[dev]"
	@touch $@

clean:
	rm -rf build dist *.egg-info dmic/*.so
