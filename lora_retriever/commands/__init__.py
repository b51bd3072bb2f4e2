"""The commands of `lora-retriever`, one file each.

A command's file has `HELP` (one line), `add_arguments(parser)` and `run(args, console)`, which returns the exit status.
To keep `--help` fast, a file imports torch, transformers and other slow libraries only within `run`.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Protocol, cast

from rich.console import Console

COMMANDS = ("run", "methods", "retrieval", "index", "compose", "lorahub", "summarize", "report", "audit", "doctor")
"""The commands' names, in the order of the help text. The file of a command has the command's name."""


class Command(Protocol):
    """What the file of a command offers."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace, console: Console) -> int:
        """Do what the arguments ask for, and return the exit status. Messages of progress go to `console`."""


def load_command(name: str) -> Command:
    """The file of a command."""
    return cast(Command, import_module(f"{__name__}.{name}"))
