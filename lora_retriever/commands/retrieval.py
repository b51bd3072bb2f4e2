"""`lora-retriever retrieval`: how often a scorer finds the input's own adapter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.arguments import SCORERS, add_columns, add_encoding, count, pool_source, rows_source
from lora_retriever.commands.shared import load_encoder_of, scorer_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich
from lora_retriever.files import write_json, writing

if TYPE_CHECKING:
    from lora_retriever.analysis.retrieval.rankings import RetrievalData
    from lora_retriever.data.rows import PoolEntry, Row
    from lora_retriever.retrieval.scorers import Scorer

TEXTS = "texts alone"
"""The name of the data of scorers that read no embeddings."""
HELP = "how often a scorer finds the input's own adapter"
EXAMPLES = """
lora-retriever retrieval --pool pool.jsonl --inputs rows.jsonl --encoder ./my-encoder --scorer cosine hybrid
lora-retriever retrieval --pool pool.jsonl --inputs rows.jsonl --scorer lexical --by instruction
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--pool", type=Path, help="pool file")
    parser.add_argument("--inputs", type=Path, help="benchmark rows")
    add_columns(parser)
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        help="sentence encoder: a folder, a Hub id, or module:object (scorers of texts alone need none); repeat for "
        "several",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.npz",
        help="embeddings in place of an encoder: arrays names, pool, tasks, queries; repeat for several",
    )
    add_encoding(parser)
    scorer = parser.add_argument(
        "--scorer", nargs="+", action="extend", required=True, metavar="NAME", help="names, or module:object"
    )
    SCORERS.complete(scorer)
    parser.add_argument(
        "--by", metavar="FIELD", help="add a table by domain, by task, or by a further field of the rows"
    )
    parser.add_argument("--confusions", type=count, metavar="N", help="add the N most frequent confusions")
    parser.add_argument(
        "--samples", type=count, nargs="+", default=[], metavar="M", help="add the pool cut to M samples an adapter"
    )
    parser.add_argument(
        "--leave-out-templates",
        action="store_true",
        help="also rank each row without those samples of its own adapter that have the row's template",
    )
    parser.add_argument("--templates", action="store_true", help="add the templates that were found")
    parser.add_argument("--format", choices=["table", "markdown", "latex", "csv"], default="table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.analysis.groups import values_of_rows
    from lora_retriever.analysis.retrieval.evaluation import evaluate_retrieval
    from lora_retriever.analysis.retrieval.rankings import templates_of
    from lora_retriever.analysis.retrieval.tables import as_json, report_tables, template_table
    from lora_retriever.data.official import is_official
    from lora_retriever.tables import FORMATS

    scorers = [scorer_of(name) for name in args.scorer]
    for scorer in scorers:
        if scorer.needs_texts and not args.pool:
            raise UserError(
                f"scorer {scorer.name} reads texts, and files of embeddings have none: name --pool and --inputs as well"
            )
    rows, pool = _rows_and_pool(args)
    further = args.by is not None and args.by not in ("domain", "task")
    groups = values_of_rows(rows, args.by, args.inputs) if further else None
    known = _retrieval_data(args, rows, pool, scorers, console)
    first = next(iter(known.values()))
    if without := sum(task not in first.names for task in first.tasks):
        console.print(
            f"{without} of {len(first.tasks)} rows have no adapter of their own in the pool, and count as not found."
        )
    templates = templates_of(first)
    evaluations = []
    for name, data in known.items():
        for scorer in scorers:
            with console.status(for_rich(f"{name}: {scorer.name}")):
                evaluations.append(
                    evaluate_retrieval(name, data, scorer, templates, args.samples, args.leave_out_templates, groups)
                )
    tables = report_tables(evaluations, args.by, args.confusions, is_official(first.names, first.tasks))
    if args.templates and templates:
        tables.append(template_table(first, templates))
    print("\n".join(FORMATS[args.format](table) for table in tables), end="")
    if args.json:
        with writing(args.json):
            write_json(args.json, as_json(evaluations))
    return 0


def _rows_and_pool(args: argparse.Namespace) -> tuple[list[Row], list[PoolEntry]]:
    """The rows and the pool that the arguments name; empty if the arguments name neither."""
    from lora_retriever.data.rows import read_pool, read_rows

    if bool(args.pool) != bool(args.inputs):
        raise UserError("--pool and --inputs belong together: name both")
    needs_texts = args.encoder or args.by not in (None, "task") or args.leave_out_templates or args.templates
    if not args.pool and needs_texts:
        raise UserError("encoders, domains, further fields and templates need texts: name --pool and --inputs")
    if not args.pool:
        return [], []
    return read_rows(rows_source(args.inputs, args)), read_pool(pool_source(args.pool, args))


def _retrieval_data(
    args: argparse.Namespace,
    rows: Sequence[Row],
    pool: Sequence[PoolEntry],
    scorers: Sequence[Scorer],
    console: Console,
) -> dict[str, RetrievalData]:
    """The data to evaluate, by the name of the encoder or of the file of embeddings."""
    from lora_retriever.analysis.retrieval.precomputed import read_embeddings, with_texts
    from lora_retriever.analysis.retrieval.rankings import encode_data

    reading = [scorer.name for scorer in scorers if scorer.needs_embeddings]
    if reading and not args.encoder and not args.embeddings:
        raise UserError(f"scorer {reading[0]} reads embeddings: name an --encoder, or a file of --embeddings")
    if not reading:
        if args.encoder or args.embeddings:
            unused = "--encoder and --embeddings are not used: these scorers read texts alone"
            console.print(for_rich(unused), soft_wrap=True)
        return {TEXTS: encode_data(None, pool, rows)}
    known = {}
    for name in args.encoder:
        encoder = load_encoder_of(name, args)
        try:
            with console.status(for_rich(f"{name}: encoding the pool's samples and {len(rows)} inputs")):
                known[name] = encode_data(encoder, pool, rows)
        except ValueError as error:
            raise UserError(f"--encoder {name}: {error}") from error
    for path in args.embeddings:
        data = read_embeddings(path)
        known[str(path)] = with_texts(data, pool, rows, path) if args.pool else data
    first = next(iter(known.values()))
    for name, data in known.items():
        if (data.names, data.tasks) != (first.names, first.tasks):
            raise UserError(
                f"{name}: its adapters and rows differ from those of {next(iter(known))}; evaluate them apart"
            )
    return known
