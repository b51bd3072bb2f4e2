"""The command `lora-retriever`: arguments in, exit status out. What the commands do lives elsewhere.

Exit status: 0 all that was asked for was done, 1 rows failed, 2 arguments or input are unusable.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.files import write_json, write_text

DEFAULT_PROFILE = "tiny"
Handler = Callable[[argparse.Namespace, Console], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = build_parser().parse_args(arguments)
    console = Console(stderr=True)
    handler: Handler = args.handler
    try:
        return handler(args, console)
    except RowsFailedError as error:
        print(f"lora-retriever: {error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"lora-retriever: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "lora-retriever: stopped; the rows done so far are on disk, and the same command goes on", file=sys.stderr
        )
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="lora-retriever", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", run_command, "answer a benchmark under every method of a profile")
    run.add_argument(
        "--profile", default=DEFAULT_PROFILE, help="a bundled profile's name, or a YAML file (default: tiny)"
    )
    run.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    run.add_argument("--only", type=_names, help="methods, separated by commas (default: the profile's)")
    run.add_argument("--limit", type=_count, help="rows per task (default: all)")
    run.add_argument("--table", action="store_true", help="print the table when done")

    retrieval = _command(commands, "retrieval", retrieval_command, "how often a scorer finds the input's own adapter")
    _encoder_options(retrieval)
    retrieval.add_argument("--inputs", type=Path, required=True, help="benchmark rows")
    retrieval.add_argument("--scorer", nargs="+", action="extend", required=True, metavar="NAME")
    retrieval.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")

    index = _command(commands, "index", index_command, "encode a pool's samples and save the index")
    _encoder_options(index)
    index.add_argument("--scorer", default="cosine", metavar="NAME")
    index.add_argument("--out", type=Path, required=True, help="folder for the index")

    compose = _command(commands, "compose", compose_command, "save a composition as an ordinary PEFT checkpoint")
    compose.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    compose.add_argument(
        "--adapter", action="append", required=True, metavar="LOCATION=WEIGHT", help="repeat for each adapter"
    )
    compose.add_argument("--mode", choices=["mixture", "fusion"], default="mixture")
    compose.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")

    summarize = _command(commands, "summarize", summarize_command, "the table of a results folder")
    summarize.add_argument("results", type=Path, nargs="?", default=Path("results") / DEFAULT_PROFILE, metavar="DIR")
    summarize.add_argument("--scoring", choices=["paper"], default="paper")
    summarize.add_argument("--format", choices=["table", "markdown", "latex", "csv", "json"], default="table")
    summarize.add_argument("--by-task", action="store_true", help="a row per task instead of per domain")
    summarize.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")

    doctor = _command(commands, "doctor", doctor_command, "what is missing or will not fit, before anything is loaded")
    doctor.add_argument("--profile", default=DEFAULT_PROFILE)
    doctor.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    return parser


# Imports that take seconds stand inside the commands: `--help`, `summarize` and mistyped arguments answer at once.


def run_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.evaluate import evaluate
    from lora_retriever.profile import load_profile

    profile = load_profile(args.profile)
    results = args.results or Path("results") / profile.name
    _quieten_transformers()
    evaluate(profile, args.only, results, args.limit, console)
    if args.table:
        args = build_parser().parse_args(["summarize", str(results)])
        return summarize_command(args, console)
    return 0


def retrieval_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.data import read_pool, read_rows
    from lora_retriever.retrieval import index_pool, report

    for scorer in args.scorer:
        _check_scorer(scorer)
    rows, pool = read_rows(args.inputs), read_pool(args.pool)
    encoder = _load_encoder(args)
    with console.status(f"encoding {sum(len(entry.sample) for entry in pool)} samples and {len(rows)} inputs"):
        index = index_pool(encoder, pool, args.scorer[0])
        queries = encoder.encode([row.inputs for row in rows])
    result = report(index, args.scorer, rows, queries)
    print(f"own adapter among the best k, in percent of {result['rows']} rows")
    print(f"{'scorer':<16}{'top 1':>8}{'top 3':>8}{'top 5':>8}{'top 8':>8}")
    for name, shares in result["scorers"].items():
        print(f"{name:<16}" + "".join(f"{'–' if share is None else f'{share:.2f}':>8}" for share in shares.values()))
    if args.json:
        _writing(args.json, lambda: write_json(args.json, result))
    return 0


def index_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.data import read_pool
    from lora_retriever.retrieval import index_pool

    _check_scorer(args.scorer)
    pool = read_pool(args.pool)
    encoder = _load_encoder(args)
    with console.status("encoding the pool"):
        index = index_pool(encoder, pool, args.scorer)
    _writing(args.out, lambda: index.save(args.out))
    print(f"{args.out}: {len(index.names)} adapters, scorer {index.scorer}")
    return 0


def compose_command(args: argparse.Namespace, console: Console) -> int:
    import torch

    from lora_retriever.generation import load_composable
    from lora_retriever.hub import folder_or_id
    from peft_composition import CompositionError

    weights: dict[str, float] = {}
    for text in args.adapter:
        location, _, weight = text.rpartition("=")
        if location in weights:
            raise UserError(f"--adapter {text}: {location} is named twice")
        try:
            weights[location] = float(weight)
        except ValueError as error:
            raise UserError(f"--adapter {text}: expected LOCATION=WEIGHT, for example adapters/dart=0.5") from error
    base = folder_or_id(args.base)
    _quieten_transformers()
    with console.status("loading"):
        model = load_composable(base, {location: location for location in weights}, torch.float32, "cpu")
    try:
        names, values = list(weights), list(weights.values())
        _writing(args.out, lambda: model.save_composition(names, values, mode=args.mode, path=args.out))
    except CompositionError as error:
        raise UserError(str(error)) from error
    print(f"{args.out}: {args.mode} of {len(weights)} adapters")
    return 0


def summarize_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.summary import summarize, to_json, to_table
    from lora_retriever.tables import FORMATS

    runs = summarize(args.results)
    if args.format == "json":
        text = json.dumps(to_json(runs, args.scoring), indent=1, ensure_ascii=False) + "\n"
    else:
        text = FORMATS[args.format](to_table(runs, args.by_task))
    if args.output:
        _writing(args.output, lambda: write_text(args.output, text))
    else:
        print(text, end="")
    return 0


def doctor_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.doctor import examine
    from lora_retriever.profile import load_profile

    profile = load_profile(args.profile)
    results = args.results or Path("results") / profile.name
    problems = 0
    for finding in examine(profile, results):
        print(f"{finding.level:<8} {finding.text}")
        problems += finding.level == "problem"
    print(f"{problems} problems" if problems else "no problems found")
    return 2 if problems else 0


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, handler: Handler, help: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(handler=handler)
    return parser


def _encoder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", type=Path, required=True, help="pool file")
    parser.add_argument("--encoder", required=True, help="sentence encoder: a folder or a Hub id")
    parser.add_argument("--layout", choices=["auto", "sentence-transformers", "instructor"], default="auto")
    parser.add_argument("--instruction", default="", help="text before every input")


def _load_encoder(args: argparse.Namespace):  # type: ignore[no-untyped-def]  # its type would import torch
    from lora_retriever.encoders import load_encoder
    from lora_retriever.hub import ENCODER_WANTED, folder_or_id

    return load_encoder(folder_or_id(args.encoder, ENCODER_WANTED), args.layout, args.instruction)


def _quieten_transformers() -> None:
    """Its progress bars and advice would stand between ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _check_scorer(name: str) -> None:
    from lora_retriever.scorers import SCORERS

    if name not in SCORERS:
        raise UserError(f"unknown scorer {name!r} (known: {', '.join(SCORERS)})")


def _writing(path: Path, write: Callable[[], None]) -> None:
    """Write, and say so in one line if it cannot be done."""
    try:
        write()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count
