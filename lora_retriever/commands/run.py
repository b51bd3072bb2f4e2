"""`lora-retriever run`: answer a benchmark under every method of a profile."""

from __future__ import annotations

import argparse
import signal
from contextlib import nullcontext, suppress
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_profile, count, names
from lora_retriever.commands.shared import quieten_transformers, runs_and_notes
from lora_retriever.errors import RowsFailedError, UserError

RUNS_ABREAST = 12
"""Maximum number of runs that the table shows as columns. More runs are shown as rows."""
HELP = "answer a benchmark under every method of a profile"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    parser.add_argument(
        "--only",
        type=names,
        help="methods, separated by commas; all, paper (the paper's eight), or module:object (default: the profile's)",
    )
    parser.add_argument("--limit", type=count, help="rows per task (default: all)")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=V,V",
        help="run every method under each value of k, scorer, temperature or seed; repeat for a cross product",
    )
    parser.add_argument("--table", action="store_true", help="print the table when done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.analysis.frames import write_runs_file
    from lora_retriever.experiment.profile import load_profile
    from lora_retriever.running.evaluate import evaluate

    profile = load_profile(args.profile)
    results = args.results or Path("results") / profile.name
    quieten_transformers()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is a Ctrl-C: backends are closed
    try:
        evaluate(profile, args.only, results, args.limit, console, args.sweep)
    except RowsFailedError as error:  # what was answered is shown all the same
        failed: RowsFailedError | None = error
    else:
        failed = None
    with suppress(UserError) if failed else nullcontext():  # no run may have a row
        write_runs_file(results, profile.metric_folders)
        if args.table:
            _print_table(results, console, profile.metric_folders)
    if failed:
        raise failed
    return 0


def _print_table(results: Path, console: Console, metric_folders: tuple[Path, ...]) -> None:
    """The table of a results folder, as `summarize` prints it when nothing is asked for."""
    from lora_retriever.analysis.summary import summarize, to_run_table, to_table
    from lora_retriever.metrics import KINDS, Scoring, read_kinds
    from lora_retriever.tables import terminal

    runs, notes = runs_and_notes(results)
    with console.status(f"paper scores of {len(runs)} runs"):
        summaries = summarize(runs, Scoring("paper", read_kinds(KINDS), metric_folders=metric_folders))
        table = to_table if len(runs) <= RUNS_ABREAST else to_run_table
        print(terminal(table(summaries, left_out=notes)), end="")
