"""The commands of `lora-retriever`, one file each. Every file of this folder that has `HELP` is a command.

The file of a command has the command's name. `HELP` is one line, `EXAMPLES` has a call of the command on each line,
`add_arguments(parser)` adds the arguments, and `run(args, console)` returns the exit status. To keep `--help` fast, a
file imports torch, transformers and other slow libraries only within `run`.
"""

from __future__ import annotations

import argparse
import pkgutil
from importlib import import_module
from typing import Protocol, cast

from rich.console import Console


class Command(Protocol):
    """The interface of a command's file."""

    HELP: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace, console: Console) -> int:
        """Run the command with these arguments, and return the exit status. Messages of progress go to `console`."""


def commands() -> dict[str, Command]:
    """Every command by its name, in alphabetical order."""
    files = {name: import_module(f"{__name__}.{name}") for _, name, _ in pkgutil.iter_modules(__path__)}
    return {name: cast(Command, file) for name, file in sorted(files.items()) if hasattr(file, "HELP")}
