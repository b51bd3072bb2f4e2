"""`lora-retriever index`: encode a pool's samples and save the index."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import SCORERS, add_columns, add_encoding, pool_source
from lora_retriever.commands.shared import load_encoder_of, scorer_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich, for_terminal
from lora_retriever.files import writing

HELP = "encode a pool's samples and save the index"
EXAMPLES = """
lora-retriever index --pool pool.jsonl --encoder sentence-transformers/all-MiniLM-L6-v2 --out index
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--pool", type=Path, required=True, help="pool file")
    add_columns(parser)
    parser.add_argument(
        "--encoder",
        help="sentence encoder: a folder, a Hub id, or module:object (scorers of texts alone need none)",
    )
    add_encoding(parser)
    scorer = parser.add_argument(
        "--scorer", default="hybrid", metavar="NAME", help="a name, or module:object (default: hybrid)"
    )
    SCORERS.complete(scorer)
    parser.add_argument(
        "--private", action="store_true", help="keep means and the shared covariance only, no sample and no text"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the index")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.data.rows import read_pool
    from lora_retriever.retrieval.index import AdapterIndex

    scorer = scorer_of(args.scorer)
    if args.private and scorer.needs_samples:
        raise UserError(f"scorer {args.scorer} needs the samples, which a private index does not keep; try cosine")
    if scorer.needs_embeddings and args.encoder is None:
        raise UserError(f"scorer {scorer.name} reads embeddings: name an --encoder, or take --scorer lexical")
    pool = read_pool(pool_source(args.pool, args))
    encoder = load_encoder_of(args.encoder, args) if scorer.needs_embeddings else None
    if encoder is None and args.encoder:
        console.print(for_rich(f"--encoder is not used: scorer {scorer.name} reads texts alone"), soft_wrap=True)
    try:
        with console.status("encoding the pool"):
            index = AdapterIndex.from_texts(pool, encoder, scorer)
    except ValueError as error:
        raise UserError(f"--encoder {args.encoder}: {error}") from error
    try:
        with writing(args.out):
            index.save(args.out, args.private)
    except ValueError as error:
        raise UserError(f"--private: {error}") from error
    print(for_terminal(f"{args.out}: {len(index.names)} adapters, scorer {index.scorer}"))
    return 0
