"""The answered rows of a results folder, read for every table, comparison and report."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from lora_retriever.analysis.origins import Origin, read_origins
from lora_retriever.data.further import Value, further_names, further_of
from lora_retriever.data.objects import read_objects
from lora_retriever.data.official import official_name, renamed
from lora_retriever.data.rows import joined, shortened
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.files import hash_path, read_bytes
from lora_retriever.generation.composition import nearly_single
from lora_retriever.methods.paper import METHODS

ORACLE = "best_selection"
"""The run against which scores are normalized."""
_MISSPELT = re.compile(r"^misture(?=$|_|@)")
"""The original's spelling of `mixture` in the names of its files of answers."""

OfficialName = Annotated[str, AfterValidator(official_name)]
"""A name of a task or an adapter; tasks of the official benchmark, and their adapters, get the official names."""


def _or_none(value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
    """The value, or None if another program uses the field for something else, so that the value has another form."""
    try:
        return validated(value)
    except ValidationError:
        return None


OrNone = WrapValidator(_or_none)


class FoundAdapters(BaseModel):
    """The adapters that retrieval found for a row, best first, whether the run used the adapters or not."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    adapters: tuple[OfficialName, ...]
    scores: tuple[float | None, ...] = ()
    probabilities: tuple[float | None, ...] = ()


class Asked(BaseModel):
    """A question that a procedure asked, with its answer: a text, or labels with their probabilities."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: str
    adapters: tuple[OfficialName, ...] = ()
    weights: tuple[FiniteFloat, ...] = ()
    answer: str | None = None
    labels: tuple[str, ...] = ()
    probabilities: Mapping[str, FiniteFloat] = {}
    threshold: FiniteFloat | None = None


class AnsweredRow(BaseModel):
    """A row with its answer, the adapters used for it and its further fields.

    `id` is the row's position in the benchmark's file.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int = Field(ge=0, strict=True)
    inputs: str = ""
    targets: str | tuple[str, ...]
    task: OfficialName
    domain: str
    metric: str
    answer: str = Field(alias="predicted_answer")
    adapters: tuple[OfficialName, ...] = ()
    weights: tuple[FiniteFloat, ...] = ()
    scores: tuple[float | None, ...] = ()
    retrieved: Annotated[FoundAdapters | None, OrNone] = None
    truncated_tokens: Annotated[int | None, OrNone] = None
    options: Annotated[tuple[str, ...] | None, OrNone] = None
    likelihoods: Annotated[tuple[FiniteFloat, ...] | None, OrNone] = None
    stages: Annotated[tuple[tuple[Asked, ...], ...] | None, OrNone] = None
    further: Mapping[str, Value] = {}

    @property
    def is_empty(self) -> bool:
        """Whether the answer has only white space and dots."""
        return not self.answer.replace(".", "").strip()

    @property
    def names_adapters(self) -> bool:
        """Whether the file says which adapters answered the row. An empty list says that no adapter did."""
        return "adapters" in self.model_fields_set


class _Record(BaseModel):
    """The fields that are read from a run's record. Every field may be missing."""

    note: str = ""
    configuration: dict[str, Any] = {}
    files: dict[str, str] = {}
    timings: dict[str, Any] = {}
    failed_rows: list[Any] = []


Content = TypeVar("Content", bound=BaseModel)


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        rows: the rows by id, in the file's order.
        meta: the record (`NAME.meta.json`). Empty: there is no record.
        origin: whose answers these are, from the folder's `runs.yaml`. None: there is no such file, or the file says
            nothing about the run.
        tasks_in_file: the names that the file has for the tasks.
        noted_as_missing: the ids of rows that the run lacks and that a note of its folder names.
    """

    name: str
    rows: dict[int, AnsweredRow]
    meta: dict[str, Any]
    origin: Origin | None = None
    tasks_in_file: tuple[str, ...] = ()
    noted_as_missing: frozenset[int] = frozenset()

    @property
    def method(self) -> str:
        """The method's name: the run's name without a sweep's settings."""
        return self.name.partition("@")[0]

    @property
    def settings(self) -> dict[str, str]:
        """The settings a sweep varied: `mixture@k=4,scorer=cosine` has k and scorer."""
        varied = self.name.partition("@")[2]
        return dict(part.split("=", 1) for part in varied.split(",") if "=" in part)

    @property
    def note(self) -> str:
        """The text that the profile prints under every table."""
        return str(self.meta.get("note", ""))

    @property
    def single_note(self) -> str | None:
        """The note on a run without a gate whose k adapters are in effect one (`nearly_single`)."""
        configuration = self.meta.get("configuration", {})
        method, k = configuration.get("method"), configuration.get("k")
        if not isinstance(k, int) or not isinstance(method, dict) or method.get("gate") is not None:
            return None
        return nearly_single(self.name, k, [row.weights for row in self.rows.values()])

    def without(self, ids: Collection[int]) -> Run:
        """The run without some of its rows."""
        return replace(self, rows={id: row for id, row in self.rows.items() if id not in ids})


def read_runs(folder: Path) -> list[Run]:
    """All finished runs in a results folder, by `open_results`."""
    return open_results(folder)[0]


def open_results(folder: Path) -> tuple[list[Run], list[str]]:
    """All finished runs in a results folder, by `read_folder`, and notes on files that are not shown or renamed.

    Raises:
        UserError: as for `read_folder`, or two runs have different rows under the same id.
    """
    runs, notes = read_folder(folder)
    check_rows_agree(runs, folder)
    return runs, notes


def read_folder(folder: Path) -> tuple[list[Run], list[str]]:
    """All finished runs in a results folder, and notes on files that are not shown or renamed.

    A run is a file `NAME.jsonl` with at least one row, or a JSON list `NAME.json`. The paper's methods come first, in
    the paper's order. Hidden files, such as the files that macOS puts beside each file, are ignored. A file that is no
    run and has no `NAME.meta.json` beside it is left out with a note. `misture`, the original's spelling, is read as
    `mixture`. The file `runs.yaml` says whose answers these are (`origins`).

    Raises:
        UserError: there is no such folder, no run in it, a run's file, its record or `runs.yaml` is damaged, or two
            files are the same run.
    """
    check_is_folder(folder)
    files, foreign = _files_of_runs(folder)
    order = {method.name: place for place, method in enumerate(METHODS)}
    names = sorted(files, key=lambda name: (order.get(name.partition("@")[0], len(order)), _natural(name)))
    runs = []
    for name in names:
        try:
            runs.append(read_run(name, files[name]))
        except UserError as error:
            if _record_path(files[name]).exists():
                raise UserError(
                    f"{error}. Give the command of this run again, which mends the file, or move the file away"
                ) from error
            foreign.append(f"{files[name].name} ({error})")
    unfinished = unfinished_runs(folder)
    if not runs:
        reasons = [*foreign, *(f"{name} is not finished" for name in unfinished)]
        reason = f": {'; '.join(reasons)}" if reasons else " (NAME.jsonl, or the original's NAME.json)"
        raise UserError(f"{folder} holds no finished run{reason}")
    origins = read_origins(folder, [run.name for run in runs])
    notes = [f"Not finished, and not shown: {', '.join(unfinished)}."] if unfinished else []
    notes += [f"No run, and not shown: {reason}." for reason in foreign]
    notes += [
        f"{files[run.name].name} is read as the run {run.name}; the file has the original's spelling."
        for run in runs
        if files[run.name].stem != run.name
    ]
    if said := renamed(dict.fromkeys(name for run in runs for name in run.tasks_in_file)):
        concerned = [run.name for run in runs if renamed(run.tasks_in_file)]
        notes.append(f"{'All runs' if len(concerned) == len(runs) else ', '.join(concerned)}: {said}.")
    return [replace(run, origin=origins.get(run.name)) for run in runs], notes


def check_is_folder(folder: Path) -> None:
    """Raise `UserError` if there is no such results folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there; `lora-retriever run` makes results folders"
        raise UserError(f"no results folder {folder}: it {what}")


def unfinished_runs(folder: Path) -> list[str]:
    """The runs in a results folder that still have rows to answer, or in which every row failed."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    partial = {path.name.removesuffix(".jsonl.partial") for path in files if path.name.endswith(".jsonl.partial")}
    empty = {path.stem for path in files if path.suffix == ".jsonl" and not path.stat().st_size}
    return sorted(partial | empty)


def _files_of_runs(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files that may be runs, by the runs' names, and the files that cannot be runs, with the reasons.

    Raises:
        UserError: two files are the same run, under the original's spelling and under the right spelling.
    """
    files: dict[str, Path] = {}
    foreign: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix not in (".json", ".jsonl") or path.name.endswith(".meta.json"):
            continue
        is_lines = path.suffix == ".jsonl"
        if not path.is_file():
            if is_lines:
                kind = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"
                foreign.append(f"{path.name} (it is {kind})")
        elif not _is_utf8(path.name):
            foreign.append(f"{path.name} (its name is not UTF-8)")
        elif path.stat().st_size if is_lines else _begins_with(path, "["):
            name = _MISSPELT.sub("mixture", path.stem)
            other = files.setdefault(name, path)
            if other.stem != path.stem:
                raise UserError(
                    f"{folder}: {other.name} and {path.name} are both the run {name}; move one of the two files away"
                )
            files[name] = path
    return files, foreign


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_run(name: str, path: Path) -> Run:
    """One run's answers. Rows without an `id`, such as the original's rows, are counted from 0.

    Raises:
        UserError: the file is no list of answered rows, or its `NAME.meta.json` is no record.
    """
    rows: dict[int, AnsweredRow] = {}
    tasks: dict[str, None] = {}
    objects = read_objects(path, may_have_nan=True)
    kept = further_names(objects)
    for place, record in enumerate(objects, start=1):
        content = {"id": place - 1, **record, "further": further_of(record, kept)}
        row = _validated(AnsweredRow, content, f"{path}: row {place}")
        if row.id in rows:
            raise UserError(f"{path}: row {place}: id {row.id} is there already")
        rows[row.id] = row
        tasks[record["task"]] = None
    return Run(name, rows, _read_record(_record_path(path)), tasks_in_file=tuple(tasks))


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.meta.json")


def _read_record(path: Path) -> dict[str, Any]:
    """The record of a run, checked. Empty: there is no record."""
    if not path.exists():
        return {}
    try:
        record = json.loads(read_bytes(path).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({type(error).__name__}: {error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected the record of a run, an object, and found {type(record).__name__}")
    _validated(_Record, record, str(path))
    return record


def missing_rows(runs: Sequence[Run]) -> dict[str, list[int]]:
    """The ids of the rows that a run lacks and another run has, for each run that lacks rows."""
    everything = set().union(*(run.rows for run in runs))
    lacking = {run.name: sorted(everything - run.rows.keys()) for run in runs}
    return {name: ids for name, ids in lacking.items() if ids}


def pool_file(runs: Sequence[Run]) -> Path:
    """The file of the pool with which the runs were made.

    Raises:
        UserError: no run's record names the pool, the pool was drawn, or the pool's file does not exist any more or has
            changed since.
    """
    for run in runs:
        files = run.meta.get("files", {})
        if "pool_drawn_from" in files:
            raise UserError(
                f"the pool of {run.name} was drawn without the rows' inputs, so no row leaks; leave --without-leaks out"
            )
        recorded = files.get("pool")
        if recorded is None:
            continue
        path, expected = Path(recorded), run.meta.get("configuration", {}).get("pool")
        if not path.exists():
            raise UserError(f"the pool of {run.name} was {path}, which is not there any more; name it with --pool")
        if expected not in (None, hash_path(path)):
            raise UserError(f"the pool {path} has changed since {run.name} was made; name the right one with --pool")
        return path
    raise UserError("the runs' records do not say which pool they were made with; name it with --pool")


def id_ranges(ids: Iterable[int]) -> str:
    """Ids named in a few words: `3, 17-20, 44`."""
    spans: list[list[int]] = []
    for id in sorted(ids):
        if spans and id == spans[-1][1] + 1:
            spans[-1][1] = id
        else:
            spans.append([id, id])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def _validated(kind: type[Content], content: Any, where: str) -> Content:
    """A row or a record, checked; the message names the field."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(f"{where}: field {field!r} is missing; is this a run's file?") from error
        raise UserError(f"{where}: field {field!r} is {quoted(first['input'])}: {first['msg'].lower()}") from error


def check_rows_agree(runs: Sequence[Run], where: object) -> None:
    """Check that runs have the same rows under the same ids.

    Raises:
        UserError: two runs differ. The message begins with `where`.
    """
    seen: dict[int, tuple[AnsweredRow, str]] = {}
    kind_of: dict[str, tuple[tuple[str, str], str]] = {}
    for run in runs:
        for id, row in run.rows.items():
            first, there = seen.setdefault(id, (row, run.name))
            for field in ("task", "targets", "inputs"):
                mine, theirs = getattr(row, field), getattr(first, field)
                if mine != theirs and (field != "inputs" or (mine and theirs)):  # a run may come without inputs
                    raise UserError(
                        f"{where}: row {id} has other {field} in {run.name} ({shortened(joined(mine))!r}) than in "
                        f"{there} ({shortened(joined(theirs))!r}): these are not answers to the same benchmark; put "
                        "them into folders of their own. If only the order of the rows differs, name the benchmark's "
                        "file with --rows"
                    )
            kind, other = kind_of.setdefault(row.task, ((row.domain, row.metric), run.name))
            if (row.domain, row.metric) != kind:
                raise UserError(
                    f"{where}: task {shortened(row.task)!r} is of domain {shortened(row.domain)!r} and scored by "
                    f"{shortened(row.metric)!r} in {run.name} (row {id}), of {shortened(kind[0])!r} and by "
                    f"{shortened(kind[1])!r} in {other}: a task has one of each"
                )


def _begins_with(path: Path, sign: str) -> bool:
    """Whether this character is the first character of a file after white space."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(4096).lstrip()[:1] == sign
    except OSError:  # for example, the file of another user
        return False


def _natural(name: str) -> list[tuple[int, float, str]]:
    """A key that sorts k=8 before k=10."""
    parts = name.replace("=", " ").replace(",", " ").replace("@", " ").split()
    return [(0, float(part), "") if part.replace(".", "", 1).isdigit() else (1, 0.0, part) for part in parts]
