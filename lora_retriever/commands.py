"""What each command of `lora-retriever` does with its arguments: checks them, calls the library, prints.

Imports that take seconds stand inside the commands: `--help`, `summarize` and mistyped arguments answer at once.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.escaping import as_json as json_text
from lora_retriever.files import hash_path, write_json, write_text

if TYPE_CHECKING:
    from lora_retriever.answers import Run
    from lora_retriever.encoders import Encoder
    from lora_retriever.index import AdapterIndex
    from lora_retriever.metrics import Scoring
    from lora_retriever.report.content import Content
    from lora_retriever.retrieval import RetrievalData

RUNS_ABREAST = 12
"""More runs are shown one below the other."""


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
        write_record(results, profile.metric_folders)
        if args.table:
            _print_table(results, console, profile.metric_folders)
    if failed:
        raise failed
    return 0


def _print_table(results: Path, console: Console, metric_folders: tuple[Path, ...]) -> None:
    """The table of a results folder, as `summarize` prints it when nothing is asked for."""
    from lora_retriever.metrics import KINDS, Scoring, read_kinds
    from lora_retriever.summary import summarize, to_run_table, to_table
    from lora_retriever.tables import terminal

    runs, notes = _runs_and_notes(results)
    with console.status(f"paper scores of {len(runs)} runs"):
        summaries = summarize(runs, Scoring("paper", read_kinds(KINDS), metric_folders=metric_folders))
        table = to_table if len(runs) <= RUNS_ABREAST else to_run_table
        print(terminal(table(summaries, left_out=notes)), end="")


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
    from lora_retriever.summary import beside, summarize, to_json, to_run_table, to_table
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
            elif args.by_run:
                tables.append(to_run_table(summaries, not args.no_intervals, left_out))
            else:
                tables.append(to_table(summaries, args.by_task, not args.no_intervals, left_out))
    if args.format == "json":
        content = {"scoring": "both", "scorings": contents} if args.scoring == "both" else contents[args.scoring]
        text = json_text(content) + "\n"
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


def _scorings(args: argparse.Namespace) -> list[Scoring]:
    """The scorings asked for."""
    from lora_retriever.metrics import KINDS, SCORINGS, Scoring, read_kinds

    kinds = read_kinds(KINDS) | (read_kinds(args.kinds) if args.kinds else {})
    names = SCORINGS if args.scoring == "both" else (args.scoring,)
    return [Scoring(name, kinds, args.stemming, args.allow_hub_metrics, tuple(args.allow_metrics)) for name in names]


def _runs_and_notes(results: Path) -> tuple[list[Run], list[str]]:
    """The finished runs of a results folder, and a note on those that are not."""
    from lora_retriever.answers import read_runs, unfinished_runs

    unfinished = unfinished_runs(results)
    return read_runs(results), [f"Not finished, and not shown: {', '.join(unfinished)}."] if unfinished else []


def _read_runs(args: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """The runs of the results folder, without leaked rows if those are not wanted, and notes on what was left out."""
    from lora_retriever.answers import id_ranges, pool_file
    from lora_retriever.audit import leaked_ids
    from lora_retriever.data import read_pool

    runs, notes = _runs_and_notes(args.results)
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
