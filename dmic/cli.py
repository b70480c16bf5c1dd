"""The command `dmic`: train, evaluate, embed, cluster, look after data, run the demo, look at the installation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ._version import __version__
from .commands import NOT_HEALTHY
from .out_of_memory import is_out_of_memory

COMMANDS = {
    "demo": "train on the embedded gallery and retrieve across modalities",
    "cluster": "pseudo labels for a file of features",
    "train": "train on SYSU-MM01, RegDB, LLCM or a manifest, without identities",
    "evaluate": "score a trained network by the protocols of a data set",
    "embed": "features of a run's own images, a folder or a manifest",
    "data": "check a data set, or write a synthetic one",
    "doctor": "what is installed, what is missing, and what to do about it",
}

# Who raises what a command reports: of no use to somebody who called none of them.
FUNCTIONS = ("pseudo_labels", "open_dataset", "detect_dataset", "check_dataset", "read_manifest", "write_pedestrians")

USAGE_ERROR = 2
INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 something is not healthy, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        parser = _parser(command)
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.error(f"name a COMMAND: {', '.join(COMMANDS)}; dmic -h says what they do")
        return options.run(options)
    except KeyboardInterrupt as stop:
        print(f"dmic: {_rank()}interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"dmic {command}: error: {_rank()}{_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except ImportError as error:
        print(f"dmic {command}: error: {_rank()}{_one_line(error)}; `dmic doctor` says more", file=sys.stderr)
        return NOT_HEALTHY


class _Parser(argparse.ArgumentParser):
    """Errors in one line; `-h` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\n")


def _parser(asked_for: str | None) -> argparse.ArgumentParser:
    """All commands by name; only the one that is asked for is loaded."""
    parser = _Parser(prog="dmic", description="Who is who in an unlabeled gallery of visible and infrared images.")
    parser.add_argument("--version", action="version", version=f"dmic {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        if name == asked_for:
            module = import_module(f".commands.{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _rank() -> str:
    """Which of several processes of a job writes; nothing for one that is alone."""
    return f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ else ""


def _one_line(error: Exception) -> str:
    text = str(error)
    for function in FUNCTIONS:
        text = text.removeprefix(f"{function}: ")
    return " ".join(text.split()) or "out of memory"  # Python's says nothing
