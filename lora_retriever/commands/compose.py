"""`lora-retriever compose`: save a composition as an ordinary PEFT checkpoint."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rich.console import Console

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_terminal
from lora_retriever.files import new_folder, writing
from lora_retriever.progress import quieten_transformers

HELP = "save a composition as an ordinary PEFT checkpoint"
EXAMPLES = """
lora-retriever compose --base ./models/my-base --adapter adapters/dart=0.5 --adapter adapters/e2e=0.5 --out both
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="LOCATION=WEIGHT", help="repeat for each adapter"
    )
    parser.add_argument("--mode", choices=["mixture", "fusion"], default="mixture")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    import torch

    from lora_retriever.generation.loading import load_composable
    from lora_retriever.hub import folder_or_id
    from peft_composition import CompositionError

    weights: dict[str, float] = {}
    for text in args.adapter:
        location, _, weight = text.rpartition("=")
        if location in weights:
            raise UserError(f"--adapter {text}: {location} is named twice")
        try:
            weights[location] = float(weight)
        except ValueError as error:
            raise UserError(f"--adapter {text}: expected LOCATION=WEIGHT, for example adapters/dart=0.5") from error
        if not math.isfinite(weights[location]):
            raise UserError(f"--adapter {text}: the weight must be a finite number")
    base = folder_or_id(args.base)
    quieten_transformers()
    with console.status("loading"):
        adapters = {location: location for location in weights}
        model = load_composable(base, adapters, torch.float32, "cpu", every_kind=True)
    try:
        names, values = list(weights), list(weights.values())
        with writing(args.out), new_folder(args.out) as folder:
            model.save_composition(names, values, mode=args.mode, path=folder)
    except CompositionError as error:
        raise UserError(str(error)) from error
    print(for_terminal(f"{args.out}: {args.mode} of {len(weights)} adapters"))
    return 0
