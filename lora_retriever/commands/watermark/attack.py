"""`lora-retriever watermark attack`: measures a mark after compositions, changes, training and other prompts."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.arguments import SCORERS, count, names, nonnegative
from lora_retriever.commands.watermark.shared import (
    adapters_in,
    add_base,
    add_prompts,
    add_samples,
    base_of,
    load_suspects,
    samples_of,
    template_and_system,
)
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich, for_terminal
from lora_retriever.files import hash_path, write_text, writing
from lora_retriever.progress import quieten_transformers

if TYPE_CHECKING:
    from lora_retriever.watermark.attacks.scene import Further, Routing

HELP = "measure what is left of a mark after each of many attacks, and false alarms; a stopped command goes on"
GROUPS = ("composing", "merging", "training", "changing", "asking", "routing", "innocents", "harm")
LEVEL = 1e-3
TABLE = "table.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's arguments."""
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the owner's key")
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="the marked adapter")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--unmarked", type=Path, metavar="DIR", help="the adapter without the mark")
    parser.add_argument("--others", type=Path, metavar="FOLDER", help="take every adapter in FOLDER as another adapter")
    add_base(parser)
    add_prompts(parser)
    parser.add_argument(
        "--only", type=names, default=list(GROUPS), help=f"groups of attacks (default: {','.join(GROUPS)})"
    )
    parser.add_argument("--draws", type=count, default=3, help="draws of an attack that draws (default: 3)")
    parser.add_argument(
        "--decoys", type=nonnegative, default=100, help="keys that the adapter does not know (default: 100)"
    )
    parser.add_argument("--seed", type=nonnegative, default=0, help="seed of all draws (default: 0)")
    add_samples(parser, "samples of the task, for further training")
    parser.add_argument("--other-task", metavar="NAME", help="another entry of --samples, for further training on it")
    parser.add_argument(
        "--epochs", type=_numbers, default=[1, 3, 5], help="epochs of further training (default: 1,3,5)"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of further training (default: 0.0003)")
    parser.add_argument("--batch-size", type=count, default=4, help="of further training (default: 4)")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="rows of the task, for the harm")
    parser.add_argument("--pool", type=Path, metavar="FILE", help="pool file, for routing; --task names the own entry")
    parser.add_argument("--encoder", metavar="LOCATION", help="encoder, for routing with a scorer that needs one")
    SCORERS.complete(parser.add_argument("--scorer", default="lexical", help="scorer of routing (default: lexical)"))
    parser.add_argument("--k", type=count, default=3, help="adapters that routing finds (default: 3)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the part and return the exit status."""
    from lora_retriever.backends.signals import stopping_on_signals
    from lora_retriever.data.rows import read_rows
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.tables import markdown, terminal
    from lora_retriever.watermark.attacks.matrix import run_matrix, tables_of
    from lora_retriever.watermark.attacks.scene import MARKED, Scene
    from lora_retriever.watermark.key import read_key

    if unknown := [name for name in args.only if name not in GROUPS]:
        raise UserError(f"--only: unknown group {unknown[0]} (known: {', '.join(GROUPS)})")
    key = read_key(args.key)
    rows = [row for row in read_rows(args.rows) if args.task in (None, row.task)] if args.rows else []
    if args.rows and not rows:
        raise UserError(f"{args.rows}: has no row of the task {args.task}")
    groups = _possible(args, console)
    further = _further(args)
    others = adapters_in(args.others, args.adapter.name, args.task) if args.others else {}
    folders: dict[str, Path | str] = {MARKED: args.adapter, **others}
    if args.unmarked:
        folders["the unmarked adapter"] = args.unmarked
    template, system = template_and_system(args, args.adapter)
    base = base_of(args, args.adapter, files_wanted(template))
    with writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    quieten_transformers()
    with stopping_on_signals():
        routing = _routing(args, others)
        with console.status("loading"):
            generator = load_suspects(args, base, folders, template, system)
        scene = Scene(
            key,
            generator,
            args.adapter,
            "the unmarked adapter" if args.unmarked else None,
            tuple(others),
            args.out / "scratch",
            args.draws,
            args.decoys,
            args.seed,
            further,
            routing,
            rows,
        )
        identity = {
            "commitment": key.commitment,
            "adapter": hash_path(args.adapter),
            "unmarked": hash_path(args.unmarked) if args.unmarked else None,
            "others": {name: hash_path(folder) for name, folder in others.items()},
            "base": hash_path(base),
            "template": template,
            "draws": args.draws,
            "decoys": args.decoys,
            "seed": args.seed,
            "further_training": [args.learning_rate, args.batch_size],
        }
        try:
            results = run_matrix(scene, groups, args.out, identity, console)
        finally:
            shutil.rmtree(args.out / "scratch", ignore_errors=True)
    tables = tables_of(results, LEVEL)
    with writing(args.out):
        write_text(args.out / TABLE, "\n".join(map(markdown, tables)))
    print("\n".join(map(terminal, tables)), end="")
    print(for_terminal(f"{args.out / TABLE}: the tables"))
    return 0


def _possible(args: argparse.Namespace, console: Console) -> list[str]:
    """The groups of attacks whose data the arguments name. A note says which groups are left out."""
    missing = {
        "harm": [name for name in ("rows", "unmarked") if getattr(args, name) is None],
        "training": [name for name in ("samples",) if args.samples is None],
        "routing": [name for name in ("pool", "task") if getattr(args, name) is None],
    }
    for group, wanted in missing.items():
        if wanted and group in args.only:
            console.print(for_rich(f"{group}: left out, needs {' and '.join(f'--{name}' for name in wanted)}"))
    return [group for group in args.only if not missing.get(group)]


def _further(args: argparse.Namespace) -> Further:
    """How the adapter is trained further.

    Raises:
        UserError: the pool file does not have a task.
    """
    from lora_retriever.watermark.attacks.scene import Further

    if args.samples is None:
        return Further()
    other = None
    if args.other_task is not None:
        of_other = argparse.Namespace(samples=args.samples, task=args.other_task)
        other = (args.other_task, samples_of(of_other))
    return Further(samples_of(args), other, tuple(args.epochs), args.learning_rate, args.batch_size)


def _routing(args: argparse.Namespace, others: dict[str, Path]) -> Routing | None:
    """The index of the adapters that are at hand.

    Raises:
        UserError: the pool lacks the own task, or the encoder cannot be loaded.
    """
    if args.pool is None or "routing" not in args.only:
        return None
    from lora_retriever.commands.shared import scorer_of
    from lora_retriever.data.rows import read_pool
    from lora_retriever.hub import ENCODER_WANTED, folder_or_id
    from lora_retriever.retrieval.encoders import load_encoder
    from lora_retriever.retrieval.index import AdapterIndex
    from lora_retriever.watermark.attacks.scene import Routing

    pool = [entry for entry in read_pool(args.pool) if entry.model_name in {*others, args.task}]
    if args.task not in {entry.model_name for entry in pool}:
        raise UserError(f"{args.pool}: has no entry for the marked adapter; name the entry with --task")
    encoder = load_encoder(folder_or_id(args.encoder, ENCODER_WANTED)) if args.encoder else None
    try:
        index = AdapterIndex.from_texts(pool, encoder, scorer_of(args.scorer))
    except ValueError as error:
        raise UserError(f"--scorer {args.scorer}: {error}") from error
    return Routing(index, args.task, min(args.k, len(pool)))


def _numbers(text: str) -> list[float]:
    """Numbers above 0, separated by commas.

    Raises:
        argparse.ArgumentTypeError: a number is not above 0.
        ValueError: a text is no number.
    """
    numbers = [float(part) for part in text.split(",")]
    if not all(0 < number < 1000 for number in numbers):
        raise argparse.ArgumentTypeError("must be numbers above 0")
    return numbers
