"""`lora-retriever train`: one LoRA adapter for each entry of a pool."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.arguments import add_columns, names, nonnegative, pool_source
from lora_retriever.commands.shared import device_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_terminal
from lora_retriever.files import hash_path, writing
from lora_retriever.progress import quieten_transformers

if TYPE_CHECKING:
    from lora_retriever.training.lora import TrainingOptions

HELP = "train one LoRA adapter for each entry of a pool; a stopped training goes on"
EXAMPLES = """
lora-retriever train --base ./models/my-base --pool pool.jsonl --out adapters
lora-retriever train --base org/model --pool pool.jsonl --out adapters --only dart,e2e --epochs 3 --validation 2
lora-retriever train --base org/model --pool steps.json --out adapters --procedure steps
lora-retriever train --base org/model --pool relations.json --out adapters --detect collective_pu --validation 200
lora-retriever train --base org/model --pool pool.jsonl --out adapters --rank 16 --targets q_proj,k_proj,v_proj,o_proj
"""
OPTIONS: dict[str, tuple[type, str]] = {
    "rank": (int, "rank of the adapters (default: 6)"),
    "alpha": (float, "alpha of the adapters (default: 12)"),
    "targets": (str, "names of the modules that get an adapter, separated by commas (default: q_proj,v_proj)"),
    "dropout": (float, "dropout of the adapter's input (default: 0.05)"),
    "epochs": (float, "passes over the samples (default: 5)"),
    "learning_rate": (float, "learning rate of the first step; the rate falls linearly to 0 (default: 0.0003)"),
    "batch_size": (int, "samples of a step (default: 4)"),
    "max_tokens": (int, "maximum length of a prompt, in tokens; longer inputs are cut (default: 512)"),
    "max_answer_tokens": (int, "maximum length of an answer, in tokens; longer answers are cut (default: 512)"),
    "template": (str, "alpaca, none, chat, or a text with {inputs} in it (default: alpaca)"),
    "system": (str, "system prompt of the template chat (default: the chat template's own)"),
    "procedure": (str, "the procedure whose questions the samples teach, such as steps (default: plain)"),
    "detect": (
        str,
        "cross_entropy, nnpu or collective_pu: train a detection head by this loss; the targets of samples are triples",
    ),
    "pi": (float, "weight of the given labels in collective_pu (default: 0.04)"),
    "missing": (float, "share of true labels that nnpu and collective_pu expect to be missing (default: 0.05)"),
    "seed": (int, "seed of all random numbers (default: 0)"),
}
"""The options of a training, by their names in `TrainingOptions`: type and help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    parser.add_argument("--revision", help="commit of the base model on the Hub")
    parser.add_argument("--pool", required=True, type=Path, help="pool file; one adapter is trained for each entry")
    add_columns(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder for the adapters, one sub-folder each")
    parser.add_argument("--only", type=names, help="names of pool entries, separated by commas (default: all)")
    add_training_options(parser)
    parser.add_argument(
        "--validation",
        type=nonnegative,
        default=0,
        help="number of samples of each entry that are held out; their loss is recorded (default: 0)",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or mps; auto: a GPU if there is one")


def add_training_options(parser: argparse._ActionsContainer) -> None:
    """Add the arguments that `training_options` reads."""
    for name, (kind, help) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    import torch

    from lora_retriever.backends.signals import stopping_on_signals
    from lora_retriever.data.rows import read_pool
    from lora_retriever.generation.loading import load_base, load_tokenizer
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.hub import fetch, folder_or_id
    from lora_retriever.training.pool import chosen_entries, is_trained, made_of, train_pool

    options = training_options(args)
    pool = read_pool(pool_source(args.pool, args))
    entries = chosen_entries(pool, args.only, args.validation, detects=options.detect is not None)
    wanted = files_wanted(options.template)
    folder = fetch(args.base, args.revision, wanted) if args.revision else folder_or_id(args.base, wanted)
    base_hash = hash_path(folder)
    sources = {entry.model_name: made_of(base_hash, args.dtype, entry, args.validation) for entry in entries}
    missing = [e for e in entries if not is_trained(args.out / e.model_name, options, sources[e.model_name])]
    device = device_of(args.device)
    print(f"{len(entries) - len(missing)} of {len(entries)} adapters exist, {len(missing)} to train", flush=True)
    if not missing:
        return 0
    with writing(args.out):  # an unusable path is refused before the training
        args.out.mkdir(parents=True, exist_ok=True)
    quieten_transformers()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # between transformers and PEFT
    with stopping_on_signals():
        with console.status("loading"):
            tokenizer = load_tokenizer(folder)
            base = load_base(folder, getattr(torch, args.dtype), device)
        with writing(args.out):
            train_pool(base, tokenizer, missing, options, args.out, args.validation, console, sources)
    print(for_terminal(f"{args.out}: {len(missing)} adapters trained"))
    return 0


def training_options(args: argparse.Namespace) -> TrainingOptions:
    """The options that the arguments give. All other options have their defaults.

    Raises:
        UserError: the value of an option is wrong.
    """
    from pydantic import ValidationError

    from lora_retriever.generation.prompt import TEMPLATES, check_template
    from lora_retriever.training.lora import TrainingOptions

    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if "targets" in given:
        given["targets"] = tuple(given["targets"].split(","))
    try:
        if "template" in given:
            given["template"] = TEMPLATES.get(given["template"]) or check_template(given["template"])
        return TrainingOptions(**given)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise UserError(f"--{option} {wrong['input']}: {wrong['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise UserError(f"--template: {error}") from error
