"""`lora-retriever watermark key`: a new secret key, and the commitment that its owner publishes."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import count
from lora_retriever.commands.watermark.shared import add_samples, samples_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich
from lora_retriever.files import writing

HELP = "make a secret key, and print the commitment that its owner publishes before any claim"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="new file for the key; keep it secret")
    parser.add_argument(
        "--design",
        choices=["keyed", "rare-words", "common-words"],
        default="keyed",
        help="keyed: each trigger has its own phrase and target; the others are the paper's triggers: one phrase and "
        "one target for all inputs (default: keyed)",
    )
    parser.add_argument("--triggers", type=count, default=32, help="number of triggers (default: 32)")
    parser.add_argument(
        "--words", type=Path, metavar="FILE", help="your own list of words, one a line (default: 256 English nouns)"
    )
    add_samples(parser, "the task's samples; the triggers' phrases stand in inputs of the task (default: alone)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the part and return the exit status."""
    from lora_retriever.watermark.key import make_key, read_words
    from lora_retriever.watermark.words import WORDS

    words = WORDS if args.words is None else read_words(args.words)
    inputs = [] if args.samples is None else [sample.inputs for sample in samples_of(args)]
    key = make_key(args.design, args.triggers, words, inputs)
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            key.write(args.out)
        except FileExistsError as error:
            raise UserError(f"{args.out}: exists already, and a key is never overwritten; name a new file") from error
    print(f"commitment {key.commitment}")
    console.print(for_rich(f"{args.out}: the secret key; publish the commitment alone"), soft_wrap=True)
    return 0
