"""`lora-retriever report`: a results folder as one HTML page, and plots for a paper."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_by, add_results, add_runs, add_scoring
from lora_retriever.commands.shared import report_content, title_of
from lora_retriever.errors import UserError
from lora_retriever.escaping import for_terminal
from lora_retriever.files import write_text, writing

HELP = "a results folder as one HTML page, and plots for a paper"
EXAMPLES = """
lora-retriever report results/mine
lora-retriever report results/mine --versus selection --plots plots
lora-retriever report results/mine --by instruction                # scores for each value of this field of the rows
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_results(parser)
    add_runs(parser)
    add_by(parser)
    add_scoring(parser, ["paper", "standard"])
    parser.add_argument(
        "--versus", metavar="NAME", help="add the table of every run against this one (as in summarize)"
    )
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="the pool's index: show how similar adapters are")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="(default: report.html in the first results folder)"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also write the plots there, as PNG and SVG")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.report import render
    from lora_retriever.retrieval.index import AdapterIndex

    try:
        index = AdapterIndex.load(args.index) if args.index else None
    except ValueError as error:
        raise UserError(f"--index: {error}; `lora-retriever index` makes one") from error
    if index is not None and not index.has_embeddings:
        raise UserError(
            f"--index {args.index}: scorer {index.scorer} reads texts alone, so there is nothing to compare"
        )
    content = report_content(args, console, index)
    output = args.output or args.results[0] / "report.html"
    page = render(content, title_of(args))
    with writing(output):
        write_text(output, page)
    print(for_terminal(str(output)))
    if args.plots:
        from lora_retriever.report.plots import save_plots

        with writing(args.plots):
            save_plots(content, args.plots)
        print(for_terminal(str(args.plots)))
    return 0
