"""The main path: rows and pool in, one file of answers per method out.

    rows + pool ─► embeddings ─► index ─► compositions ─► batches ─► answers ─► RESULTS/NAME.jsonl

Everything is planned before the first token is made, and planned alike at every start. So a run that is started again
repeats only the batches that are not wholly on disk, in the very shape they would have had: the files come out the
same.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lora_retriever.data import PoolEntry, Row, read_pool, read_rows
from lora_retriever.encoders import Embeddings, SentenceEncoder, load_encoder
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.files import hash_path
from lora_retriever.generation import Generator, load_generator
from lora_retriever.hub import folder_of
from lora_retriever.index import AdapterIndex
from lora_retriever.methods import Composition, Method, find_methods, route
from lora_retriever.profile import Profile
from lora_retriever.prompt import Prompt
from lora_retriever.results import Line, RunFile, locked

PACKAGES = ("torch", "transformers", "peft", "peft-composition", "sentence-transformers", "lora-retriever")


@dataclass(frozen=True)
class Benchmark:
    """What a profile names, read and found: the same for all of its methods."""

    rows: list[Row]
    pool: list[PoolEntry]
    base: Path
    encoder: Path
    adapters: dict[str, Path]
    hashes: dict[str, Any]


def evaluate(profile: Profile, only: Sequence[str] | None, results: Path, limit: int | None, console: Console) -> None:
    """Run a profile's methods, or `only` some, on its rows, at most `limit` of every task, into the folder `results`.

    Raises:
        UserError: something is unusable; nothing was run, or what was run is on disk and will not be done again.
        RowsFailedError: some rows could not be answered; all others were.
    """
    methods = find_methods(only or profile.methods)
    with locked(results):
        benchmark = open_benchmark(profile, methods, limit)
        runs = [RunFile(results, m.name, configuration(profile, benchmark, m, limit)) for m in methods]
        ids = [row.id for row in benchmark.rows]
        unfinished = [
            (m, run) for m, run in zip(methods, runs, strict=True) if run.missing(ids) or not run.path.exists()
        ]
        console.print(
            f"{len(methods) - len(unfinished)} of {len(methods)} runs are finished; {len(ids)} rows each, in {results}"
        )
        if not unfinished:
            return
        index, queries = None, None
        if any(method.retrieves for method, _ in unfinished):
            with console.status("encoding the pool and the rows"):
                index, queries = build_index(profile, benchmark)
        with console.status("loading the base model and the adapters"):
            generator = load_generator(
                benchmark.base, benchmark.adapters, profile.generation, profile.torch_dtype, profile.torch_device
            )
            prompts = {row.id: generator.prompt(row.inputs) for row in benchmark.rows}
        failures = {
            run.name: run_method(
                method,
                run,
                profile,
                benchmark,
                route(method, benchmark.rows, profile.retrieval.k, index, queries),
                generator,
                prompts,
                console,
            )
            for method, run in unfinished
        }
    report_failures(failures)


def open_benchmark(profile: Profile, methods: Sequence[Method], limit: int | None) -> Benchmark:
    """Read the rows and the pool, find (or fetch) the models, and hash all of it."""
    rows = read_rows(profile.rows_path, limit)
    pool = read_pool(profile.pool_path)
    for method in methods:
        available = len(pool) - (method.source == "retrieved_ood")
        wanted = method.adapters_needed(profile.retrieval.k)
        if method.retrieves and wanted > available:
            raise UserError(
                f"profile {profile.name}: {method.name} wants k = {wanted} adapters a row, but the pool "
                f"{profile.pool_path} leaves {available} to choose from; lower retrieval.k"
            )
    base = folder_of(profile, profile.base.location, profile.base.revision)
    encoder = folder_of(profile, profile.encoder.location, profile.encoder.revision)
    adapters = {
        entry.model_name: folder_of(profile, profile.adapter_location(entry.model_name), profile.adapters.revision)
        for entry in pool
    }
    hashes = {
        "rows": hash_path(profile.rows_path),
        "pool": hash_path(profile.pool_path),
        "base": hash_path(base),
        "encoder": hash_path(encoder),
        "adapters": {name: hash_path(folder) for name, folder in adapters.items()},
    }
    return Benchmark(rows, pool, base, encoder, adapters, hashes)


def configuration(profile: Profile, benchmark: Benchmark, method: Method, limit: int | None) -> dict[str, Any]:
    """All that a method's answers depend on, files by their hashes; what does not bear on it is left out."""
    used = {
        "method": {"name": method.name, "mode": method.mode, "source": method.source},
        "rows": benchmark.hashes["rows"],
        "limit_per_task": limit,
        "base": benchmark.hashes["base"],
        "generation": profile.generation.model_dump(),
        "dtype": profile.dtype,
        "device": profile.torch_device,
    }
    if method.source != "none":
        used |= {"adapters": benchmark.hashes["adapters"]}
    if method.retrieves:
        used |= {
            "pool": benchmark.hashes["pool"],
            "encoder": {
                "hash": benchmark.hashes["encoder"],
                "layout": profile.encoder.layout,
                "instruction": profile.encoder.instruction,
            },
            "scorer": profile.retrieval.scorer,
            "k": method.adapters_needed(profile.retrieval.k),
        }
    return used


def build_index(profile: Profile, benchmark: Benchmark) -> tuple[AdapterIndex, Embeddings]:
    """The index of the pool and the embeddings [rows, dim] of the rows' inputs, each text encoded once."""
    encoder = load_encoder(
        benchmark.encoder,
        profile.encoder.layout,
        profile.encoder.instruction,
        profile.encoder.batch_size,
        profile.torch_device,
    )
    return index_pool(encoder, benchmark.pool, profile.retrieval.scorer), encoder.encode(
        [row.inputs for row in benchmark.rows]
    )


def index_pool(encoder: SentenceEncoder, pool: Sequence[PoolEntry], scorer: str) -> AdapterIndex:
    """An index over the inputs of every entry's samples."""
    embeddings = encoder.encode([sample.inputs for entry in pool for sample in entry.sample])  # [all samples, dim]
    index, start = AdapterIndex(scorer), 0
    for entry in pool:
        end = start + len(entry.sample)
        index.add(entry.model_name, embeddings[start:end])
        start = end
    return index


def run_method(
    method: Method,
    run: RunFile,
    profile: Profile,
    benchmark: Benchmark,
    compositions: Sequence[Composition],
    generator: Generator,
    prompts: dict[int, Prompt],
    console: Console,
) -> dict[int, str]:
    """Answer a method's rows that have no answer yet. Returns the rows that failed, by id, with the reason."""
    started = datetime.now(timezone.utc)
    composition_of = {row.id: composition for row, composition in zip(benchmark.rows, compositions, strict=True)}
    failed = {
        id: f"no adapter {name!r} in the pool"
        for id, composition in composition_of.items()
        for name in composition.adapters
        if name not in benchmark.adapters
    }
    row_of = {row.id: row for row in benchmark.rows if row.id not in failed}
    batches = plan_batches({id: prompts[id] for id in row_of}, profile.generation.batch_size)
    meta = {
        "profile": profile.name,
        "note": profile.note,
        "rows": len(benchmark.rows),
        "truncated_rows": sum(prompts[row.id].truncated_tokens > 0 for row in benchmark.rows),
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "hardware": torch.cuda.get_device_name() if profile.torch_device.startswith("cuda") else platform.machine(),
    }
    run.begin({**meta, "finished": False})
    clock, answered = time.perf_counter(), 0
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(method.name, total=len(row_of))
        for batch in batches:
            missing = set(run.missing(batch))
            if missing:
                try:
                    answers = generator.answer(
                        [prompts[id] for id in batch], [composition_of[id] for id in batch], method.mode
                    )
                except RuntimeError as error:  # one batch that does not fit must not cost the others
                    failed |= {id: str(error).strip().splitlines()[0] for id in missing}
                else:
                    lines = [
                        answer_line(row_of[id], composition_of[id], prompts[id], answer.text, answer.generated_tokens)
                        for id, answer in zip(batch, answers, strict=True)
                    ]
                    run.append([line for line in lines if line["id"] in missing])
                    answered += len(missing)
            progress.advance(bar, len(batch))
    timings = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows_this_time": answered,
        "seconds_this_time": round(time.perf_counter() - clock, 2),
    }
    failures = [{"id": id, "reason": failed[id]} for id in sorted(failed)]
    run.finish(
        [row.id for row in benchmark.rows],
        {**meta, "finished": not failed, "failed_rows": failures, "timings": timings},
    )
    return failed


def plan_batches(prompts: dict[int, Prompt], batch_size: int) -> list[list[int]]:
    """Ids in batches of similar length, the longest prompts first: what does not fit into memory shows at once."""
    ordered = sorted(prompts, key=lambda id: (-len(prompts[id].token_ids), id))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def answer_line(row: Row, composition: Composition, prompt: Prompt, answer: str, generated_tokens: int) -> Line:
    """What a results file keeps of one row."""
    return {
        "id": row.id,
        **row.model_dump(exclude={"id"}),
        "predicted_answer": answer,
        "adapters": list(composition.adapters),
        "weights": list(composition.weights),
        "scores": list(composition.scores),
        "truncated_tokens": prompt.truncated_tokens,
        "generated_tokens": generated_tokens,
    }


def report_failures(failures: dict[str, dict[int, str]]) -> None:
    """Raises:
    RowsFailedError: there are any; the message lists them.
    """
    lines = [
        f"{name}: row {id}: {reason}" for name, failed in failures.items() for id, reason in sorted(failed.items())
    ]
    if lines:
        raise RowsFailedError("\n".join([f"{len(lines)} rows failed; the others are done:", *lines]))
