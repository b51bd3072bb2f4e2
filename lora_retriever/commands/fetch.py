"""`lora-retriever fetch`: the paper's official benchmark, checked and laid out for the profiles `llama2-*`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.escaping import for_terminal

HELP = "fetch the paper's official benchmark, and check it"
EXAMPLES = """
lora-retriever fetch --source LoraRetriever     # a folder, or a checkout of the authors' repository
lora-retriever fetch --pool config2.json        # the evaluation set from the Hub, the pool from a file
lora-retriever fetch --source LoraRetriever --adapters 7b
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--out", type=Path, help="folder for test.json, pool.json and record.json (default: where llama2-7b reads them)"
    )
    parser.add_argument(
        "--source", type=Path, help="folder with combined_test.json and config2.json (or config_new.json)"
    )
    parser.add_argument("--eval-set", help="evaluation set on the Hub, without --source (default: the authors')")
    parser.add_argument("--eval-revision", help="its commit, tag or branch")
    parser.add_argument("--pool", type=Path, help="the pool's file, config2.json of the authors' repository")
    parser.add_argument("--adapters", choices=["7b", "13b", "none"], default="none", help="fetch, or check in --source")
    parser.add_argument("--adapters-revision", help="tag or branch of the adapters on the Hub")
    parser.add_argument("--adapters-out", type=Path, help="folder for copies of the adapters, one sub-folder a task")
    parser.add_argument("--allow-different", action="store_true", help="other counts than the paper's only warn")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.data.fetching import EVALUATION_SET, Sources, lay_out, official_folder

    sources = Sources(
        source=args.source,
        eval_set=args.eval_set or EVALUATION_SET,
        eval_revision=args.eval_revision,
        pool=args.pool,
        adapters=args.adapters,
        adapters_revision=args.adapters_revision,
        adapters_out=args.adapters_out,
    )
    out = args.out or official_folder()
    print(for_terminal(lay_out(sources, out, args.allow_different, console)))
    return 0
