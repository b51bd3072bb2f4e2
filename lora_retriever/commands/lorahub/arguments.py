"""The arguments of `lora-retriever lorahub`, and which of the arguments go together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lora_retriever.commands.arguments import PROFILES, add_set, count, names, nonnegative, penalty
from lora_retriever.errors import UserError

SCORINGS = {"exact": "em", "starts-with": "starts_with", "likelihood": "choice"}
"""The ways of scoring, with the names of their metrics."""
BASELINES = ("zero_shot", "in_context", "mixture", "lora")

# The defaults of arguments that belong to one use of the command. The parser's own default is None for these arguments,
# so that an argument which is not used is noticed.
OF_PROFILES: dict[str, Any] = {
    "base": None,
    "adapter": [],
    "adapters": None,
    "encoder": None,
    "pool": None,
    "template": "alpaca",
    "system": None,
    "max_prompt_tokens": 512,
    "max_new_tokens": 50,
    "batch_size": 8,
    "dtype": "float32",
    "device": "auto",
}
"""The defaults of arguments whose values a profile can give."""
OF_EXAMPLES: dict[str, Any] = {"out": None, "seed": 0}
OF_TASKS: dict[str, Any] = {
    "results": None,
    "names": [],
    "descriptions": None,
    "draws": 5,
    "shots": 5,
    "held_out": 100,
    "split_seed": 42,
    "limit": None,
    "baselines": ("zero_shot", "in_context", "lora"),
    "without_own": False,
    "keep_answers": False,
    "lora_rank": 16,
    "lora_epochs": 20,
    "lora_rate": 2e-4,
    "lora_targets": ["q_proj", "v_proj"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--examples", type=Path, metavar="FILE", help="the task's examples: inputs and targets")
    what.add_argument("--tasks", type=Path, metavar="FOLDER", help="the experiment: files {input, target}, one a task")
    parser.add_argument("--out", type=Path, help="with --examples: folder for the checkpoint")
    profile = parser.add_argument("--profile", help="take base, adapters, encoder, pool and prompts of this profile")
    PROFILES.complete(profile)
    add_set(parser)
    _add_models(parser.add_argument_group("models, without --profile"))
    _add_learning(parser.add_argument_group("how weights are learned"))
    _add_answers(parser.add_argument_group("prompts and answers, without --profile"))
    parser.add_argument("--scoring", choices=list(SCORINGS), default="exact", help="of answers (default: exact)")
    _add_experiment(parser.add_argument_group("the experiment, with --tasks"))


def settle(args: argparse.Namespace) -> None:
    """Check that the arguments go together, and give the missing arguments their defaults.

    Raises:
        UserError: an argument is missing, or would have no effect.
    """
    if args.profile is not None:
        _refuse(args, OF_PROFILES, "--profile says this; use --set FIELD=VALUE for another value")
    elif args.base is None:
        raise UserError("name a base model with --base, or a profile with --profile")
    elif args.set_fields:
        raise UserError("--set: sets a field of a profile; name the profile with --profile")
    if args.examples:
        _refuse(args, OF_TASKS, "belongs to the experiment; give it with --tasks, and not with --examples")
        if args.out is None:
            raise UserError("--examples: name a folder for the checkpoint with --out")
        if os.path.lexists(args.out):  # a link to nothing, too
            raise UserError(f"--out {args.out}: exists already; name a new folder")
    else:
        _refuse(args, OF_EXAMPLES, "belongs to one task; give it with --examples, and not with --tasks")
        if args.results is None:
            raise UserError("--tasks: name a results folder with --results")
    for name, default in {**OF_PROFILES, **OF_EXAMPLES, **OF_TASKS}.items():
        if getattr(args, name) is None:
            setattr(args, name, default)


def _refuse(args: argparse.Namespace, without_effect: Collection[str], reason: str) -> None:
    if given := [name for name in without_effect if getattr(args, name) is not None]:
        raise UserError(f"--{given[0].replace('_', '-')}: {reason}")


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base", help="base model: a folder or a Hub id")
    group.add_argument("--adapter", action="append", metavar="LOCATION", help="repeat for each adapter")
    group.add_argument("--adapters", type=Path, metavar="FOLDER", help="take every adapter folder in FOLDER")
    group.add_argument("--encoder", metavar="LOCATION", help="encoder for what is retrieved")
    group.add_argument("--pool", type=Path, metavar="FILE", help="samples of the adapters, for what is retrieved")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: auto, a GPU if there is one")


def _add_learning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--count", type=count, default=20, help="number of adapters of a draw (default: 20)")
    group.add_argument(
        "--choice",
        choices=["random", "retrieved", "loss"],
        default="random",
        help="which adapters: drawn, retrieved for the examples, or with the lowest loss alone (default: random)",
    )
    group.add_argument(
        "--objective", choices=["loss", "score"], default="loss", help="what the weights optimise (default: loss)"
    )
    group.add_argument(
        "--optimizer", choices=["cobyla", "cma", "random"], default="cobyla", help="default: cobyla, the paper's"
    )
    group.add_argument("--steps", type=count, default=40, help="number of weight vectors tried (default: 40)")
    group.add_argument("--bound", type=_above_0, default=1.5, help="maximum absolute weight (default: 1.5)")
    group.add_argument("--l1", type=penalty, default=0.05, help="penalty on the absolute weights (default: 0.05)")
    group.add_argument(
        "--penalty", choices=["mean", "sum"], default="mean", help="of the absolute weights (default: mean)"
    )
    group.add_argument("--seed", type=nonnegative, help="with --examples: seed of the draw (default: 0)")


def _add_answers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--template", help="a template's name, or a text with {inputs} in it (default: alpaca)")
    group.add_argument("--system", metavar="TEXT", help="system prompt of the template chat (default: its own)")
    group.add_argument("--max-prompt-tokens", type=count, help="longer prompts are cut (default: 512)")
    group.add_argument("--max-new-tokens", type=count, help="longest answer (default: 50)")
    group.add_argument("--batch-size", type=count, help="examples or rows in a batch (default: 8)")


def _add_experiment(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--results", type=Path, metavar="DIR", help="results folder; a stopped experiment goes on")
    group.add_argument("--names", type=names, metavar="TASK,TASK", help="these tasks (default: all)")
    group.add_argument(
        "--descriptions", type=Path, metavar="FOLDER", help="a file TASK.txt with the task's description, as of BBH"
    )
    group.add_argument("--draws", type=count, help="draws of adapters, with seeds from 1 (default: 5)")
    group.add_argument("--shots", type=count, help="number of examples (default: 5)")
    group.add_argument("--held-out", type=count, help="rows that are not tested (default: 100)")
    group.add_argument("--split-seed", type=nonnegative, help="seed of examples (default: 42)")
    group.add_argument("--limit", type=count, metavar="N", help="test at most N rows of each task")
    group.add_argument(
        "--baselines",
        type=_baselines,
        metavar="NAME,NAME",
        help=f"of {', '.join(BASELINES)}; or none (default: zero_shot,in_context,lora)",
    )
    group.add_argument(
        "--without-own", action="store_true", default=None, help="leave out the adapter of the task's name"
    )
    group.add_argument(
        "--keep-answers", action="store_true", default=None, help="keep the answers of a results folder of other code"
    )
    group.add_argument("--lora-rank", type=count, help="of the LoRA on the examples (default: 16)")
    group.add_argument("--lora-epochs", type=count, help="default: 20")
    group.add_argument("--lora-rate", type=_above_0, help="learning rate (default: 0.0002)")
    group.add_argument("--lora-targets", type=names, metavar="NAME,NAME", help="default: q_proj,v_proj")


def _above_0(text: str) -> float:
    """A finite number above 0. Raises `argparse.ArgumentTypeError` for another number."""
    number = penalty(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _baselines(text: str) -> tuple[str, ...]:
    """The names of baselines in the table's order. Raises `argparse.ArgumentTypeError` for an unknown name."""
    given = [] if text == "none" else names(text)
    if unknown := [name for name in given if name not in BASELINES]:
        raise argparse.ArgumentTypeError(f"unknown baseline {unknown[0]!r} (known: {', '.join(BASELINES)}, or none)")
    return tuple(name for name in BASELINES if name in given)
