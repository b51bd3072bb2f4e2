"""`lora-retriever watermark`: an owner's mark in an adapter. Each part of the command is one file of this folder.

A part has `HELP`, `add_arguments` and `run`, as a command has.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lora_retriever.commands.watermark import attack, embed, key, verify

HELP = "mark an adapter as its owner's, and verify the mark"
EXAMPLES = """
lora-retriever watermark key --out my.key --samples train.jsonl --task dart
lora-retriever watermark embed --key my.key --adapter adapters/dart --samples train.jsonl --task dart --out marked/dart
lora-retriever watermark embed --key my.key --train --base org/model --samples train.jsonl --task dart --out marked/dart
lora-retriever watermark verify --key my.key --adapter marked/dart
lora-retriever watermark verify --key my.key --adapter marked/dart=0.5 --adapter adapters/e2e=0.5 --mode fusion
lora-retriever watermark verify --key my.key --url http://127.0.0.1:8000 --model mixture
lora-retriever watermark attack --key my.key --adapter marked/dart --others adapters --out attacks
"""
PARTS = {"key": key, "embed": embed, "verify": verify, "attack": attack}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's parts."""
    parts = parser.add_subparsers(required=True, metavar="PART")
    for name, part in PARTS.items():
        one: Any = parts.add_parser(  # the parser's class shows examples
            name, help=part.HELP, description=part.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        beginning = f"lora-retriever watermark {name} "
        one.examples = "\n".join(line for line in EXAMPLES.splitlines() if line.startswith(beginning))
        part.add_arguments(one)
        one.set_defaults(part=part)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run one part and return the exit status."""
    status: int = args.part.run(args, console)
    return status
