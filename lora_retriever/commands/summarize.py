"""`lora-retriever summarize`: the table of a results folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_results, add_scoring
from lora_retriever.commands.shared import read_runs_of, report_content, scorings
from lora_retriever.errors import UserError
from lora_retriever.escaping import as_json
from lora_retriever.files import write_text, writing

HELP = "the table of a results folder"
EXAMPLES = """
lora-retriever summarize results/mine --versus selection
lora-retriever summarize results/mine --scoring standard --format markdown --output table.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_results(parser)
    add_scoring(parser, ["paper", "standard", "both"])
    parser.add_argument("--format", choices=["table", "markdown", "latex", "csv", "json", "html"], default="table")
    parser.add_argument("--by-task", action="store_true", help="a row per task instead of per domain")
    parser.add_argument("--by-run", action="store_true", help="a row per run: for many runs")
    parser.add_argument("--no-intervals", action="store_true", help="scores without intervals")
    parser.add_argument(
        "--versus", metavar="NAME", help="compare every run with this one, row by row: difference, interval, p-value"
    )
    parser.add_argument(
        "--paper", metavar="MODEL", help="set the paper's figures beside the runs: llama2-7b or llama2-13b"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.analysis.comparison import compare, comparison_table, comparisons_as_json
    from lora_retriever.analysis.published import published_table
    from lora_retriever.analysis.published.reproduction import reproduce, reproduction_as_json, reproduction_table
    from lora_retriever.analysis.summary import beside, summarize, to_json, to_run_table, to_table
    from lora_retriever.metrics import SCORINGS
    from lora_retriever.tables import FORMATS

    if args.paper and args.scoring != "paper":
        raise UserError("--paper: the paper's figures are scored its own way; only --scoring paper compares with them")
    if args.paper and args.versus:
        raise UserError("--paper and --versus are two comparisons: ask for one at a time")
    if args.by_run and (args.by_task or args.paper or args.versus):
        raise UserError("--by-run is a table of its own: ask for it without --by-task, --paper and --versus")
    if args.format == "html":
        return _summarize_as_page(args, console)
    paper = published_table(args.paper) if args.paper else None
    runs, left_out = read_runs_of(args)
    level, tables, contents = "task" if args.by_task else "domain", [], {}
    for scoring in scorings(args):
        with console.status(f"{scoring.name} scores of {len(runs)} runs"):
            summaries = summarize(runs, scoring)
            if paper:
                reproduction = reproduce(summaries, paper)
                tables.append(reproduction_table(reproduction, args.by_task, not args.no_intervals, left_out))
                contents[scoring.name] = reproduction_as_json(reproduction, left_out)
            elif args.versus:
                compared = compare([run.scored for run in summaries], args.versus, level)
                tables.append(comparison_table(compared, scoring.name, left_out))
                contents[scoring.name] = comparisons_as_json(compared, scoring.name, left_out)
            elif args.format == "json":
                contents[scoring.name] = to_json(summaries, scoring, left_out)
            elif args.by_run:
                tables.append(to_run_table(summaries, not args.no_intervals, left_out))
            else:
                tables.append(to_table(summaries, args.by_task, not args.no_intervals, left_out))
    if args.format == "json":
        content = {"scoring": "both", "scorings": contents} if args.scoring == "both" else contents[args.scoring]
        text = as_json(content) + "\n"
    else:
        text = FORMATS[args.format](beside(tables, list(SCORINGS)) if len(tables) > 1 else tables[0])
    _write_or_print(text, args.output)
    return 0


def _summarize_as_page(args: argparse.Namespace, console: Console) -> int:
    """Write the report to a file, or print the report: `summarize --format html`."""
    from lora_retriever.report import render

    if args.paper or args.scoring == "both" or args.no_intervals:
        raise UserError(
            "--format html shows one scoring, with intervals: leave out --paper, --scoring both and --no-intervals"
        )
    text = render(report_content(args, console), args.results.resolve().name)
    _write_or_print(text, args.output)
    return 0


def _write_or_print(text: str, output: Path | None) -> None:
    """Write a text to a file, or print the text where no file is named."""
    if output is None:
        print(text, end="")
        return
    with writing(output):
        write_text(output, text)
