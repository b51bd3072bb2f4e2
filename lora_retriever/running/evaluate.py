"""The main path: rows and pool in; one file of answers out for each run (a method, or a variant in a sweep).

    rows + pool ─► embeddings ─► index ─► compositions ─► batches ─► answers ─► RESULTS/NAME.jsonl

A run is planned before its first token is made, and planned alike at every start. So a run that is started again
repeats only the batches that are not wholly on disk, in the same shape, and the files come out the same. Rows that
another run of the folder has answered take their answers from there. Therefore batches differ if other runs came or
went meanwhile, or if a batch had to be divided for lack of memory; then answers may differ where two tokens nearly tie.

An error of one method ends this method alone: the other methods are run. Only a broken device, a lost cluster or a file
system that cannot be written ends the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lora_retriever.backends import load_backend
from lora_retriever.backends.base import BackendError, broken_device, is_broken_device
from lora_retriever.errors import RowsFailedError, RunsFailedError, UserError
from lora_retriever.escaping import for_rich
from lora_retriever.experiment.benchmark import Benchmark, open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import DISK_ERRORS
from lora_retriever.methods import methods_of
from lora_retriever.methods.context import Resources
from lora_retriever.procedures import procedures_of
from lora_retriever.progress import quieten_transformers
from lora_retriever.running.answer_cache import AnswerCache
from lora_retriever.running.answering import answer_run, versions
from lora_retriever.running.code import (
    answering_hashes,
    changed_files,
    code_hashes,
    code_record,
    kept_codes,
    recorded_code,
    refuse_changed_code,
)
from lora_retriever.running.error_log import ErrorLog
from lora_retriever.running.inputs import changed_inputs
from lora_retriever.running.models import check_adapters, inspect_adapters, inspect_base, without_adapter_warnings
from lora_retriever.running.plan import (
    check_backend,
    check_encoder,
    check_names,
    check_pool_size,
    configuration,
    detecting_procedures,
)
from lora_retriever.running.results_folder import FolderError, folder_error, locked
from lora_retriever.running.run_file import RunFile
from lora_retriever.running.shared import Answering
from lora_retriever.running.sweep import Variant, expand

OnChangedCode = Literal["refuse", "keep", "anew"]
"""The choices for runs that other code answered: refuse, keep the answers, or answer these runs anew."""


@dataclass
class Failures:
    """The failures of an evaluation, by the names of runs.

    Attributes:
        refused: why a run could not be begun.
        ended: why a run could not be finished.
        rows: why rows failed, by the rows' ids.
        end: why the evaluation had to end. None: every run had its turn.
    """

    log: ErrorLog
    refused: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[int, str]] = field(default_factory=dict)
    end: str | None = None


@dataclass
class PlannedRun:
    """A run with the hashes of the source code that decides its answers, and the `code` of its record."""

    variant: Variant
    file: RunFile
    hashes: dict[str, str]
    code: dict[str, Any]


def evaluate(
    profile: Profile,
    only: Sequence[str] | None,
    results: Path,
    limit: int | None,
    console: Console,
    sweep: Sequence[str] = (),
    on_changed_code: OnChangedCode = "refuse",
) -> None:
    """Run the methods of a profile on its rows, and write their answers into the folder `results`.

    Args:
        only: names of methods to run in place of the profile's: also `all`, `paper` and a user's `module:object`.
        limit: maximum number of rows of each task. None: all rows.
        sweep: values of settings, such as `["k=1,2,4", "scorer=cosine,discriminant"]`. Every method is run once for
            each combination of values.
        on_changed_code: what to do with runs that other code answered.

    Raises:
        UserError: something is unusable, or other code answered a run. Nothing was begun.
        RunsFailedError: some runs could not be made. All other runs are on disk.
        RowsFailedError: some rows could not be answered; all other rows were.
    """
    variants = expand(profile, methods_of(profile, only), sweep)
    check_names(variants)
    uses_encoder = check_encoder(variants)
    with locked(results) as folder:
        benchmark = open_benchmark(profile, limit, uses_encoder)
        check_pool_size(variants, benchmark)
        check_backend(variants, benchmark.rows)
        failures = Failures(ErrorLog(results))
        runs = open_runs(variants, benchmark, results, failures)
        settle_changed_code(runs, results, on_changed_code, folder.require_writable)
        ids = [row.id for row in benchmark.rows]
        unfinished = [run for run in runs if not run.file.is_finished(ids)]
        finished = f"{len(runs) - len(unfinished)} of {len(variants)} runs of {len(ids)} rows are finished in {results}"
        console.print(for_rich(finished), soft_wrap=True)
        if unfinished:
            folder.require_writable()
            quieten_transformers()
            answer_runs(profile, benchmark, unfinished, results, console, failures)
    raise_for(failures)


def open_runs(variants: Sequence[Variant], benchmark: Benchmark, results: Path, failures: Failures) -> list[PlannedRun]:
    """The files of the runs, with the code that makes the answers. An error of a user's own method ends the runs of
    this method alone.

    Raises:
        UserError: the folder holds a run of this name with another configuration.
    """
    runs = []
    rows = {row.id: row.model_dump() for row in benchmark.rows}
    for variant in variants:
        try:
            used = configuration(variant.profile, benchmark, variant.method)
            hashes = code_hashes(variant.method, variant.profile, procedures_of(variant.profile, benchmark.rows))
        except UserError:
            raise
        except Exception as error:  # a user's own code may raise anything
            failures.refused[variant.name] = failures.log.add(variant.name, error)
            continue
        inputs = partial(changed_inputs, profile=variant.profile, benchmark=benchmark, method=variant.method)
        file = RunFile(results, variant.name, used, inputs)
        file.check_rows(rows)
        runs.append(PlannedRun(variant, file, hashes, code_record(hashes)))
    return runs


def settle_changed_code(
    runs: Sequence[PlannedRun], results: Path, on_changed_code: OnChangedCode, require_writable: Callable[[], None]
) -> None:
    """Refuse runs that other code answered, keep their answers, or move their files away so that the runs begin anew.

    Raises:
        UserError: there are such runs, and `on_changed_code` is "refuse".
    """
    changed: dict[str, list[str] | None] = {}
    for run in runs:
        file = run.file
        kept = recorded_code(file.recorded).get("kept", [])
        if not file.has_answers:
            continue
        files = changed_files(file.recorded, run.hashes)
        if files == []:
            run.code = code_record(run.hashes, kept)
        elif on_changed_code == "refuse":
            changed[file.name] = files
        elif on_changed_code == "anew":
            require_writable()
            file.set_aside()
        else:
            require_writable()
            run.code = code_record(run.hashes, kept_codes(file.recorded, len(file.lines)))
            file.record(code=run.code)
    if changed:
        refuse_changed_code(results, changed)


def answer_runs(
    profile: Profile,
    benchmark: Benchmark,
    runs: Sequence[PlannedRun],
    results: Path,
    console: Console,
    failures: Failures,
) -> None:
    """Load the backend, and answer run after run. Every failure is added to `failures`.

    Raises:
        UserError: the base, an adapter or the backend cannot be loaded.
    """
    import torch

    from lora_retriever.generation.generator import row_prompts

    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    with console.status("looking at the base model and the adapters"):
        base = inspect_base(benchmark.base, profile.generation)
        detects = bool(detecting_procedures(profile, benchmark.rows))
        adapters = inspect_adapters(benchmark.adapters, base.skeleton, detects)
        check_adapters(adapters)
        prompts = row_prompts(benchmark.rows, base.tokenizer, profile.generation, benchmark.pool)
    for warning in (*benchmark.warnings, *base.warnings, *adapters.warnings):
        console.print(for_rich(f"warning: {warning}"), soft_wrap=True)
    resources = Resources(profile, benchmark, results, console, lambda: backend.generator())
    encode_first(resources, [run.variant for run in runs])
    with console.status("loading the base model and the adapters"), without_adapter_warnings():
        backend = load_backend(profile, benchmark)
    cache = AnswerCache(versions(profile.backend), answering_hashes(profile.backend))
    if profile.reuse_answers:
        cache.learn_folder(results)
    with closing(backend):
        shared = Answering(prompts, base.tokenizer, resources, backend, cache, failures.log)
        for run in runs:
            name = run.file.name
            try:
                failures.rows[name] = answer_run(run.variant, run.file, run.code, shared)
            except (BackendError, FolderError) as error:
                failures.end = f"{name}: {error}"
                return
            except UserError as error:
                failures.refused[name] = str(error)
                continue
            except Exception as error:  # a method, the encoder or a user's own code failed
                failures.end = _end_by(error, results)
                if failures.end is not None:
                    return
                failures.ended[name] = failures.log.add(name, error)
                continue
            if profile.reuse_answers and not run.code.get("kept"):
                cache.learn(run.file.configuration, list(run.file.lines.values()))


def encode_first(resources: Resources, variants: Sequence[Variant]) -> None:
    """Encode the pool and the rows, if a variant needs that, before the base or vLLM takes the memory of a GPU.

    An error is told later, by every run that needs the embeddings.
    """
    if check_encoder(variants):
        with suppress(Exception):
            _ = resources.embeddings
        resources.free_encoder()


def _end_by(error: Exception, results: Path) -> str | None:
    """Why an error ends the evaluation. None: the next method may do better."""
    if is_broken_device(error):
        return str(broken_device(error))
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return str(folder_error(results, error))
    return None


def raise_for(failures: Failures) -> None:
    """Raise an error that lists the runs that could not be made and the rows that failed, if there are any.

    Raises:
        RunsFailedError: some runs could not be made, or the evaluation had to end.
        RowsFailedError: all runs were made, and some rows failed.
    """
    lines = [] if failures.end is None else [failures.end]
    lines += _listed("runs could not be begun; the others are done:", failures.refused)
    lines += _listed("runs could not be finished; the others are done:", failures.ended)
    is_of_runs = bool(lines)
    failed = [f"{name}: row {id}: {rows[id]}" for name, rows in failures.rows.items() for id in sorted(rows)]
    if failed:
        lines += [f"{len(failed)} rows failed; the others are done:", *failed]
    if failures.log.is_used:
        lines.append(failures.log.note)
    if is_of_runs:
        raise RunsFailedError("\n".join(lines))
    if lines:
        raise RowsFailedError("\n".join(lines))


def _listed(heading: str, reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return []
    return [f"{len(reasons)} {heading}", *(f"{name}: {reason}" for name, reason in reasons.items())]
