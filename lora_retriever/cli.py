"""The command `lora-retriever`: arguments in, exit status out. What the commands do lives elsewhere.

Exit status: 0 all that was asked for was done, 1 rows failed, 2 arguments or input are unusable.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.files import hash_path, write_json, write_text

if TYPE_CHECKING:
    from lora_retriever.answers import Run
    from lora_retriever.encoders import Encoder
    from lora_retriever.index import AdapterIndex
    from lora_retriever.metrics import Scoring
    from lora_retriever.report.content import Content
    from lora_retriever.retrieval import RetrievalData

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
    except BrokenPipeError:  # `| head` has read enough; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="lora-retriever", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", run_command, "answer a benchmark under every method of a profile")
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

    methods = _command(commands, "methods", methods_command, "every method, a line each, with where it is described")
    methods.add_argument("--profile", default=DEFAULT_PROFILE, help="show its options and its own methods as well")

    retrieval = _command(commands, "retrieval", retrieval_command, "how often a scorer finds the input's own adapter")
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

    index = _command(commands, "index", index_command, "encode a pool's samples and save the index")
    index.add_argument("--pool", type=Path, required=True, help="pool file")
    index.add_argument("--encoder", required=True, help="sentence encoder: a folder or a Hub id")
    _encoding_options(index)
    index.add_argument("--scorer", default="hybrid", metavar="NAME", help="(default: hybrid)")
    index.add_argument(
        "--private", action="store_true", help="keep means and the shared covariance only, no sample and no text"
    )
    index.add_argument("--out", type=Path, required=True, help="folder for the index")

    compose = _command(commands, "compose", compose_command, "save a composition as an ordinary PEFT checkpoint")
    compose.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    compose.add_argument(
        "--adapter", action="append", required=True, metavar="LOCATION=WEIGHT", help="repeat for each adapter"
    )
    compose.add_argument("--mode", choices=["mixture", "fusion"], default="mixture")
    compose.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")

    lorahub = _command(commands, "lorahub", lorahub_command, "learn the weights of a fusion from a task's few examples")
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

    summarize = _command(commands, "summarize", summarize_command, "the table of a results folder")
    summarize.add_argument("results", type=Path, nargs="?", default=Path("results") / DEFAULT_PROFILE, metavar="DIR")
    _scoring_options(summarize, ["paper", "standard", "both"])
    summarize.add_argument("--format", choices=["table", "markdown", "latex", "csv", "json", "html"], default="table")
    summarize.add_argument("--by-task", action="store_true", help="a row per task instead of per domain")
    summarize.add_argument("--no-intervals", action="store_true", help="bare scores")
    summarize.add_argument(
        "--versus", metavar="NAME", help="compare every run with this one, row by row: difference, interval, p-value"
    )
    summarize.add_argument(
        "--paper", metavar="MODEL", help="set the paper's figures beside the runs: llama2-7b or llama2-13b"
    )
    summarize.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")

    report = _command(commands, "report", report_command, "a results folder as one HTML page, and plots for a paper")
    report.add_argument("results", type=Path, nargs="?", default=Path("results") / DEFAULT_PROFILE, metavar="DIR")
    _scoring_options(report, ["paper", "standard"])
    report.add_argument("--versus", metavar="NAME", help="add the table of every run against this one")
    report.add_argument("--index", type=Path, metavar="FOLDER", help="the pool's index: show how similar adapters are")
    report.add_argument("--output", type=Path, metavar="FILE", help="(default: report.html in the results folder)")
    report.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots there as well, as PNG and SVG")

    audit = _command(commands, "audit", audit_command, "what is wrong or odd in a benchmark's rows and its pool")
    audit.add_argument("rows", type=Path, metavar="FILE", help="benchmark rows")
    audit.add_argument("--pool", type=Path, required=True, help="pool file")
    audit.add_argument("--tokenizer", metavar="DIR_OR_ID", help="folder or Hub id; without it no prompt is measured")
    audit.add_argument("--max-prompt-tokens", type=_count, default=512, help="(default: 512)")
    audit.add_argument("--template", default="alpaca", help="a template's name, or a text with {inputs} in it")
    audit.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file as well")

    doctor = _command(commands, "doctor", doctor_command, "what is missing or will not fit, before anything is loaded")
    doctor.add_argument("--profile", default=DEFAULT_PROFILE)
    doctor.add_argument("--results", type=Path, help="results folder (default: results/PROFILE)")
    return parser


# Imports that take seconds stand inside the commands: `--help`, `summarize` and mistyped arguments answer at once.


def run_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.evaluate import evaluate
    from lora_retriever.profile import load_profile
    from lora_retriever.records import write_record

    profile = load_profile(args.profile)
    results = args.results or Path("results") / profile.name
    _quieten_transformers()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is a Ctrl-C: backends are closed
    try:
        evaluate(profile, args.only, results, args.limit, console, args.sweep)
    except RowsFailedError as error:  # what was answered is shown all the same
        failed: RowsFailedError | None = error
    else:
        failed = None
    with suppress(UserError) if failed else nullcontext():  # no run may have a row
        write_record(results)
        if args.table:
            summarize_command(build_parser().parse_args(["summarize", str(results)]), console)
    if failed:
        raise failed
    return 0


def methods_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.methods.table import to_text
    from lora_retriever.profile import load_profile

    profile = load_profile(args.profile)
    own = [name for name in profile.methods if ":" in name]
    print(to_text(profile.find_methods(["all", *own]), {method.name for method in profile.find_methods()}), end="")
    return 0


def retrieval_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.retrieval import templates_of
    from lora_retriever.retrieval.evaluation import evaluate_retrieval
    from lora_retriever.retrieval.tables import as_json, report_tables, template_table
    from lora_retriever.scorers import needs_texts
    from lora_retriever.tables import FORMATS

    for scorer in args.scorer:
        _check_scorer(scorer)
        if needs_texts(scorer) and not args.pool:
            raise UserError(f"scorer {scorer} reads texts, not embeddings alone: name --pool and --inputs as well")
    known = _retrieval_data(args, console)
    first = next(iter(known.values()))
    templates = templates_of(first)
    evaluations = []
    for name, data in known.items():
        for scorer in args.scorer:
            with console.status(f"{name}: {scorer}"):
                evaluations.append(
                    evaluate_retrieval(name, data, scorer, templates, args.samples, args.leave_out_templates)
                )
    tables = report_tables(evaluations, args.by, args.confusions)
    if args.templates and templates:
        tables.append(template_table(first, templates))
    print("\n".join(FORMATS[args.format](table) for table in tables), end="")
    if args.json:
        _writing(args.json, lambda: write_json(args.json, as_json(evaluations)))
    return 0


def index_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.data import read_pool
    from lora_retriever.retrieval import index_pool
    from lora_retriever.scorers import SCORERS

    _check_scorer(args.scorer)
    if args.private and SCORERS[args.scorer].needs_samples:
        raise UserError(f"scorer {args.scorer} needs the samples, which a private index does not keep; try cosine")
    pool = read_pool(args.pool)
    encoder = _load_encoder(args.encoder, args)
    with console.status("encoding the pool"):
        index = index_pool(encoder, pool, args.scorer)
    try:
        _writing(args.out, lambda: index.save(args.out, args.private))
    except ValueError as error:
        raise UserError(f"--private: {error}") from error
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


def lorahub_command(args: argparse.Namespace, console: Console) -> int:
    import torch

    from lora_retriever.data import read_samples
    from lora_retriever.generation import Generator, load_composable, load_tokenizer
    from lora_retriever.hub import folder_or_id
    from lora_retriever.lorahub import adapter_locations, draw_adapters, learn_checkpoint, weights_table
    from lora_retriever.profile import GenerationSection
    from lora_retriever.prompt import TEMPLATES
    from lora_retriever.tables import terminal

    if args.out.exists():
        raise UserError(f"--out {args.out}: it is there already; name a new folder")
    if "{inputs}" not in args.template and args.template not in TEMPLATES:
        raise UserError(
            f"unknown template {args.template!r} (known: {', '.join(TEMPLATES)}, or a text with {{inputs}})"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")
    samples = read_samples(args.examples)
    _writing(args.out, lambda: args.out.parent.mkdir(parents=True, exist_ok=True))  # not when all is learned
    drawn = draw_adapters(adapter_locations(args.adapter, args.adapters), args.count, args.seed)
    settings = GenerationSection(template=args.template, batch_size=args.batch_size)
    base = folder_or_id(args.base)
    _quieten_transformers()
    with console.status("loading"):
        model = load_composable(base, {location: location for location in drawn}, getattr(torch, args.dtype), device)
        generator = Generator(model, load_tokenizer(base), settings)
    learned = learn_checkpoint(generator, samples, args.out, args.steps, args.l1, args.seed, console)
    print(terminal(weights_table(learned)), end="")
    print(f"{args.out}: fusion of {len(drawn)} adapters")
    return 0


def summarize_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.comparison import compare, comparison_table, comparisons_as_json
    from lora_retriever.metrics import SCORINGS
    from lora_retriever.published import published_table
    from lora_retriever.published.reproduction import reproduce, reproduction_as_json, reproduction_table
    from lora_retriever.summary import beside, summarize, to_json, to_table
    from lora_retriever.tables import FORMATS

    if args.paper and args.scoring != "paper":
        raise UserError("--paper: the paper's figures are scored its own way; only --scoring paper compares with them")
    if args.paper and args.versus:
        raise UserError("--paper and --versus are two comparisons: ask for one at a time")
    if args.format == "html":
        return _summarize_as_page(args, console)
    paper = published_table(args.paper) if args.paper else None
    runs, left_out = _read_runs(args)
    level, tables, contents = "task" if args.by_task else "domain", [], {}
    for scoring in _scorings(args):
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
            else:
                tables.append(to_table(summaries, args.by_task, not args.no_intervals, left_out))
    if args.format == "json":
        content = {"scoring": "both", "scorings": contents} if args.scoring == "both" else contents[args.scoring]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    else:
        text = FORMATS[args.format](beside(tables, list(SCORINGS)) if len(tables) > 1 else tables[0])
    if args.output:
        _writing(args.output, lambda: write_text(args.output, text))
    else:
        print(text, end="")
    return 0


def report_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.index import AdapterIndex
    from lora_retriever.report import render

    try:
        index = AdapterIndex.load(args.index) if args.index else None
    except ValueError as error:
        raise UserError(f"--index: {error}; `lora-retriever index` makes one") from error
    content = _report_content(args, console, index)
    output = args.output or args.results / "report.html"
    _writing(output, lambda: write_text(output, render(content, args.results.resolve().name)))
    print(output)
    if args.plots:
        from lora_retriever.report.plots import save_plots

        _writing(args.plots, lambda: save_plots(content, args.plots))
        print(args.plots)
    return 0


def audit_command(args: argparse.Namespace, console: Console) -> int:
    from lora_retriever.audit import audit, measure_prompts, to_text
    from lora_retriever.data import read_pool, read_rows

    rows, pool = read_rows(args.rows), read_pool(args.pool)
    prompts = None
    if args.tokenizer:
        _quieten_transformers()
        with console.status("measuring prompts"):
            prompts = measure_prompts(rows, args.tokenizer, args.template, args.max_prompt_tokens)
    found = audit(rows, pool, prompts)
    print(to_text(found), end="")
    if args.json:
        _writing(args.json, lambda: write_json(args.json, asdict(found)))
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


def _summarize_as_page(args: argparse.Namespace, console: Console) -> int:
    """What `summarize --format html` does: the report, to a file or printed."""
    from lora_retriever.report import render

    if args.paper or args.scoring == "both" or args.no_intervals:
        raise UserError(
            "--format html shows one scoring, with intervals: leave out --paper, --scoring both and --no-intervals"
        )
    text = render(_report_content(args, console), args.results.resolve().name)
    if args.output:
        _writing(args.output, lambda: write_text(args.output, text))
    else:
        print(text, end="")
    return 0


def _report_content(args: argparse.Namespace, console: Console, index: AdapterIndex | None = None) -> Content:
    from lora_retriever.comparison import compare
    from lora_retriever.report import make_content
    from lora_retriever.summary import summarize

    runs, left_out = _read_runs(args)
    (scoring,) = _scorings(args)
    with console.status(f"{scoring.name} scores of {len(runs)} runs"):
        summaries = summarize(runs, scoring)
        comparisons = compare([run.scored for run in summaries], args.versus) if args.versus else ()
        return make_content(summaries, comparisons, index, left_out)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, handler: Handler, help: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
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
    parser.add_argument("--without-leaks", action="store_true", help="leave out rows whose input stands in the pool")
    parser.add_argument("--pool", type=Path, help="the pool file, for --without-leaks (default: the one of the run)")


def _scorings(args: argparse.Namespace) -> list[Scoring]:
    """The scorings asked for."""
    from lora_retriever.metrics import KINDS, SCORINGS, Scoring, read_kinds

    kinds = read_kinds(KINDS) | (read_kinds(args.kinds) if args.kinds else {})
    names = SCORINGS if args.scoring == "both" else (args.scoring,)
    return [Scoring(name, kinds, args.stemming, args.allow_hub_metrics) for name in names]


def _read_runs(args: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """The runs of the results folder, without leaked rows if those are not wanted, and notes on what was left out."""
    from lora_retriever.answers import id_ranges, pool_file, read_runs, unfinished_runs
    from lora_retriever.audit import leaked_ids
    from lora_retriever.data import read_pool

    runs = read_runs(args.results)
    unfinished = unfinished_runs(args.results)
    notes = [f"Not finished, and not shown: {', '.join(unfinished)}."] if unfinished else []
    if not args.without_leaks:
        return runs, notes
    if not any(row.inputs for run in runs for row in run.rows.values()):
        raise UserError(f"{args.results}: its rows have no inputs, so none can be looked up in the pool")
    path = args.pool or pool_file(runs)
    pool = read_pool(path)
    leaked = set().union(*(leaked_ids(run.rows.values(), pool) for run in runs))
    for run in runs:
        if leaked >= run.rows.keys():
            raise UserError(f"{run.name}: every row's input stands in the pool {path}: without leaks nothing is left")
    if leaked:
        rows = f"{len(leaked)} rows whose input stands verbatim in the pool {path.name}"
        notes.append(f"Without {rows}: {id_ranges(leaked)}.")
    else:
        notes.append(f"No row's input stands in the pool {path.name}: nothing was left out.")
    return [run.without(leaked) for run in runs], notes


def _retrieval_data(args: argparse.Namespace, console: Console) -> dict[str, RetrievalData]:
    """What `retrieval` is to evaluate, by the encoders' names and the files of embeddings."""
    from lora_retriever.data import read_pool, read_rows
    from lora_retriever.retrieval import encode_data
    from lora_retriever.retrieval.precomputed import read_embeddings, with_texts

    if not args.encoder and not args.embeddings:
        raise UserError("name an --encoder, or a file of --embeddings")
    if bool(args.pool) != bool(args.inputs):
        raise UserError("--pool and --inputs belong together: name both")
    if not args.pool and (args.encoder or args.by == "domain" or args.leave_out_templates or args.templates):
        raise UserError("encoders, domains and templates need texts: name --pool and --inputs")
    rows, pool = (read_rows(args.inputs), read_pool(args.pool)) if args.pool else ([], [])
    known = {}
    for name in args.encoder:
        encoder = _load_encoder(name, args)
        with console.status(f"{name}: encoding the pool's samples and {len(rows)} inputs"):
            known[name] = encode_data(encoder, pool, rows)
    for path in args.embeddings:
        data = read_embeddings(path)
        known[str(path)] = with_texts(data, pool, rows, path) if args.pool else data
    first = next(iter(known.values()))
    for name, data in known.items():
        if (data.names, data.tasks) != (first.names, first.tasks):
            raise UserError(f"{name}: its adapters and rows are others than those of {next(iter(known))}")
    return known


def _load_encoder(encoder: str, args: argparse.Namespace) -> Encoder:
    from lora_retriever.embedding_cache import cached
    from lora_retriever.encoders import load_encoder
    from lora_retriever.hub import ENCODER_WANTED, folder_or_id

    folder = folder_or_id(encoder, ENCODER_WANTED)
    load = partial(load_encoder, folder, args.layout, args.instruction)
    return load() if args.no_cache else cached(load, hash_path(folder), args.layout, args.instruction)


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
