"""`lora-retriever run`: answer a benchmark under every method of a profile."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import METHODS, add_profile, count, names, profile_of
from lora_retriever.commands.shared import runs_and_notes
from lora_retriever.errors import RowsFailedError, RunsFailedError, UserError
from lora_retriever.escaping import for_rich, for_shell

RUNS_ABREAST = 12
"""Maximum number of runs that the table shows as columns. More runs are shown as rows."""
HELP = "answer a benchmark under every method of a profile"
EXAMPLES = """
lora-retriever run --table                                         # the bundled miniature, and its table
lora-retriever run --profile mine.yaml --limit 5 --results results/first
lora-retriever run --profile mine.yaml --only mixture,fusion --sweep k=1,2,4
lora-retriever run --profile mine.yaml --set generation.batch_size=32 --log-file run.log
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    only = parser.add_argument(
        "--only",
        type=names,
        help="methods, separated by commas; all, paper (the paper's eight), or module:object (default: the profile's)",
    )
    METHODS.complete(only)
    parser.add_argument("--limit", type=count, help="rows per task (default: all)")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=V,V",
        help="run every method under each value of k, scorer, temperature or seed; repeat for a cross product",
    )
    changed = parser.add_mutually_exclusive_group()
    changed.add_argument(
        "--answer-anew",
        dest="on_changed_code",
        action="store_const",
        const="anew",
        default="refuse",
        help="answer runs anew that other code answered; their old files move to RESULTS/earlier",
    )
    changed.add_argument(
        "--keep-answers",
        dest="on_changed_code",
        action="store_const",
        const="keep",
        help="keep the answers of runs that other code answered, and record that",
    )
    parser.add_argument("--table", action="store_true", help="print the table when done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.backends.signals import stopping_on_signals
    from lora_retriever.running.evaluate import evaluate

    profile = profile_of(args)
    results = args.results or Path("results") / profile.name
    failed: RowsFailedError | RunsFailedError | None = None
    with stopping_on_signals():
        try:
            evaluate(profile, args.only, results, args.limit, console, args.sweep, args.on_changed_code)
        except (RowsFailedError, RunsFailedError) as error:  # the rows that were answered are still shown
            failed = error
        try:
            _show(results, console, profile.metric_folders, args.table)
        except (UserError, OSError):
            if failed is None:
                raise  # otherwise there may be no row to show, or the disk that ended the run fails here as well
    if failed:
        raise failed
    return 0


def _show(results: Path, console: Console, metric_folders: tuple[Path, ...], table: bool) -> None:
    """Write runs.csv, and print the table."""
    from lora_retriever.analysis.frames import write_runs_file

    try:
        write_runs_file(results, metric_folders)
    except OSError as error:  # a full or read-only disk; the answers and the table do not need this file
        console.print(
            for_rich(f"runs.csv could not be written into {results} ({error.strerror or error})"), soft_wrap=True
        )
    if table:
        _print_table(results, console, metric_folders)
        console.print(for_rich(f"other tables of these runs: {_command()} summarize --help"), soft_wrap=True)


def _command() -> str:
    """How this command is called in the user's shell: by its name, or by the launcher of the checkout."""
    if shutil.which("lora-retriever"):
        return "lora-retriever"
    launcher = Path(__file__).resolve().parents[2] / "lora-retriever"
    if not launcher.is_file():
        return "python -m lora_retriever"
    here = launcher.parent == Path.cwd()
    return "./lora-retriever" if here else for_shell(str(launcher))


def _print_table(results: Path, console: Console, metric_folders: tuple[Path, ...]) -> None:
    """The table of a results folder, as `summarize` prints the table without options."""
    from lora_retriever.analysis.summary import summarize, to_run_table, to_table
    from lora_retriever.metrics import KINDS, Scoring, read_kinds
    from lora_retriever.tables import terminal

    runs, notes = runs_and_notes(results)
    with console.status(f"paper scores of {len(runs)} runs"):
        summaries = summarize(runs, Scoring("paper", read_kinds(KINDS), metric_folders=metric_folders))
        table = to_table if len(runs) <= RUNS_ABREAST else to_run_table
        print(terminal(table(summaries, left_out=notes)), end="")
