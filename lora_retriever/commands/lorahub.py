"""`lora-retriever lorahub`: learn the weights of a fusion from a task's few examples."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import count, nonnegative, penalty
from lora_retriever.errors import UserError
from lora_retriever.files import writing
from lora_retriever.progress import quieten_transformers

HELP = "learn the weights of a fusion from a task's few examples"
EXAMPLES = """
lora-retriever lorahub --base ./models/my-base --adapters adapters --examples few.jsonl --out task
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    parser.add_argument("--adapter", action="append", default=[], metavar="LOCATION", help="repeat for each adapter")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="take every adapter folder in FOLDER")
    parser.add_argument(
        "--examples", type=Path, required=True, metavar="FILE", help="the task's examples: inputs and targets"
    )
    parser.add_argument("--count", type=count, default=20, help="number of adapters that are drawn (default: 20)")
    parser.add_argument("--steps", type=count, default=40, help="number of weight vectors tried (default: 40)")
    parser.add_argument("--l1", type=penalty, default=0.05, help="penalty on the mean absolute weight (default: 0.05)")
    parser.add_argument("--seed", type=nonnegative, default=0, help="seed of the draw (default: 0)")
    parser.add_argument("--template", default="alpaca", help="a template's name, or a text with {inputs} in it")
    parser.add_argument("--system", metavar="TEXT", help="system prompt of the template chat (default: its own)")
    parser.add_argument("--batch-size", type=count, default=8, help="examples in a batch (default: 8)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    import torch

    from lora_retriever.data.rows import read_samples
    from lora_retriever.escaping import for_rich, for_terminal
    from lora_retriever.generation.generator import Generator
    from lora_retriever.generation.loading import load_composable, load_tokenizer
    from lora_retriever.generation.prompt import check_system, check_template, files_wanted
    from lora_retriever.generation.settings import GenerationSection
    from lora_retriever.hub import folder_or_id
    from lora_retriever.methods.parts.lorahub_weights import (
        ADAPTER_CONFIG,
        adapter_folders,
        draw_adapters,
        learn_checkpoint,
        weights_table,
    )
    from lora_retriever.tables import terminal

    if args.out.exists():
        raise UserError(f"--out {args.out}: exists already; name a new folder")
    try:
        check_system(args.system, check_template(args.template))
    except ValueError as error:
        raise UserError(str(error)) from error
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")
    samples = read_samples(args.examples)
    with writing(args.out):  # an unusable path is refused before the learning
        args.out.parent.mkdir(parents=True, exist_ok=True)
    locations, passed_over = adapter_folders(args.adapter, args.adapters)
    if passed_over:
        names = ", ".join(path.name for path in passed_over)
        console.print(for_rich(f"--adapters {args.adapters}: passed over, no {ADAPTER_CONFIG}: {names}"))
    drawn = draw_adapters(locations, args.count, args.seed)
    settings = GenerationSection(template=args.template, system=args.system, batch_size=args.batch_size)
    base = folder_or_id(args.base, files_wanted(args.template))
    quieten_transformers()
    with console.status("loading"):
        model = load_composable(base, {location: location for location in drawn}, getattr(torch, args.dtype), device)
        generator = Generator(model, load_tokenizer(base), settings)
    learned = learn_checkpoint(generator, samples, args.out, args.steps, args.l1, args.seed, console)
    print(terminal(weights_table(learned)), end="")
    print(for_terminal(f"{args.out}: fusion of {len(drawn)} adapters"))
    return 0
