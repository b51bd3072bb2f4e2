"""Answering the rows of one run: known answers are reused, and the backend makes the other answers."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_retriever.backends import BACKENDS
from lora_retriever.backends.base import Outcome
from lora_retriever.escaping import for_rich
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.answer import chosen_option
from lora_retriever.generation.batches import Request
from lora_retriever.generation.composition import Composition, nearly_single
from lora_retriever.procedures import PLAIN, procedures_of
from lora_retriever.progress import Bar, progress_bar
from lora_retriever.running.inputs import file_hashes
from lora_retriever.running.plan import PlannedRow, group_alike, lacking, planned
from lora_retriever.running.run_file import Line, RunFile
from lora_retriever.running.shared import Answering
from lora_retriever.running.stages import Stages
from lora_retriever.running.sweep import Variant

if TYPE_CHECKING:
    from lora_retriever.generation.answer import Answer
    from peft_composition import Gate

PACKAGES = ("torch", "transformers", "peft", "peft-composition", "sentence-transformers", "lora-retriever")
"""The packages on which every answer may depend."""


def answer_run(variant: Variant, run: RunFile, code: Mapping[str, Any], shared: Answering) -> dict[int, str]:
    """Plan a run and answer its rows. Returns why rows failed, by the rows' ids.

    Args:
        code: the field `code` of the run's record.

    Raises:
        UserError: the method cannot be run here.
        BackendError, FolderError: nothing more can be answered, or written.
    """
    from transformers import set_seed

    from lora_retriever.generation.encoder_decoder import GATES, refuse_encoder_decoder
    from lora_retriever.generation.loading import load_config

    set_seed(variant.profile.seed)
    if variant.method.gate is not None:
        refuse_encoder_decoder(load_config(shared.resources.benchmark.base), GATES)
    plan, gate = planned(variant, run, shared.prompts, shared.resources, bool(code.get("kept")))
    wanted = run.configuration.get("k", 0) if gate is None else 0
    note = nearly_single(run.name, wanted, [planned.composition.weights.values() for planned in plan])
    if note is not None:
        shared.resources.console.print(for_rich(f"warning: {note}"), soft_wrap=True)
    files = file_hashes(variant.profile, shared.resources.benchmark, variant.method)
    description = {
        **describe(variant.profile, plan, shared.resources.learned),
        "file_hashes": files,
        "code": dict(code),
    }
    return answer_rows(variant, gate, run, plan, description, shared)


def answer_rows(
    variant: Variant,
    gate: Gate | None,
    run: RunFile,
    plan: Sequence[PlannedRow],
    description: dict[str, Any],
    shared: Answering,
) -> dict[int, str]:
    """Answer the rows of a plan that have no answer yet. Returns why rows failed, by the rows' ids."""
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    failed = {planned.row.id: reason for planned in plan if (reason := lacking(planned, run.configuration))}
    procedures = procedures_of(variant.profile, [planned.row for planned in plan])
    named = [(planned, planned.row.procedure or variant.profile.procedure) for planned in plan]
    staged = [(planned, procedures[name]) for planned, name in named if name != PLAIN and planned.row.id not in failed]
    plain = [planned for planned, name in named if name == PLAIN and planned.row.id not in failed]
    alike = group_alike(plain, run.configuration)
    known = {key: answer for key in alike if (answer := shared.cache.find(key)) is not None}
    # If several rows have the same key, only the first row is asked.
    asked = {rows[0].row.id: rows for key, rows in alike.items() if key not in known}

    run.begin({**description, "finished": False})
    done = len(run.lines)
    with row_progress(run, plan, shared.resources.console) as advance:

        def write(answered: Iterable[tuple[Sequence[PlannedRow], Answer]]) -> None:
            missing = [(row, answer) for rows, answer in answered for row in rows if row.row.id not in run.lines]
            if missing:
                run.append([answer_line(row, answer) for row, answer in missing])
                advance([row for row, _ in missing])

        def fail(outcome: Outcome) -> None:
            for id, text in outcome.tracebacks.items():
                shared.log.add_text(f"{run.name}: row {id}", text)
            failed.update({row.row.id: reason for id, reason in outcome.failures.items() for row in asked[id]})
            advance([row for id in outcome.failures for row in asked[id] if row.row.id not in run.lines])

        advance([row for row in plan if row.row.id in failed and row.row.id not in run.lines])
        write((alike[key], answer) for key, answer in known.items())
        reused = len(run.lines) - done
        requests = [Request(id, rows[0].prompt, rows[0].composition) for id, rows in asked.items()]
        finished = {id for id, rows in asked.items() if not run.missing([row.row.id for row in rows])}
        if requests:
            for outcome in shared.backend.answers(requests, variant.method.mode, finished, gate):
                write((asked[id], answer) for id, answer in outcome.answers.items())
                fail(outcome)
        if staged:
            stages = Stages(variant, gate, run, staged, shared)

            def write_staged(answered: Sequence[tuple[PlannedRow, Line]]) -> None:
                missing = [(row, fields) for row, fields in answered if row.row.id not in run.lines]
                if missing:
                    run.append([staged_line(row, fields, variant.profile.procedure) for row, fields in missing])
                    advance([row for row, _ in missing])

            stages.answer(write_staged)
            failed.update(stages.failed)
            advance([planned for planned, _ in staged if planned.row.id in stages.failed])
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
    """The fields that a results file keeps of one row. Under a gate the weights are means over tokens, the largest
    first."""
    composition = planned.composition
    weights = composition.weights
    if answer.gate is not None:
        ordered = sorted(answer.gate.weights.items(), key=lambda item: -item[1])
        weights = {name: weight for name, weight in ordered if weight and name in composition.weights}
    text = answer.text
    if answer.likelihoods is not None and planned.row.options is not None:
        text = chosen_option(planned.row.metric, planned.row.options, answer.likelihoods)
    return {
        "id": planned.row.id,
        **planned.row.model_dump(exclude={"id"}),
        **planned.row.further,
        "predicted_answer": text,
        **_used(composition, weights),
        **({} if answer.gate is None else {"gate_entropy": answer.gate.entropy}),
        **({} if answer.likelihoods is None else {"likelihoods": list(answer.likelihoods)}),
        **({} if planned.prompt.shots is None else {"shots": planned.prompt.shots}),
        "truncated_tokens": planned.prompt.truncated_tokens,
        "generated_tokens": answer.generated_tokens,
    }


def staged_line(planned: PlannedRow, fields: Line, procedure: str) -> Line:
    """The fields that a results file keeps of one row that a procedure answered.

    The adapters are the row's own composition; each question in `stages` has the adapters that answered the question.

    Args:
        fields: the fields that the procedure's answers decide.
        procedure: the profile's procedure, for a row that names none.
    """
    return {
        "id": planned.row.id,
        **planned.row.model_dump(exclude={"id"}),
        **planned.row.further,
        "procedure": planned.row.procedure or procedure,
        "predicted_answer": fields["predicted_answer"],
        **_used(planned.composition, planned.composition.weights),
        **{name: value for name, value in fields.items() if name != "predicted_answer"},
    }


def _used(composition: Composition, weights: Mapping[str, float]) -> Line:
    """The adapters of a line, with their weights and retrieval scores, and the hits of the row's search."""
    return {
        "adapters": list(weights),
        "weights": list(weights.values()),
        "scores": [composition.scores.get(name) for name in weights],
        "retrieved": None if composition.retrieved is None else asdict(composition.retrieved),
    }


def describe(profile: Profile, plan: Sequence[PlannedRow], learned: Mapping[str, str]) -> dict[str, Any]:
    """The part of a run's record beside the configuration: files, versions, hardware, and the number of prompts that
    were cut.

    `learned` maps the names of the folders that the method has learned to their hashes.
    """
    return {
        "profile": profile.name,
        "note": profile.note,
        "files": {
            "rows": str(profile.rows_path),
            "pool" if isinstance(profile.data.pool, str) else "pool_drawn_from": str(profile.pool_path),
        },
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
