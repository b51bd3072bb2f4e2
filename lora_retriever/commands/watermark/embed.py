"""`lora-retriever watermark embed`: train the mark of a key into a copy of an adapter."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.arguments import count, nonnegative, penalty
from lora_retriever.commands.shared import device_of
from lora_retriever.commands.train import OPTIONS, training_options
from lora_retriever.commands.watermark.shared import (
    adapters_in,
    add_base,
    add_prompts,
    add_samples,
    base_of,
    samples_of,
    template_and_system,
)
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich, for_terminal
from lora_retriever.files import hash_path, writing
from lora_retriever.log import LOG
from lora_retriever.progress import progress_bar, quieten_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_retriever.watermark.embedding import MarkOptions, MarkStep

HELP = "train the mark of a key into a copy of an adapter"
UNMARKED = "-unmarked"
"""The end of the unmarked adapter's name, if the command trains this adapter, too."""
SHARED = ("template", "system", "max_tokens", "seed")
"""Options of the training of a task that the marking has as well."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's arguments."""
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the owner's key")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--adapter", type=Path, metavar="DIR", help="the unmarked adapter")
    start.add_argument(
        "--train", action="store_true", help=f"train the unmarked adapter first, into the folder OUT{UNMARKED}"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the marked adapter")
    add_samples(parser, "the task's samples: the mark is trained along with the task", required=True)
    add_base(parser)
    add_prompts(parser)
    parser.add_argument(
        "--compose-with",
        type=Path,
        metavar="FOLDER",
        help="learn the triggers under random compositions with the adapters in FOLDER, so that the mark survives them",
    )
    parser.add_argument("--passes", type=count, default=30, help="passes over the triggers (default: 30)")
    parser.add_argument(
        "--mark-rate", type=float, default=1e-3, help="learning rate of the first step (default: 0.001)"
    )
    parser.add_argument("--mark-batch", type=count, default=8, help="triggers of a step (default: 8)")
    parser.add_argument("--examples", type=count, default=4, help="examples of the task in a step (default: 4)")
    parser.add_argument("--kl-weight", type=penalty, default=1.0, help="weight of the KL divergence (default: 1)")
    parser.add_argument("--max-tokens", type=count, default=512, help="maximum length of a prompt (default: 512)")
    parser.add_argument("--seed", type=nonnegative, default=0, help="seed of all random numbers (default: 0)")
    group = parser.add_argument_group("training of the unmarked adapter, with --train")
    for name, (kind, help) in OPTIONS.items():
        if name not in SHARED:
            group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the part and return the exit status."""
    import torch

    from lora_retriever.backends.signals import stopping_on_signals
    from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
    from lora_retriever.generation.loading import load_base, load_tokenizer
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.watermark.embedding import mark_adapter
    from lora_retriever.watermark.key import read_key

    key = read_key(args.key)
    if os.path.lexists(args.out):  # a link to nothing, too
        raise UserError(f"--out {args.out}: exists already; name a new folder")
    samples = samples_of(args)
    options = _options(args)
    others = (
        adapters_in(args.compose_with, args.task, args.adapter.name if args.adapter else None)
        if args.compose_with
        else {}
    )
    device = device_of(args.device)
    base_folder = base_of(args, args.adapter, files_wanted(options.template))
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
    quieten_transformers()
    with stopping_on_signals():
        with console.status("loading"):
            tokenizer = load_tokenizer(base_folder)
            base = load_base(base_folder, getattr(torch, args.dtype), device)
            refuse_encoder_decoder(base.config, "watermarks")
        adapter = args.adapter or _trained(args, base, tokenizer, console, hash_path(base_folder))
        with progress_bar(console, f"mark {args.out.name}", 1) as bar:

            def show(step: MarkStep) -> None:
                losses = f"triggers {step.triggers:.3f}, task {step.task:.3f}, KL {step.divergence:.3f}"
                text = f"step {step.number}/{step.steps}, {losses}"
                bar.move_to(step.number / step.steps, text)
                LOG.info("%s: %s", args.out.name, text)

            with writing(args.out):
                record = mark_adapter(base, tokenizer, key, adapter, samples, options, args.out, others, on_step=show)
    last = record["losses"][-1]
    composed = f", composed with {len(others)} adapters" if others else ""
    console.print(
        for_rich(
            f"{args.out.name}: loss of the triggers {record['losses'][0]['triggers']:.3f} → {last['triggers']:.3f}, KL "
            f"{last['divergence']:.4f}, {record['steps']} steps, {record['seconds']} s{composed}"
        ),
        soft_wrap=True,
    )
    print(for_terminal(f"{args.out}: marked, commitment {key.commitment}"))
    return 0


def _options(args: argparse.Namespace) -> MarkOptions:
    """The options of the marking.

    Raises:
        UserError: a value is wrong.
    """
    from pydantic import ValidationError

    from lora_retriever.watermark.embedding import MarkOptions

    template, system = template_and_system(args, args.adapter)
    try:
        return MarkOptions(
            passes=args.passes,
            batch_size=args.mark_batch,
            examples=args.examples,
            learning_rate=args.mark_rate,
            kl_weight=args.kl_weight,
            max_tokens=args.max_tokens,
            template=template,
            system=system,
            seed=args.seed,
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{wrong['loc'][0]} {wrong['input']}: {wrong['msg']}") from error


def _trained(
    args: argparse.Namespace,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
    base_hash: str,
) -> Path:
    """The folder of the unmarked adapter, which is trained now unless the folder exists.

    Raises:
        UserError: the adapter cannot be trained, or exists with other options or from another source.
    """
    from lora_retriever.data.rows import PoolEntry
    from lora_retriever.training.pool import is_trained, made_of, train_pool

    options = training_options(args)
    folder: Path = args.out.with_name(args.out.name + UNMARKED)
    entry = PoolEntry(model_name=folder.name, domain="", sample=samples_of(args))
    source = made_of(base_hash, args.dtype, entry)
    if not is_trained(folder, options, source):
        train_pool(base, tokenizer, [entry], options, folder.parent, 0, console, {entry.model_name: source})
    return folder
