"""`lora-retriever lorahub`: learn the weights of a fusion from a task's few examples, or run LoraHub's experiment."""

from __future__ import annotations

import argparse

from rich.console import Console

from lora_retriever.commands.lorahub import checkpoint, experiment
from lora_retriever.commands.lorahub.arguments import add_arguments, settle
from lora_retriever.progress import quieten_transformers

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "learn the weights of a fusion from a task's few examples, or run LoraHub's experiment on a folder of tasks"
EXAMPLES = """
lora-retriever lorahub --base ./models/my-base --adapters adapters --examples few.jsonl --out task
lora-retriever lorahub --profile mine.yaml --examples few.jsonl --out task
lora-retriever lorahub --profile mine.yaml --tasks bbh --results results/bbh
"""


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    settle(args)
    quieten_transformers()
    return (experiment if args.tasks else checkpoint).run(args, console)
