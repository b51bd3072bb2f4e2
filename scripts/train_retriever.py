"""Train the retriever's encoder by contrast on some of a pool's tasks. The paper takes 40 % of the tasks.

    python scripts/train_retriever.py --base models/all-MiniLM-L6-v2 --pool data/official/pool.json --out retriever \\
        --inputs data/official/test.json

The same command continues an interrupted training. With `--inputs`, the script compares retrieval before and after the
training, for rows of seen and of unseen tasks. The `training.json` beside the encoder records everything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from transformers import logging

from lora_retriever.data.rows import read_rows
from lora_retriever.errors import UserError
from lora_retriever.hub import ENCODER_WANTED, folder_or_id
from lora_retriever.retrieval.encoders import Layout
from lora_retriever.training.retriever import CUTS, RetrieverOptions, evaluate_retriever, train_retriever


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, train and evaluate; returns the exit status."""
    args = parser().parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        options = RetrieverOptions(**{name: getattr(args, name) for name in RetrieverOptions.model_fields})
        base = folder_or_id(args.base, ENCODER_WANTED)
        if args.inputs:
            read_rows(args.inputs)  # unusable rows are found before the training
        record = train_retriever(base, args.pool, options, args.out, args.layout, args.device)
        print(summary(record), flush=True)
        if args.inputs:
            print(table(evaluate_retriever(base, args.out, args.pool, args.inputs, args.device)))
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        print(f"train_retriever: --{option} {wrong['input']}: {wrong['msg']}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"train_retriever: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = RetrieverOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="encoder to start from: a folder or a Hub id")
    parser.add_argument("--layout", choices=get_args(Layout), default="auto", help="layout of the base's files")
    parser.add_argument("--pool", required=True, type=Path, help="pool file with the samples trained on")
    parser.add_argument("--out", required=True, type=Path, help="folder for the trained encoder")
    parser.add_argument("--inputs", type=Path, help="benchmark rows on which the encoder is compared with its base")
    parser.add_argument(
        "--share", type=float, default=defaults.share, help="share of the pool's tasks that is drawn with the seed"
    )
    parser.add_argument(
        "--tasks", type=lambda text: text.split(","), help="names of tasks instead of a share, separated by commas"
    )
    parser.add_argument(
        "--validation",
        type=int,
        default=defaults.validation,
        help="number of these tasks that are held out and measured",
    )
    parser.add_argument("--samples", type=int, default=defaults.samples, help="number of samples of each task")
    parser.add_argument("--instruction", default=defaults.instruction, help="text before every sample")
    parser.add_argument("--temperature", type=float, default=defaults.temperature)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="pairs, each of another task")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--layers", type=int, help="topmost layers trained (default all; 0: an added linear layer)")
    parser.add_argument("--max-tokens", type=int, help="longest text in training (default the encoder's own limit)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def summary(record: dict[str, Any]) -> str:
    """A few lines about the training."""
    tasks = record["tasks"]
    lines = [
        f"{len(tasks['seen'])} tasks seen, {len(tasks['validation'])} held out, {len(tasks['unseen'])} unseen; "
        f"{record['steps']} steps, loss {' '.join(str(loss) for loss in record['losses'])}, {record['seconds']} s"
    ]
    for when, found in record.get("validation", {}).items():
        lines.append(f"samples of held-out tasks, {when}: " + ", ".join(f"{key} {found[key]:.2f}" for key in found))
    return "\n".join(lines)


def table(evaluation: dict[str, Any]) -> str:
    """Shares before → after by scorer and group of tasks, and the change on unseen tasks with its p-value."""
    lines = [f"{'scorer':9}{'tasks':12}{'rows':>5}" + "".join(f"{f'top {k}':>17}" for k in CUTS)]
    for scorer, groups in evaluation["before"].items():
        for group, before in groups.items():
            after = evaluation["after"][scorer][group]
            cells = "".join(f"{before[f'top{k}']:9.2f} → {after[f'top{k}']:5.2f}" for k in CUTS)
            lines.append(f"{scorer:9}{group:12}{evaluation['rows'][group]:5}{cells}")
    for scorer, change in evaluation["unseen_top1"].items():
        low, high = change["over_tasks"]
        lines.append(
            f"{scorer}, unseen tasks, top 1: {change['points']:+.2f} points, p = {change['p_value']} (rows, paired "
            f"permutation test), 95 % interval over tasks {low:+.2f} to {high:+.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
