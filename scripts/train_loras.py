"""Train one LoRA per entry of a pool.

    python scripts/train_loras.py --base meta-llama/Llama-2-7b-hf --pool data/official/pool.json --out adapters

The script resumes task by task. An adapter's folder appears only when the adapter is complete, and an adapter whose
folder exists is not trained again. The `training.json` in each folder records the options. If an existing adapter was
trained with other options, the script stops.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import logging

from lora_retriever.data.rows import read_pool
from lora_retriever.errors import UserError
from lora_retriever.generation.loading import load_base, load_tokenizer
from lora_retriever.generation.prompt import TEMPLATES, check_template
from lora_retriever.hub import fetch
from lora_retriever.training.adapter import RECORD_FILE, TrainingOptions, train_adapter


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; returns the exit status."""
    defaults = TrainingOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    parser.add_argument("--revision", help="commit of the base model on the Hub")
    parser.add_argument("--pool", required=True, type=Path, help="pool file; one adapter is trained per entry")
    parser.add_argument("--out", required=True, type=Path, help="folder for the adapters, one sub-folder each")
    parser.add_argument("--only", help="names of pool entries, separated by commas")
    parser.add_argument("--rank", type=int, default=defaults.rank)
    parser.add_argument("--alpha", type=float, default=defaults.alpha)
    parser.add_argument("--targets", default=",".join(defaults.targets), help="module names, separated by commas")
    parser.add_argument("--dropout", type=float, default=defaults.dropout)
    parser.add_argument("--epochs", type=float, default=defaults.epochs)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument(
        "--max-tokens", type=int, default=defaults.max_tokens, help="longest prompt; longer ones are cut"
    )
    parser.add_argument("--max-answer-tokens", type=int, default=defaults.max_answer_tokens)
    parser.add_argument("--template", default="alpaca", help="alpaca, none, or a text with {inputs} in it")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--validation", type=int, default=0, help="samples of each entry that are held out; their loss is recorded"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    try:
        train_pool(args)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        print(f"train_loras: --{option} {wrong['input']}: {wrong['msg']}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"train_loras: {error}", file=sys.stderr)
        return 2
    return 0


def train_pool(args: argparse.Namespace) -> None:
    """Train the adapters of the pool that do not exist yet."""
    try:
        template = TEMPLATES.get(args.template) or check_template(args.template)
    except ValueError as error:
        raise UserError(f"--template: {error}") from error
    options = TrainingOptions(
        rank=args.rank,
        alpha=args.alpha,
        targets=tuple(args.targets.split(",")),
        dropout=args.dropout,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        max_tokens=args.max_tokens,
        max_answer_tokens=args.max_answer_tokens,
        template=template,
        seed=args.seed,
    )
    pool = {entry.model_name: entry for entry in read_pool(args.pool)}
    names = args.only.split(",") if args.only else list(pool)
    unknown = [name for name in names if name not in pool]
    if unknown:
        raise UserError(f"--only: {args.pool} has no entry {', '.join(unknown)}")
    missing = [name for name in names if not is_trained(args.out / name, options)]
    print(f"{len(names) - len(missing)} of {len(names)} adapters exist, {len(missing)} to train")
    if not missing:
        return

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # between transformers and PEFT
    folder = Path(args.base) if Path(args.base).is_dir() else fetch(args.base, args.revision)
    tokenizer = load_tokenizer(folder)
    base = load_base(folder, getattr(torch, args.dtype), args.device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("adapters", total=len(missing))
        for name in missing:
            samples = pool[name].sample
            kept = len(samples) - args.validation
            if kept < 1:
                raise UserError(
                    f"{name}: --validation {args.validation} leaves none of its {len(samples)} samples to train"
                )
            record = train_adapter(base, tokenizer, samples[:kept], options, args.out / name, samples[kept:])
            progress.console.print(f"{name}: {summary(record)}")
            progress.advance(bar)


def is_trained(folder: Path, options: TrainingOptions) -> bool:
    """Whether the adapter exists and was trained with these options.

    Raises:
        UserError: the adapter was trained with other options, or its record cannot be read.
    """
    if not folder.exists():
        return False
    path = folder / RECORD_FILE
    if not path.exists():
        raise UserError(f"{folder} exists and was not made by this script; move the folder, or choose another --out")
    try:
        made_with: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8"))["options"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: is no record of a training; delete the folder {folder} to train anew") from error
    wanted = options.model_dump(mode="json")
    differing = [
        f"{key} {made_with.get(key)} (now {value})" for key, value in wanted.items() if made_with.get(key) != value
    ]
    if differing:
        raise UserError(f"{folder} was trained with {', '.join(differing)}; choose another --out, or delete the folder")
    return True


def summary(record: dict[str, Any]) -> str:
    """One line about the training of one adapter."""
    losses = " → ".join(f"{loss:.3f}" for loss in (record["losses"][0], record["losses"][-1]))
    validation = " ".join(f"{loss:.3f}" for loss in record["validation_losses"])
    heldout = f", validation {validation}" if validation else ""
    return f"loss {losses}{heldout}, {record['steps']} steps, {record['seconds']} s"


if __name__ == "__main__":
    sys.exit(main())
