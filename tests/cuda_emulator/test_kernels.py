"""Every CUDA kernel, run in the emulator from its own source: the bits and the errors of the CPU op, under every
schedule and sanitizer. That the source is really run and checked is shown by mutants of it, none of which may pass.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import emulator_build as build
import kernel_checks
import pytest
import torch
from mutants import EQUIVALENT, MUTANTS, Mutant

CASES = kernel_checks.all_cases()


@pytest.fixture
def emulator():
    emulator = kernel_checks.plain_emulator()
    yield emulator
    emulator.configure()


@pytest.fixture(scope="module", autouse=True)
def findings(tmp_path_factory):
    """{sanitizer: a future of {library: what was found, or None}}: the kernels and their mutants, in the background."""

    def check(sanitizer: str) -> dict[str, str | None]:
        if reason := build.missing(sanitizer):
            return {"missing": reason}
        mutants = [mutant for mutant in [*MUTANTS, *EQUIVALENT] if mutant.sanitizer == sanitizer]
        libraries = [build.library(sanitizer), *(build.mutant_library(mutant.name, sanitizer) for mutant in mutants)]
        build.build(libraries, {mutant.name: (mutant.kernel, mutant.source()) for mutant in mutants})
        report = tmp_path_factory.mktemp("report") / f"{sanitizer}.json"
        command = (sys.executable, kernel_checks.__file__, report, *libraries)
        done = build.run(*command, sanitizer=sanitizer, preload=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(report.read_text())

    with ThreadPoolExecutor() as pool:
        yield {sanitizer: pool.submit(check, sanitizer) for sanitizer in build.SANITIZERS}


def found(findings: dict[str, Future], sanitizer: str, library) -> str | None:
    result = findings[sanitizer].result()
    if "missing" in result:
        pytest.skip(result["missing"])
    return result[str(library)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", kernel_checks.SCHEDULES)
def test_emulated_bits_and_errors_are_those_of_the_cpu(emulator, schedule, workers):
    emulator.configure(schedule, workers)
    for case in CASES:
        case.check(emulator.ops)


def test_the_first_bad_value_is_named(emulator):
    features = torch.zeros(20, 40)
    features[11, 33] = float("nan")
    features[11, 30] = 3e4
    with pytest.raises(ValueError) as caught:
        emulator.ops.round_features(features, 2)
    text = "features * 2^exponent must stay within 65504, got 120000 at row 11, column 30 with exponent=2"
    assert str(caught.value) == f"round_features: {text}"


def test_the_order_of_additions_shows_in_the_adversarial_rows():
    """With the same squares in other partial sums, which are folded in another order, some rows have another norm."""
    rows, lanes = 64, 128
    features = kernel_checks.order_sensitive(rows, 4 * lanes)
    shuffled = features.view(rows, 4, lanes)[:, :, torch.randperm(lanes, generator=torch.Generator().manual_seed(1))]
    _, norms = torch.ops.dmic.round_features(features, 0)
    _, reordered = torch.ops.dmic.round_features(shuffled.reshape(rows, 4 * lanes), 0)
    assert 0 < (norms != reordered).sum() < rows


@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
def test_no_sanitizer_finds_anything(findings, sanitizer):
    assert found(findings, sanitizer, build.library(sanitizer)) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_in_the_kernel_is_noticed(findings, mutant: Mutant):
    assert found(findings, mutant.sanitizer, build.mutant_library(mutant.name, mutant.sanitizer)) is not None


@pytest.mark.parametrize("mutant", EQUIVALENT, ids=lambda mutant: mutant.name)
def test_what_makes_no_difference_is_no_alarm(findings, mutant: Mutant):
    assert found(findings, mutant.sanitizer, build.mutant_library(mutant.name, mutant.sanitizer)) is None
