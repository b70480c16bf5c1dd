"""A machine with a GPU may lack packages that tests use: a test is then skipped for the package it uses, by name.

While test modules are collected, what they import of an absent package are placeholders. A test that calls one, is
decorated with one or has one as an argument, or that imports the package itself, is skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

PACKAGES = ("faiss", "hypothesis", "matplotlib", "psutil", "scipy", "sklearn")


def absent() -> tuple[str, ...]:
    return tuple(name for name in PACKAGES if importlib.util.find_spec(name) is None)


class Placeholder(ModuleType):
    """A module of an absent package, or anything that it would hold."""

    __path__: tuple[str, ...] = ()
    tests_run = False

    def __getattr__(self, name: str) -> Placeholder:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reason = f"{self.__name__.partition('.')[0]} is not installed"
        if Placeholder.tests_run:
            pytest.skip(reason)
        if len(args) == 1 and getattr(args[0], "__name__", "").startswith("test_"):  # decorates a test
            return pytest.mark.skip(reason=reason)(without_arguments(args[0]))
        return Placeholder(self.__name__)


def without_arguments(test: Any) -> Any:
    """The decorator would have given the arguments; pytest must not look for fixtures of their names."""

    def skipped() -> None: ...

    skipped.__name__, skipped.__doc__, skipped.__module__ = test.__name__, test.__doc__, test.__module__
    return skipped


class Finder:
    """Finds placeholders in place of absent packages, while test modules are collected."""

    def __init__(self, packages: tuple[str, ...]):
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class Plugin:
    """Made by conftest.py, and registered where a package is absent."""

    def __init__(self, packages: tuple[str, ...]):
        self.packages = packages
        self.finder = Finder(packages)
        sys.meta_path.append(self.finder)

    def pytest_report_header(self) -> str:
        return f"not installed, and tests that use them are skipped: {', '.join(self.packages)}"

    def pytest_collection_finish(self) -> None:
        """From here on imports fail again: nothing that runs may take a placeholder for a package."""
        Placeholder.tests_run = True
        sys.meta_path.remove(self.finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, Placeholder)]:
            del sys.modules[name]

    def _skipping(self) -> Iterator[Any]:
        try:
            return (yield)
        except ImportError as error:
            cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
            package = (getattr(cause, "name", None) or "").partition(".")[0]
            if package in self.packages:
                pytest.skip(f"{package} is not installed")
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[Any]:
        for value in pyfuncitem.funcargs.values():
            if isinstance(value, Placeholder):
                value()
        return (yield from self._skipping())

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self) -> Iterator[Any]:
        return (yield from self._skipping())
