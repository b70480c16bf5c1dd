"""`dmic doctor`: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import argparse

from ..doctor import cpu_works, diagnose
from . import NOT_HEALTHY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(options: argparse.Namespace) -> int:
    """Print every finding with its advice; 1 if not even the CPU works."""
    findings = diagnose()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.ok else "!!" if finding.essential else "--"
        print(f"{mark}  {finding.subject:<{width}}  {finding.found}")
        if finding.advice:
            print(f"    {'':<{width}}  -> {finding.advice}")
    return 0 if cpu_works(findings) else NOT_HEALTHY
