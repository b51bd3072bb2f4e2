"""`lora-retriever audit`: names everything that is wrong or odd in a benchmark's rows and its pool."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_columns, count, pool_source, rows_source
from lora_retriever.escaping import for_rich, for_terminal
from lora_retriever.files import write_json, writing
from lora_retriever.progress import quieten_transformers

HELP = "what is wrong or odd in a benchmark's rows and its pool"
EXAMPLES = """
lora-retriever audit rows.jsonl --pool pool.jsonl
lora-retriever audit rows.jsonl --pool pool.jsonl --tokenizer ./models/my-base --json findings.json
lora-retriever audit questions.csv --pool train.csv --columns inputs=question,targets=answer,task=subject \
    --defaults domain=mine,metric=em
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("rows", type=Path, metavar="FILE", help="benchmark rows")
    parser.add_argument("--pool", type=Path, required=True, help="pool file")
    add_columns(parser)
    parser.add_argument("--tokenizer", metavar="DIR_OR_ID", help="folder or Hub id; without it no prompt is measured")
    parser.add_argument("--max-prompt-tokens", type=count, default=512, help="(default: 512)")
    parser.add_argument("--template", default="alpaca", help="a template's name, or a text with {inputs} in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.analysis.audit import audit, measure_prompts, to_text
    from lora_retriever.data.rows import read_pool, read_rows

    notes: list[str] = []
    rows, pool = read_rows(rows_source(args.rows, args), notes=notes), read_pool(pool_source(args.pool, args))
    prompts = None
    if args.tokenizer:
        quieten_transformers()
        with console.status("measuring prompts"):
            prompts = measure_prompts(rows, args.tokenizer, args.template, args.max_prompt_tokens)
    found = audit(rows, pool, prompts)
    for note in notes:
        console.print(for_rich(note), soft_wrap=True)
    print(for_terminal(to_text(found)), end="")
    if args.json:
        with writing(args.json):
            write_json(args.json, asdict(found))
    return 0
