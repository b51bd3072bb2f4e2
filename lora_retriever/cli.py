"""The command `lora-retriever`: arguments in, exit status out. Each command is a file of `commands`.

Exit status: 0 everything was done, 1 rows failed, 2 arguments or input are unusable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from lora_retriever import __version__
from lora_retriever.commands import commands
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.escaping import for_terminal, replace_unwritable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    replace_unwritable()
    args = build_parser().parse_args(arguments)
    try:
        status: int = args.run(args, Console(stderr=True))
        return status
    except RowsFailedError as error:
        print(for_terminal(f"lora-retriever: {error}"), file=sys.stderr)
        return 1
    except UserError as error:
        print(for_terminal(f"lora-retriever: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "lora-retriever: stopped; the rows done so far are on disk, and the same command goes on", file=sys.stderr
        )
        return 130
    except BrokenPipeError:  # `| head` has read enough; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands and their arguments."""
    parser = argparse.ArgumentParser(prog="lora-retriever", description="Retrieve, compose and evaluate LoRA adapters.")
    parser.add_argument("--version", action="version", version=f"lora-retriever {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands().items():
        one = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser
