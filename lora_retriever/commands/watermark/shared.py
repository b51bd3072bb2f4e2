"""Arguments that several parts of `lora-retriever watermark` share, and the models that these arguments name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from lora_retriever.data.rows import Sample
    from lora_retriever.generation.generator import Generator

CONFIG_FILE = "adapter_config.json"
BATCH_SIZE = 16
"""Maximum number of triggers that are answered together."""


def add_samples(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """Add the arguments for the samples of the owner's task."""
    parser.add_argument("--samples", type=Path, metavar="FILE", required=required, help=f"pool file with {help}")
    parser.add_argument("--task", metavar="NAME", help="the task's name in the pool file (default: its only entry)")


def samples_of(args: argparse.Namespace) -> tuple[Sample, ...]:
    """The samples of the owner's task.

    Raises:
        UserError: the file is unusable, or does not have the task.
    """
    from lora_retriever.data.rows import read_pool

    entries = {entry.model_name: entry.sample for entry in read_pool(args.samples)}
    if args.task is None and len(entries) == 1:
        return next(iter(entries.values()))
    if args.task is None:
        raise UserError(f"{args.samples}: has {len(entries)} entries; name the task with --task")
    if args.task not in entries:
        raise UserError(f"{args.samples}: has no entry {args.task}")
    return entries[args.task]


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how a text becomes a prompt."""
    parser.add_argument(
        "--template",
        help="a template's name, or a text with {inputs} in it (default: the template and the system prompt of the "
        "adapter's record, or alpaca)",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="system prompt of the template chat (default: the record's, or its own)"
    )


def template_and_system(args: argparse.Namespace, adapter: Path | None) -> tuple[str, str | None]:
    """The template that the arguments name, that the record of an adapter names, or `alpaca`; and the system prompt.

    Where the record names the template, the record names the system prompt too, unless the arguments name one.

    Raises:
        UserError: the template is unknown, or does not take the system prompt.
    """
    from lora_retriever.generation.prompt import TEMPLATES, check_system, check_template

    recorded = {} if args.template else training_options_of(adapter)
    found = args.template or recorded.get("template") or "alpaca"
    system = recorded.get("system") if args.system is None else args.system
    try:
        check_system(system, check_template(found))
    except ValueError as error:
        raise UserError(f"--template: {error}") from error
    return TEMPLATES.get(found, found), system


def training_options_of(adapter: Path | None) -> dict[str, str]:
    """The options of an adapter's training that are texts, from the adapter's record; empty if there is no record."""
    from lora_retriever.files import read_bytes
    from lora_retriever.training.lora import RECORD_FILE

    if adapter is None:
        return {}
    try:
        options = dict(json.loads(read_bytes(adapter / RECORD_FILE))["options"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return {name: value for name, value in options.items() if isinstance(value, str)}


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the base and for the device."""
    parser.add_argument("--base", help="base model: a folder or a Hub id (default: the one that the adapter names)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or mps; auto: a GPU if there is one")


def base_of(args: argparse.Namespace, adapter: str | Path | None, wanted: Sequence[str] | None = None) -> Path:
    """The folder of the base that the arguments or an adapter name.

    Raises:
        UserError: neither names a base, or the base is not there.
    """
    from lora_retriever.hub import WANTED, folder_or_id

    name = args.base
    if name is None and adapter is not None:
        try:
            content = json.loads((Path(adapter) / CONFIG_FILE).read_text(encoding="utf-8"))
            name = content.get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            name = None
    if not name:
        raise UserError("no adapter names its base; name the base with --base")
    return folder_or_id(name, WANTED if wanted is None else wanted)


def load_suspects(
    args: argparse.Namespace, base: Path, adapters: Mapping[str, Path | str], template: str, system: str | None
) -> Generator:
    """The base with the adapters, ready to answer triggers.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    import torch

    from lora_retriever.commands.shared import device_of
    from lora_retriever.generation.encoder_decoder import refuse_encoder_decoder
    from lora_retriever.generation.generator import Generator
    from lora_retriever.generation.loading import load_composable, load_tokenizer
    from lora_retriever.generation.settings import GenerationSection
    from lora_retriever.watermark.suspects import ANSWER_TOKENS

    settings = GenerationSection(template=template, system=system, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH_SIZE)
    model = load_composable(base, adapters, getattr(torch, args.dtype), device_of(args.device))
    refuse_encoder_decoder(model.config, "watermarks")
    return Generator(model, load_tokenizer(base), settings)


def adapters_in(folder: Path, *left_out: str | None) -> dict[str, Path]:
    """The adapters in the sub-folders of a folder by their names, without the names that are left out.

    Raises:
        UserError: there is no adapter.
    """
    from lora_retriever.methods.parts.lorahub_weights import adapter_folders

    found = {Path(location).name: Path(location) for location in adapter_folders([], folder)[0]}
    kept = {name: path for name, path in found.items() if name not in left_out}
    if not kept:
        raise UserError(f"{folder}: has no adapter but {', '.join(found)}")
    return kept
