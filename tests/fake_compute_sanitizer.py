"""Stands in for compute-sanitizer: refuses what the real one would refuse, then runs the program (once: for memcheck).

For tests: FAKE_SANITIZER_FINDS names a tool that finds something, FAKE_SANITIZER_LOG a file for the arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--tool", choices=TOOLS, default="memcheck")
    parser.add_argument("--error-exitcode", type=int, default=0)
    parser.add_argument("--print-limit", type=int, default=100)
    parser.add_argument("--kernel-name", help="kns=SUBSTRING or kne=NAME")
    parser.add_argument("--report-api-errors", choices=("all", "explicit", "no"), default="explicit")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.kernel_name is not None and not options.kernel_name.startswith(("kns=", "kne=")):
        parser.error(f"unknown filter {options.kernel_name}")
    if not options.program:
        parser.error("no program")
    if log := os.environ.get("FAKE_SANITIZER_LOG"):
        with open(log, "a") as file:
            file.write(json.dumps(sys.argv[1:]) + "\n")
    status = subprocess.run(options.program).returncode if options.tool == "memcheck" else 0
    if os.environ.get("FAKE_SANITIZER_FINDS") == options.tool:
        print("========= ERROR SUMMARY: 1 error")
        return options.error_exitcode
    print("========= ERROR SUMMARY: 0 errors")
    return status


if __name__ == "__main__":
    sys.exit(main())
