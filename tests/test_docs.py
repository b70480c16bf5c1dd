"""What the documentation shows, runs: python blocks of the README and of docs/, and doctests of every module."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import dmic

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NOT_IMPORTED = ("dmic._C", "dmic.__main__")  # the library has no docstrings, and __main__ would run
MODULES = ["dmic", *(m.name for m in pkgutil.walk_packages(dmic.__path__, "dmic.") if m.name not in NOT_IMPORTED)]
PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)  # what a line prints, where it is said
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """First line and text of every python block."""
    text = page.read_text()
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page share their names, as if a reader typed them one after the other; what they say is printed,
    after `>>>` or a `print(...)`, is."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, block in python_blocks(page):
        if block.lstrip().startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), line - 1)
            result = doctest.DocTestRunner().run(example, clear_globs=False)
            assert result.failed == 0, f"{page.name}:{line}"
            names.update(example.globs)
        else:
            exec(compile("\n" * (line - 1) + block, str(page), "exec"), names)
            printed = capsys.readouterr().out.splitlines()
            assert [text for text in PRINTED.findall(block) if text not in printed] == [], printed


def test_the_readme_shows_python():
    assert python_blocks(ROOT / "README.md")


@pytest.mark.parametrize("name", MODULES)
def test_doctests_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_doctests():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {name: sum(bool(t.examples) for t in finder.find(importlib.import_module(name))) for name in MODULES}
    assert found["dmic.ops"] > 0, found
    assert sum(found.values()) > 1, found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not t.startswith("mailto:") and not (page.parent / t).exists()]
    assert not missing
