"""`lora-retriever summarize`: the table of a results folder, or of several folders side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_retriever.commands.arguments import add_by, add_results, add_runs, add_scoring
from lora_retriever.commands.shared import (
    read_folders_of,
    report_content,
    scoring_of,
    scorings,
    shown_names,
    title_of,
)
from lora_retriever.errors import UserError
from lora_retriever.escaping import as_json
from lora_retriever.files import write_text, writing

if TYPE_CHECKING:
    from lora_retriever.analysis.folders import Folder
    from lora_retriever.analysis.groups import Groups
    from lora_retriever.analysis.published import Published
    from lora_retriever.analysis.side_by_side import Names, Summaries
    from lora_retriever.metrics import Scoring
    from lora_retriever.tables import Table

HELP = "the table of a results folder, or of several side by side"
EXAMPLES = """
lora-retriever summarize results/mine --versus selection
lora-retriever summarize results/mine --runs 'mixture*,selection' --sort mean --by-run
lora-retriever summarize results/mine --by instruction               # a column for each value of this field of the rows
lora-retriever summarize results/mine --scoring standard --format markdown --output table.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_results(parser)
    add_runs(parser)
    add_scoring(parser, ["paper", "standard", "both"])
    parser.add_argument("--format", choices=["table", "markdown", "latex", "csv", "json", "html"], default="table")
    parser.add_argument("--by-task", action="store_true", help="a row per task instead of per domain")
    parser.add_argument("--by-run", action="store_true", help="a row per run: for many runs")
    add_by(parser)
    parser.add_argument("--no-intervals", action="store_true", help="scores without intervals")
    parser.add_argument(
        "--versus",
        metavar="NAME",
        help="compare every run with this one, row by row: difference, interval, p-value; of several folders, NAME is "
        "a run, a folder, or FOLDER:RUN",
    )
    parser.add_argument(
        "--paper", metavar="MODEL", help="set the paper's figures beside the runs: llama2-7b or llama2-13b"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.analysis.groups import split
    from lora_retriever.analysis.published import published_table
    from lora_retriever.analysis.summary import beside
    from lora_retriever.metrics import SCORINGS
    from lora_retriever.tables import FORMATS, Table

    if args.paper and args.scoring != "paper":
        raise UserError("--paper: the paper's figures are scored its own way; only --scoring paper compares with them")
    if args.paper and args.versus:
        raise UserError("--paper and --versus are two comparisons: ask for one at a time")
    if args.paper and args.by:
        raise UserError("--paper and --by: the paper has no figures for groups of rows; leave out one of the two")
    if args.by_run and (args.by_task or args.versus):
        raise UserError("--by-run is a table of its own: ask for it without --by-task and --versus")
    if args.format == "html":
        return _summarize_as_page(args, console)
    paper = published_table(args.paper) if args.paper else None
    folders = read_folders_of(args)
    names = shown_names(args, folders, scorings(args)[0])
    groups = split(folders, args.by) if args.by is not None else None
    shown = {}
    for scoring in scorings(args):
        with console.status(scoring_of(folders, scoring)):
            if groups is None:
                shown[scoring.name] = _shown(args, folders, names, scoring, paper)
            else:
                shown[scoring.name] = _shown_by_value(args, groups, names, scoring)
    tables = [content for content in shown.values() if isinstance(content, Table)]
    if tables:
        text = FORMATS[args.format](beside(tables, list(SCORINGS)) if len(tables) > 1 else tables[0])
    else:
        text = as_json({"scoring": "both", "scorings": shown} if len(shown) > 1 else shown[args.scoring]) + "\n"
    _write_or_print(text, args.output)
    return 0


def _shown(
    args: argparse.Namespace, folders: Sequence[Folder], names: Names, scoring: Scoring, paper: Published | None
) -> Table | dict[str, Any]:
    """The output under one scoring: a table, or the content of the JSON."""
    from lora_retriever.analysis.comparison import compare_pairs, comparison_table, comparisons_as_json
    from lora_retriever.analysis.published.side_by_side import (
        means_table,
        reproduce_folders,
        reproductions_as_json,
        reproductions_table,
    )
    from lora_retriever.analysis.side_by_side import notes_of, only, pairs_of, summarize_folders

    shown, intervals = [folder for folder in folders if folder.name in names], not args.no_intervals
    summaries = summarize_folders(folders, scoring)
    if args.versus:
        compared = compare_pairs(pairs_of(summaries, args.versus, names), _level(args))
        write = comparisons_as_json if args.format == "json" else comparison_table
        return write(compared, scoring.name, notes_of(shown))
    if paper is None:
        return _summary(args, shown, only(summaries, names), scoring)
    reproductions = reproduce_folders(shown, only(summaries, names), paper)
    if args.format == "json":
        return reproductions_as_json(shown, reproductions)
    if args.by_run:
        return means_table(reproductions, intervals, notes_of(shown))
    return reproductions_table(reproductions, args.by_task, intervals, notes_of(shown))


def _shown_by_value(args: argparse.Namespace, groups: Groups, names: Names, scoring: Scoring) -> Table | dict[str, Any]:
    """The output with `--by`: the values side by side."""
    from lora_retriever.analysis import groups as by_value
    from lora_retriever.analysis.side_by_side import notes_of, only, pairs_of
    from lora_retriever.tables import Table

    summaries = groups.summaries(scoring)
    names = groups.kept_names(names)
    if args.versus:
        pairs = {value: pairs_of(of_value, args.versus, names) for value, of_value in summaries.items()}
        compared = by_value.compare_by_value(pairs, _level(args))
        in_json = args.format == "json"
        write = by_value.comparisons_by_value_as_json if in_json else by_value.comparisons_by_value_table
        return write(groups, compared, scoring.name, notes_of(groups.folders))
    shown = {
        value: _summary(args, [folder for folder in folders if folder.name in names], only(of_value, names), scoring)
        for (value, folders), of_value in zip(groups.by_value.items(), summaries.values(), strict=True)
    }
    tables = {value: content for value, content in shown.items() if isinstance(content, Table)}
    if tables:
        return by_value.beside_values(groups, tables)
    return by_value.as_json(groups, {value: of for value, of in shown.items() if isinstance(of, dict)})


def _summary(
    args: argparse.Namespace, folders: Sequence[Folder], summaries: Summaries, scoring: Scoring
) -> Table | dict[str, Any]:
    """The summary of runs: a table, or the content of the JSON."""
    from lora_retriever.analysis.side_by_side import all_runs, notes_of, summaries_as_json, summaries_table
    from lora_retriever.analysis.summary import to_run_table

    if args.format == "json":
        return summaries_as_json(folders, summaries, scoring)
    if args.by_run:
        return to_run_table(all_runs(summaries), not args.no_intervals, notes_of(folders))
    return summaries_table(summaries, args.by_task, not args.no_intervals, notes_of(folders))


def _level(args: argparse.Namespace) -> str:
    return "task" if args.by_task else "domain"


def _summarize_as_page(args: argparse.Namespace, console: Console) -> int:
    """Write the report to a file, or print the report: `summarize --format html`."""
    from lora_retriever.report import render

    if args.paper or args.scoring == "both" or args.no_intervals:
        raise UserError(
            "--format html shows one scoring, with intervals: leave out --paper, --scoring both and --no-intervals"
        )
    text = render(report_content(args, console), title_of(args))
    _write_or_print(text, args.output)
    return 0


def _write_or_print(text: str, output: Path | None) -> None:
    """Write a text to a file, or print the text where no file is named."""
    if output is None:
        print(text, end="")
        return
    with writing(output):
        write_text(output, text)
