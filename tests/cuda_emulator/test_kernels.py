"""Every CUDA kernel, run in the emulator from its own source: the bits and the errors of the CPU op, under every
schedule and sanitizer. That the source is really run and checked is shown by mutants of it, none of which may pass.
"""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import emulator_build as build
import kernel_checks
import pytest
import torch
from emulator_cases import Mutant

STEMS = kernel_checks.STEMS
MUTANTS = [(stem, mutant) for stem in STEMS for mutant in kernel_checks.module(stem).MUTANTS]
EQUIVALENT = [(stem, mutant) for stem in STEMS for mutant in kernel_checks.module(stem).EQUIVALENT]
# Mutants may well never end; what must pass has ten times what it needs
CPU_SECONDS, MUTANT_CPU_SECONDS = 400, 30
# What orders threads or makes them meet: each one of these in device code is changed by a mutant
SYNCHRONISATION = re.compile(r"\b(__syncthreads\w*|__syncwarp|__\w+_sync|__threadfence\w*|atomic[A-Z]\w*)\(")


@pytest.fixture
def emulator():
    emulator = kernel_checks.plain_emulator()
    yield emulator
    emulator.configure()


def occurrences(stem: str, mutant: Mutant) -> int:
    return kernel_checks.mutated_file(stem, mutant).read_text().count(mutant.old)


def name(stem: str, mutant: Mutant) -> str:
    return f"{stem}/{mutant.name}"


@pytest.fixture(scope="module", autouse=True)
def findings(request, tmp_path_factory):
    """{sanitizer: a future of {name of a mutant, or kernel file: what was found, or None}}: those whose tests are
    selected, checked in the background."""
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = [params for params in calls if "stem" in params]
    equivalent = [mutant for _, mutant in EQUIVALENT]

    def check(sanitizer: str) -> dict[str, str | None]:
        if reason := build.missing(sanitizer):
            return {"missing": reason}
        sources, tasks = {}, {}
        for params in selected:
            stem, mutant = params.get("stem"), params.get("mutant")
            if mutant is None and params.get("sanitizer") == sanitizer:
                tasks[stem] = {
                    "library": str(build.library(sanitizer)),
                    "stem": stem,
                    "workers": [1, 2] if sanitizer == "thread" else [2],  # plain ones run with both below
                    "cpu_seconds": CPU_SECONDS,
                }
            elif mutant and mutant.sanitizer == sanitizer and occurrences(stem, mutant) == 1:
                file = kernel_checks.mutated_file(stem, mutant)
                text = file.read_text().replace(mutant.old, mutant.new)
                sources[name(stem, mutant)] = build.MutantSource(stem, file.name, text, sanitizer)
                library = build.mutant_library(name(stem, mutant), sanitizer)
                tasks[name(stem, mutant)] = {
                    "library": str(library),
                    "stem": stem,
                    "workers": [2],
                    "cpu_seconds": CPU_SECONDS if mutant in equivalent else MUTANT_CPU_SECONDS,
                }
        broken = build.build([task["library"] for task in tasks.values()], sources) if tasks else {}
        tasks = {key: task for key, task in tasks.items() if key not in broken}
        folder = tmp_path_factory.mktemp("report")
        (folder / "tasks.json").write_text(json.dumps(tasks))
        command = (sys.executable, kernel_checks.__file__, folder / "tasks.json", folder / "report.json")
        done = build.run(*command, sanitizer=sanitizer, preload=True, timeout=2400)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((folder / "report.json").read_text())

    with ThreadPoolExecutor() as pool:
        yield {sanitizer: pool.submit(check, sanitizer) for sanitizer in build.SANITIZERS}


def found(findings: dict[str, Future], sanitizer: str, key: str) -> str | None:
    result = findings[sanitizer].result()
    if "missing" in result:
        pytest.skip(result["missing"])
    assert key in result, f"{key} does not compile, or changes what is not in the source just once"
    return result[key]


def test_every_kernel_file_has_cases_and_mutants():
    modules = {path.stem for path in kernel_checks.CASES.glob("*.py")}
    assert modules == {path.stem for path in build.KERNELS} == set(STEMS)
    for stem in STEMS:
        assert kernel_checks.cases(stem)
        names = [mutant.name for mutant in kernel_checks.mutants(stem)]
        assert names
        assert len(names) == len(set(names)), stem


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", kernel_checks.SCHEDULES)
@pytest.mark.parametrize("stem", STEMS)
def test_emulated_bits_and_errors_are_those_of_the_cpu(emulator, stem, schedule, workers):
    emulator.configure(schedule, workers)
    for case in kernel_checks.cases(stem):
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
    features = kernel_checks.module("round_features").order_sensitive(rows, 4 * lanes)
    shuffled = features.view(rows, 4, lanes)[:, :, torch.randperm(lanes, generator=torch.Generator().manual_seed(1))]
    _, norms = torch.ops.dmic.round_features(features, 0)
    _, reordered = torch.ops.dmic.round_features(shuffled.reshape(rows, 4 * lanes), 0)
    assert 0 < (norms != reordered).sum() < rows


@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
@pytest.mark.parametrize("stem", STEMS)
def test_no_sanitizer_finds_anything(findings, stem, sanitizer):
    assert found(findings, sanitizer, stem) is None


@pytest.mark.parametrize(("stem", "mutant"), MUTANTS, ids=[name(*pair) for pair in MUTANTS])
def test_a_mistake_in_the_kernel_is_noticed(findings, stem, mutant):
    assert found(findings, mutant.sanitizer, name(stem, mutant)) is not None


@pytest.mark.parametrize(("stem", "mutant"), EQUIVALENT, ids=[name(*pair) for pair in EQUIVALENT])
def test_what_makes_no_difference_is_no_alarm(findings, stem, mutant):
    assert found(findings, mutant.sanitizer, name(stem, mutant)) is None


def without_comments(text: str) -> str:
    """Of the same length."""
    return re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), text)


@pytest.mark.parametrize("path", sorted((build.CSRC / "cuda" / "kernels").glob("*.cu*")), ids=lambda path: path.name)
def test_every_synchronisation_is_changed_by_a_mutant(path):
    text = path.read_text()
    spans = []
    for stem, mutant in MUTANTS + EQUIVALENT:
        if kernel_checks.mutated_file(stem, mutant) == path:
            at = text.find(mutant.old)
            spans.append((at, at + len(mutant.old)))
    untouched = [
        f"line {text.count(chr(10), 0, call.start()) + 1}: {call[1]}"
        for call in SYNCHRONISATION.finditer(without_comments(text))
        if not any(begin < call.end() and call.start() < end for begin, end in spans)
    ]
    assert not untouched, f"no mutant changes {untouched}"
