"""The main path: rows and pool in; one file of answers out for each run (a method, or a variant of it in a sweep).

    rows + pool ─► embeddings ─► index ─► compositions ─► batches ─► answers ─► RESULTS/NAME.jsonl

A run is planned before its first token is made, and planned alike at every start. So a run that is started again
repeats only the batches that are not wholly on disk, in the same shape, and the files come out the same. Rows that
another run of the folder has answered take their answers from there. Therefore batches differ if other runs came or
went meanwhile, or if a batch had to be divided for lack of memory; then answers may differ where two tokens nearly tie.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_retriever.backends import BACKENDS, Backend, load_backend
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.batches import Request
from lora_retriever.methods import Method, methods_of
from lora_retriever.methods.context import Resources
from lora_retriever.progress import Bar, progress_bar
from lora_retriever.running.answer_cache import AnswerCache
from lora_retriever.running.plan import (
    PlannedRow,
    check_backend,
    check_pool_size,
    configuration,
    group_alike,
    lacking,
    planned,
)
from lora_retriever.running.run_file import Line, RunFile, locked
from lora_retriever.running.sweep import expand

if TYPE_CHECKING:
    from lora_retriever.generation.answer import Answer
    from peft_composition import Gate

PACKAGES = ("torch", "transformers", "peft", "peft-composition", "sentence-transformers", "lora-retriever")


def evaluate(
    profile: Profile,
    only: Sequence[str] | None,
    results: Path,
    limit: int | None,
    console: Console,
    sweep: Sequence[str] = (),
) -> None:
    """Run the methods of a profile on its rows, and write their answers into the folder `results`.

    Args:
        only: names of methods to run in place of the profile's: also `all`, `paper` and a user's `module:object`.
        limit: maximum number of rows of each task. None: all rows.
        sweep: values of settings, such as `["k=1,2,4", "scorer=cosine,discriminant"]`. Every method is run once for
            each combination of values.

    Raises:
        UserError: something is unusable. What was done until then is on disk, and is not done again. A method that
            cannot be planned costs the other methods nothing: they are run first.
        RowsFailedError: some rows could not be answered; all other rows were.
    """
    variants = expand(profile, methods_of(profile, only), sweep)
    with locked(results):
        benchmark = open_benchmark(profile, limit)
        check_pool_size(variants, benchmark)
        check_backend(variants)
        ids = [row.id for row in benchmark.rows]
        runs = [(v, RunFile(results, v.name, configuration(v.profile, benchmark, v.method))) for v in variants]
        unfinished = [(variant, run) for variant, run in runs if not run.is_finished(ids)]
        console.print(f"{len(runs) - len(unfinished)} of {len(runs)} runs of {len(ids)} rows are finished in {results}")
        if not unfinished:
            return

        import torch
        from transformers import set_seed

        from lora_retriever.generation.generator import make_prompts
        from lora_retriever.generation.loading import load_tokenizer

        if profile.threads is not None:
            torch.set_num_threads(profile.threads)
        with console.status("loading the base model and the adapters"):
            prompts = make_prompts(
                [row.inputs for row in benchmark.rows], load_tokenizer(benchmark.base), profile.generation
            )
            backend = load_backend(profile, benchmark)

        failures: dict[str, dict[int, str]] = {}
        refused: dict[str, str] = {}
        resources = Resources(profile, benchmark, results, console, backend.generator)
        cache = AnswerCache(versions(profile.backend))
        if profile.reuse_answers:
            cache.learn_folder(results)
        with closing(backend):
            for variant, run in unfinished:
                set_seed(variant.profile.seed)
                try:
                    plan, gate = planned(variant, run, prompts, resources)
                except UserError as error:
                    refused[run.name] = str(error)
                    continue
                description = describe(profile, plan, resources.learned)
                failures[run.name] = run_method(variant.method, gate, run, plan, backend, cache, description, console)
                if profile.reuse_answers:
                    cache.learn(run.configuration, list(run.lines.values()))
    raise_for(refused, failures)


def run_method(
    method: Method,
    gate: Gate | None,
    run: RunFile,
    plan: Sequence[PlannedRow],
    backend: Backend,
    cache: AnswerCache,
    description: dict[str, Any],
    console: Console,
) -> dict[int, str]:
    """Answer the rows of a plan that have no answer yet. Returns why rows failed, by the rows' ids."""
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    failed = {planned.row.id: reason for planned in plan if (reason := lacking(planned, run.configuration))}
    alike = group_alike([planned for planned in plan if planned.row.id not in failed], run.configuration)
    known = {key: answer for key in alike if (answer := cache.find(key)) is not None}
    asked = {rows[0].row.id: rows for key, rows in alike.items() if key not in known}  # the first row is asked for all

    run.begin({**description, "finished": False})
    done = len(run.lines)
    with row_progress(run, plan, console) as advance:

        def write(answered: Iterable[tuple[Sequence[PlannedRow], Answer]]) -> None:
            missing = [(row, answer) for rows, answer in answered for row in rows if row.row.id not in run.lines]
            if missing:
                run.append([answer_line(row, answer) for row, answer in missing])
                advance([row for row, _ in missing])

        advance([row for row in plan if row.row.id in failed and row.row.id not in run.lines])
        write((alike[key], answer) for key, answer in known.items())
        reused = len(run.lines) - done
        requests = [Request(id, rows[0].prompt, rows[0].composition) for id, rows in asked.items()]
        finished = {id for id, rows in asked.items() if not run.missing([row.row.id for row in rows])}
        for outcome in backend.answers(requests, method.mode, finished, gate):
            write((asked[id], answer) for id, answer in outcome.answers.items())
            failed |= {row.row.id: reason for id, reason in outcome.failures.items() for row in asked[id]}
            advance([row for id in outcome.failures for row in asked[id] if row.row.id not in run.lines])
    timings = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": len(run.lines) - done,
        "reused": reused,
        "seconds": round(time.perf_counter() - clock, 2),
    }
    failed = {id: reason for id, reason in failed.items() if id not in run.lines}
    failed_rows = [{"id": id, "reason": failed[id]} for id in sorted(failed)]
    meta = {**description, "finished": not failed, "failed_rows": failed_rows, "timings": timings}
    run.finish([planned.row.id for planned in plan], meta)
    return failed


class RowProgress:
    """Moves the bar of one run forward, row by row.

    The bar counts the tokens of prompts: the longest prompts come first, and by number of rows alone the estimate of
    the time left would be too long.
    """

    def __init__(self, bar: Bar, done: Sequence[PlannedRow], rows: int) -> None:
        """Begin with the rows that are `done`, of `rows` in all."""
        self._bar = bar
        self._rows = rows
        self._rows_done = len(done)
        self._tokens_done = tokens_of(done)

    def __call__(self, rows: Sequence[PlannedRow]) -> None:
        """Count some more rows as done."""
        self._rows_done += len(rows)
        self._tokens_done += tokens_of(rows)
        self._bar.move_to(self._tokens_done, f"{self._rows_done}/{self._rows}")


def tokens_of(rows: Sequence[PlannedRow]) -> int:
    """The number of tokens of the rows' prompts."""
    return sum(len(planned.prompt.token_ids) for planned in rows)


@contextmanager
def row_progress(run: RunFile, plan: Sequence[PlannedRow], console: Console) -> Iterator[RowProgress]:
    """A bar for one run, begun with the rows that are on disk."""
    done = [planned for planned in plan if planned.row.id in run.lines]
    with progress_bar(console, run.name, tokens_of(plan), tokens_of(done), f"{len(done)}/{len(plan)}") as bar:
        yield RowProgress(bar, done, len(plan))


def answer_line(planned: PlannedRow, answer: Answer) -> Line:
    """What a results file keeps of one row. Under a gate the weights are means over tokens, the largest first."""
    composition = planned.composition
    weights = composition.weights
    if answer.gate is not None:
        ordered = sorted(answer.gate.weights.items(), key=lambda item: -item[1])
        weights = {name: weight for name, weight in ordered if weight and name in composition.weights}
    return {
        "id": planned.row.id,
        **planned.row.model_dump(exclude={"id"}),
        "predicted_answer": answer.text,
        "adapters": list(weights),
        "weights": list(weights.values()),
        "scores": [composition.scores.get(name) for name in weights],
        "retrieved": None if composition.retrieved is None else asdict(composition.retrieved),
        **({} if answer.gate is None else {"gate_entropy": answer.gate.entropy}),
        "truncated_tokens": planned.prompt.truncated_tokens,
        "generated_tokens": answer.generated_tokens,
    }


def describe(profile: Profile, plan: Sequence[PlannedRow], learned: Mapping[str, str]) -> dict[str, Any]:
    """What the record of a run says beside its configuration: files, versions, hardware, and how many prompts were cut.

    `learned` maps the names of the folders that the method has learned to their hashes.
    """
    return {
        "profile": profile.name,
        "note": profile.note,
        "files": {"rows": str(profile.rows_path), "pool": str(profile.pool_path)},
        "rows": len(plan),
        **({"learned": dict(learned)} if learned else {}),
        "truncated_rows": sum(planned.prompt.truncated_tokens > 0 for planned in plan),
        "versions": versions(profile.backend),
        "hardware": hardware(profile.encoder_device),
    }


def hardware(device: str) -> str:
    """The name of the GPU, or the architecture of the CPU."""
    if not device.startswith("cuda"):
        return platform.machine()
    import torch

    return torch.cuda.get_device_name(device)


def versions(backend: str) -> dict[str, str]:
    """The versions of the packages on which the answers of a backend may depend."""
    found = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
    for package in BACKENDS[backend].packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def raise_for(refused: Mapping[str, str], failures: Mapping[str, Mapping[int, str]]) -> None:
    """Raise an error that lists the runs that could not be begun and the rows that failed, if there are any.

    Raises:
        UserError: some runs could not be begun.
        RowsFailedError: all runs were begun, and some rows failed.
    """
    failed = [f"{name}: row {id}: {rows[id]}" for name, rows in failures.items() for id in sorted(rows)]
    lines = [f"{len(failed)} rows failed; the others are done:", *failed] if failed else []
    if refused:
        begun = [f"{name}: {reason}" for name, reason in refused.items()]
        raise UserError("\n".join([f"{len(refused)} runs could not be begun; the others are done:", *begun, *lines]))
    if lines:
        raise RowsFailedError("\n".join(lines))
