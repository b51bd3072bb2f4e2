"""The main path: rows and pool in, one file of answers per method, or per variant of it in a sweep, out.

    rows + pool ─► embeddings ─► index ─► compositions ─► batches ─► answers ─► RESULTS/NAME.jsonl

Everything is planned before the first token is made, and planned alike at every start. So a run that is started again
repeats only the batches that are not wholly on disk, in the very shape they would have had: the files come out the
same.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from transformers import set_seed

from lora_retriever.benchmark import Benchmark, check_pool_size, configuration, open_benchmark
from lora_retriever.data import Row
from lora_retriever.embedding_cache import cached
from lora_retriever.encoders import Embeddings, Encoder, load_encoder
from lora_retriever.errors import RowsFailedError
from lora_retriever.generation import Answer, Generator, load_generator
from lora_retriever.index import AdapterIndex
from lora_retriever.methods import Composition, Method, find_methods, route
from lora_retriever.profile import Profile
from lora_retriever.prompt import Prompt
from lora_retriever.results import Line, RunFile, locked
from lora_retriever.retrieval import index_pool
from lora_retriever.sweep import expand

PACKAGES = ("torch", "transformers", "peft", "peft-composition", "sentence-transformers", "lora-retriever")


@dataclass(frozen=True)
class PlannedRow:
    """A row with all that decides its answer."""

    row: Row
    prompt: Prompt
    composition: Composition


def evaluate(
    profile: Profile,
    only: Sequence[str] | None,
    results: Path,
    limit: int | None,
    console: Console,
    sweep: Sequence[str] = (),
) -> None:
    """Run a profile's methods, or `only` some, on its rows, at most `limit` of every task, into the folder `results`.

    A `sweep`, `["k=1,2,4", "scorer=cosine,discriminant"]`, runs every method once for each of its combinations.

    Raises:
        UserError: something is unusable; what was done until then is on disk and will not be done again.
        RowsFailedError: some rows could not be answered; all others were.
    """
    variants = expand(profile, find_methods(only or profile.methods), sweep)
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    with locked(results):
        benchmark = open_benchmark(profile, limit)
        check_pool_size(variants, benchmark)
        ids = [row.id for row in benchmark.rows]
        runs = {v: RunFile(results, v.name, configuration(v.profile, benchmark, v.method)) for v in variants}
        unfinished = {variant: run for variant, run in runs.items() if not run.is_finished(ids)}
        console.print(f"{len(runs) - len(unfinished)} of {len(runs)} runs of {len(ids)} rows are finished in {results}")
        if not unfinished:
            return

        indexes: dict[str, AdapterIndex] = {}
        queries = None
        if scorers := {variant.profile.retrieval.scorer for variant in unfinished if variant.method.retrieves}:
            with console.status("encoding the pool and the rows"):
                indexes, queries = retrieve(profile, benchmark, scorers)
        with console.status("loading the base model and the adapters"):
            generator = load_generator(
                benchmark.base, benchmark.adapters, profile.generation, profile.torch_dtype, profile.torch_device
            )
            prompts = [generator.prompt(row.inputs) for row in benchmark.rows]

        failures = {}
        for variant, run in unfinished.items():
            set_seed(variant.profile.seed)
            retrieval = variant.profile.retrieval
            index = indexes.get(retrieval.scorer)
            compositions = route(variant.method, benchmark.rows, retrieval.k, index, queries, retrieval.temperature)
            plan = [PlannedRow(*parts) for parts in zip(benchmark.rows, prompts, compositions, strict=True)]
            failures[run.name] = run_method(variant.method, run, plan, generator, describe(profile, plan), console)
    report_failures(failures)


def retrieve(
    profile: Profile, benchmark: Benchmark, scorers: Collection[str]
) -> tuple[dict[str, AdapterIndex], Embeddings]:
    """The pool's index by scorer and the embeddings [rows, dim] of the rows' inputs, each text encoded once."""
    settings = profile.encoder
    device = profile.torch_device
    load = partial(load_encoder, benchmark.encoder, settings.layout, settings.instruction, settings.batch_size, device)
    encoder: Encoder = (
        cached(load, benchmark.hashes["encoder"], settings.layout, settings.instruction, device)
        if settings.cache
        else load()
    )
    queries = encoder.encode([row.inputs for row in benchmark.rows])
    index = index_pool(encoder, benchmark.pool, profile.retrieval.scorer)
    return {scorer: index.rescored(scorer) for scorer in scorers}, queries


def run_method(
    method: Method,
    run: RunFile,
    plan: Sequence[PlannedRow],
    generator: Generator,
    description: dict[str, Any],
    console: Console,
) -> dict[int, str]:
    """Answer the rows of a plan that have no answer yet. Returns those that failed, by id, with the reason."""
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    failed = {planned.row.id: reason for planned in plan if (reason := lacking(planned, generator.model.adapters))}
    batches = plan_batches([planned for planned in plan if planned.row.id not in failed], generator.settings.batch_size)
    run.begin({**description, "finished": False})
    done = len(run.lines)
    # A sweep's long names wrap; as one line they would push the count out of a narrow terminal.
    name = TextColumn("{task.description}", table_column=Column(min_width=24, overflow="fold"))
    columns = (name, BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
    ) as progress:
        bar = progress.add_task(run.name, total=len(plan), completed=done)
        for batch in batches:
            missing = set(run.missing([planned.row.id for planned in batch]))
            if not missing:
                continue
            try:
                answers = generator.answer(
                    [planned.prompt for planned in batch], [planned.composition for planned in batch], method.mode
                )
            except RuntimeError as error:  # a batch that does not fit into memory, say, must not cost the others
                failed |= dict.fromkeys(missing, str(error).strip().splitlines()[0])
            else:
                lines = [answer_line(planned, answer) for planned, answer in zip(batch, answers, strict=True)]
                run.append([line for line in lines if line["id"] in missing])
            progress.advance(bar, len(missing))
    timings = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": len(run.lines) - done,
        "seconds": round(time.perf_counter() - clock, 2),
    }
    failed_rows = [{"id": id, "reason": failed[id]} for id in sorted(failed)]
    meta = {**description, "finished": not failed, "failed_rows": failed_rows, "timings": timings}
    run.finish([planned.row.id for planned in plan], meta)
    return failed


def lacking(planned: PlannedRow, adapters: Sequence[str]) -> str | None:
    """Why a row cannot be answered: its composition wants an adapter that the pool does not have. Else None."""
    absent = [name for name in planned.composition.adapters if name not in adapters]
    return f"no adapter {absent[0]!r} in the pool" if absent else None


def plan_batches(plan: Sequence[PlannedRow], batch_size: int) -> list[list[PlannedRow]]:
    """Batches of prompts of similar length, the longest first: what does not fit into memory shows at once."""
    ordered = sorted(plan, key=lambda planned: (-len(planned.prompt.token_ids), planned.row.id))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def answer_line(planned: PlannedRow, answer: Answer) -> Line:
    """What a results file keeps of one row."""
    return {
        "id": planned.row.id,
        **planned.row.model_dump(exclude={"id"}),
        "predicted_answer": answer.text,
        "adapters": list(planned.composition.adapters),
        "weights": list(planned.composition.weights),
        "scores": list(planned.composition.scores),
        "retrieved": None if planned.composition.retrieved is None else asdict(planned.composition.retrieved),
        "truncated_tokens": planned.prompt.truncated_tokens,
        "generated_tokens": answer.generated_tokens,
    }


def describe(profile: Profile, plan: Sequence[PlannedRow]) -> dict[str, Any]:
    """What the record of a run says beside its configuration: on what it ran, and how much was cut."""
    return {
        "profile": profile.name,
        "note": profile.note,
        "files": {"rows": str(profile.rows_path), "pool": str(profile.pool_path)},
        "rows": len(plan),
        "truncated_rows": sum(planned.prompt.truncated_tokens > 0 for planned in plan),
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "hardware": torch.cuda.get_device_name(profile.torch_device)
        if profile.torch_device.startswith("cuda")
        else platform.machine(),
    }


def report_failures(failures: dict[str, dict[int, str]]) -> None:
    """Say which rows of which run failed, if any did.

    Raises:
        RowsFailedError: some did; the message lists them.
    """
    lines = [f"{name}: row {id}: {failed[id]}" for name, failed in failures.items() for id in sorted(failed)]
    if lines:
        raise RowsFailedError("\n".join([f"{len(lines)} rows failed; the others are done:", *lines]))
