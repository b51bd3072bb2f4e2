"""The command `lora-retriever`: arguments in, exit status out. What the commands do is in `commands`.

Exit status: 0 all that was asked for was done, 1 rows failed, 2 arguments or input are unusable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lora_retriever import commands
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.escaping import for_terminal, replace_unwritable

DEFAULT_PROFILE = "tiny"
Handler = Callable[[argparse.Namespace, Console], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    replace_unwritable()
    args = build_parser().parse_args(arguments)
    console = Console(stderr=True)
    handler: Handler = args.handler
    try:
        return handler(args, console)
    except RowsFailedError as error:
        print(for_terminal(f"lora-retriever: {error}"), file=sys.stderr)
        return 1
    except UserError as error:
        print(for_terminal(f"lora-retriever: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "lora-retriever: stopped; the rows done so far are on disk, and the same command goes on", file=sys.stderr
        )
        return 130
    except BrokenPipeError:  # `| head` has read enough; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="lora-retriever", description=__doc__.splitlines()[0] if __doc__ else None)
    sub = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(sub, "run", commands.run_command, "answer a benchmark under every method of a profile")
    run.add_argument(
        "--profile", default=DEFAULT_PROFILE, help="a bundled profile's name, or a YAML file (default: tiny)"
    )
    run.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    run.add_argument(
        "--only",
        type=_names,
        help="methods, separated by commas; all, paper (the paper's eight), or module:object (default: the profile's)",
    )
    run.add_argument("--limit", type=_count, help="rows per task (default: all)")
    run.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=V,V",
        help="run every method under each value of k, scorer, temperature or seed; repeat for a cross product",
    )
    run.add_argument("--table", action="store_true", help="print the table when done")

    methods = _command(
        sub, "methods", commands.methods_command, "every method, a line each, with where it is described"
    )
    methods.add_argument("--profile", default=DEFAULT_PROFILE, help="show its options and its own methods as well")

    retrieval = _command(
        sub, "retrieval", commands.retrieval_command, "how often a scorer finds the input's own adapter"
    )
    retrieval.add_argument("--pool", type=Path, help="pool file")
    retrieval.add_argument("--inputs", type=Path, help="benchmark rows")
    retrieval.add_argument(
        "--encoder", action="append", default=[], help="sentence encoder: a folder or a Hub id; repeat for several"
    )
    retrieval.add_argument(
        "--embeddings",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.npz",
        help="embeddings in place of an encoder: arrays names, pool, tasks, queries; repeat for several",
    )
    _encoding_options(retrieval)
    retrieval.add_argument("--scorer", nargs="+", action="extend", required=True, metavar="NAME")
    retrieval.add_argument("--by", choices=["domain", "task"], help="add a table by domain or by task")
    retrieval.add_argument("--confusions", type=_count, metavar="N", help="add the N most frequent confusions")
    retrieval.add_argument(
        "--samples", type=_count, nargs="+", default=[], metavar="M", help="add the pool cut to M samples an adapter"
    )
    retrieval.add_argument(
        "--leave-out-templates",
        action="store_true",
        help="rank every row without its own adapter's samples of its template, too",
    )
    retrieval.add_argument("--templates", action="store_true", help="add the templates as they were found")
    retrieval.add_argument("--format", choices=["table", "markdown", "latex", "csv"], default="table")
    retrieval.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")

    index = _command(sub, "index", commands.index_command, "encode a pool's samples and save the index")
    index.add_argument("--pool", type=Path, required=True, help="pool file")
    index.add_argument("--encoder", required=True, help="sentence encoder: a folder or a Hub id")
    _encoding_options(index)
    index.add_argument("--scorer", default="hybrid", metavar="NAME", help="(default: hybrid)")
    index.add_argument(
        "--private", action="store_true", help="keep means and the shared covariance only, no sample and no text"
    )
    index.add_argument("--out", type=Path, required=True, help="folder for the index")

    compose = _command(sub, "compose", commands.compose_command, "save a composition as an ordinary PEFT checkpoint")
    compose.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    compose.add_argument(
        "--adapter", action="append", required=True, metavar="LOCATION=WEIGHT", help="repeat for each adapter"
    )
    compose.add_argument("--mode", choices=["mixture", "fusion"], default="mixture")
    compose.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")

    lorahub = _command(
        sub, "lorahub", commands.lorahub_command, "learn the weights of a fusion from a task's few examples"
    )
    lorahub.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    lorahub.add_argument("--adapter", action="append", default=[], metavar="LOCATION", help="repeat for each adapter")
    lorahub.add_argument("--adapters", type=Path, metavar="FOLDER", help="take every folder in it as an adapter")
    lorahub.add_argument("--examples", type=Path, required=True, metavar="FILE", help="the task's: inputs and targets")
    lorahub.add_argument("--count", type=_count, default=20, help="so many adapters are drawn (default: 20)")
    lorahub.add_argument("--steps", type=_count, default=40, help="weightings tried (default: 40)")
    lorahub.add_argument("--l1", type=_penalty, default=0.05, help="penalty on the weights' mean size (default: 0.05)")
    lorahub.add_argument("--seed", type=_seed, default=0, help="of the draw (default: 0)")
    lorahub.add_argument("--template", default="alpaca", help="a template's name, or a text with {inputs} in it")
    lorahub.add_argument("--batch-size", type=_count, default=8, help="examples in a batch (default: 8)")
    lorahub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    lorahub.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    lorahub.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")

    summarize = _command(sub, "summarize", commands.summarize_command, "the table of a results folder")
    summarize.add_argument("results", type=Path, nargs="?", default=Path("results") / DEFAULT_PROFILE, metavar="DIR")
    _scoring_options(summarize, ["paper", "standard", "both"])
    summarize.add_argument("--format", choices=["table", "markdown", "latex", "csv", "json", "html"], default="table")
    summarize.add_argument("--by-task", action="store_true", help="a row per task instead of per domain")
    summarize.add_argument("--by-run", action="store_true", help="a row per run: for many runs")
    summarize.add_argument("--no-intervals", action="store_true", help="bare scores")
    summarize.add_argument(
        "--versus", metavar="NAME", help="compare every run with this one, row by row: difference, interval, p-value"
    )
    summarize.add_argument(
        "--paper", metavar="MODEL", help="set the paper's figures beside the runs: llama2-7b or llama2-13b"
    )
    summarize.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")

    report = _command(
        sub, "report", commands.report_command, "a results folder as one HTML page, and plots for a paper"
    )
    report.add_argument("results", type=Path, nargs="?", default=Path("results") / DEFAULT_PROFILE, metavar="DIR")
    _scoring_options(report, ["paper", "standard"])
    report.add_argument("--versus", metavar="NAME", help="add the table of every run against this one")
    report.add_argument("--index", type=Path, metavar="FOLDER", help="the pool's index: show how similar adapters are")
    report.add_argument("--output", type=Path, metavar="FILE", help="(default: report.html in the results folder)")
    report.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots there as well, as PNG and SVG")

    audit = _command(sub, "audit", commands.audit_command, "what is wrong or odd in a benchmark's rows and its pool")
    audit.add_argument("rows", type=Path, metavar="FILE", help="benchmark rows")
    audit.add_argument("--pool", type=Path, required=True, help="pool file")
    audit.add_argument("--tokenizer", metavar="DIR_OR_ID", help="folder or Hub id; without it no prompt is measured")
    audit.add_argument("--max-prompt-tokens", type=_count, default=512, help="(default: 512)")
    audit.add_argument("--template", default="alpaca", help="a template's name, or a text with {inputs} in it")
    audit.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file as well")

    doctor = _command(
        sub, "doctor", commands.doctor_command, "what is missing or will not fit, before anything is loaded"
    )
    doctor.add_argument("--profile", default=DEFAULT_PROFILE)
    doctor.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    return parser


def _command(
    sub: argparse._SubParsersAction[argparse.ArgumentParser], name: str, handler: Handler, help: str
) -> argparse.ArgumentParser:
    parser = sub.add_parser(name, help=help, description=help)
    parser.set_defaults(handler=handler)
    return parser


def _encoding_options(parser: argparse.ArgumentParser) -> None:
    """How texts are encoded: shared by `retrieval` and `index`."""
    parser.add_argument("--layout", choices=["auto", "sentence-transformers", "instructor"], default="auto")
    parser.add_argument("--instruction", default="", help="text before every input")
    parser.add_argument("--no-cache", action="store_true", help="encode all texts, and keep no embeddings on disk")


def _scoring_options(parser: argparse.ArgumentParser, scorings: Sequence[str]) -> None:
    """How answers are read and scored: shared by `summarize` and `report`."""
    parser.add_argument("--scoring", choices=scorings, default=scorings[0])
    parser.add_argument("--stemming", action="store_true", help="stem words in standard ROUGE")
    parser.add_argument("--kinds", type=Path, metavar="FILE", help="YAML: which tasks are `qa`, which `choice`")
    parser.add_argument(
        "--allow-hub-metrics", action="store_true", help="fetch and run metric scripts of the Hub that rows name"
    )
    parser.add_argument(
        "--allow-metrics",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a folder whose own metrics may run where rows name them; repeat for several",
    )
    parser.add_argument("--without-leaks", action="store_true", help="leave out rows whose input stands in the pool")
    parser.add_argument("--pool", type=Path, help="the pool file, for --without-leaks (default: the one of the run)")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seed


def _penalty(text: str) -> float:
    penalty = float(text)
    if not 0 <= penalty < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of 0 or more")
    return penalty
