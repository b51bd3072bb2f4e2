"""The answered rows of a results folder, as every table, comparison and report reads them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_retriever.data import read_records
from lora_retriever.errors import UserError
from lora_retriever.files import hash_path
from lora_retriever.methods import METHODS

ORACLE = "best_selection"
"""The run against which scores are normalized."""


@dataclass(frozen=True)
class AnsweredRow:
    """A row with its answer and what was used for it; `id` is the row's place in the benchmark's file."""

    id: int
    inputs: str
    targets: str
    task: str
    domain: str
    metric: str
    answer: str
    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float | None, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the answer is nothing but white space and dots; such answers score 0."""
        return not self.answer.replace(".", "").strip()


@dataclass(frozen=True)
class Run:
    """One finished run: its rows by id, in the file's order, and its record (`NAME.meta.json`; empty: it has none)."""

    name: str
    rows: dict[int, AnsweredRow]
    meta: dict[str, Any]

    @property
    def method(self) -> str:
        """The method's name: the run's own without a sweep's settings."""
        return self.name.partition("@")[0]

    @property
    def settings(self) -> dict[str, str]:
        """The settings a sweep varied: `mixture@k=4,scorer=cosine` has k and scorer."""
        varied = self.name.partition("@")[2]
        return dict(part.split("=", 1) for part in varied.split(",") if "=" in part)

    @property
    def note(self) -> str:
        """What the profile wants printed under every table."""
        return str(self.meta.get("note", ""))

    def without(self, ids: Collection[int]) -> Run:
        """The run without some of its rows."""
        return replace(self, rows={id: row for id, row in self.rows.items() if id not in ids})


def read_runs(folder: Path) -> list[Run]:
    """All finished runs in a results folder, the paper's configurations first, in its order.

    Raises:
        UserError: there is no such folder, no run in it, a run's file is damaged, or two runs have different rows
            under the same id.
    """
    if not folder.is_dir():
        raise UserError(f"no results folder {folder}; `bash eval_all.sh` makes one")
    files = {path.stem: path for path in sorted(folder.glob("*.json")) if not path.name.endswith(".meta.json")}
    files |= {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise UserError(f"{folder} holds no finished run (NAME.jsonl, or the original's NAME.json)")
    order = {name: place for place, name in enumerate(METHODS)}
    names = sorted(files, key=lambda name: (order.get(name.partition("@")[0], len(order)), _natural(name)))
    runs = [read_run(name, files[name]) for name in names]
    _check_rows_agree(runs, folder)
    return runs


def read_run(name: str, path: Path) -> Run:
    """One run's answers. Rows without an `id`, as the original's, are counted from 0.

    Raises:
        UserError: the file is no list of answered rows.
    """
    rows: dict[int, AnsweredRow] = {}
    for place, record in enumerate(read_records(path), start=1):
        row = _answered(record, place, path)
        if row.id in rows:
            raise UserError(f"{path}: row {place}: id {row.id} is there already")
        rows[row.id] = row
    meta_path = path.with_name(f"{path.stem}.meta.json")
    try:
        meta = json.loads(meta_path.read_text(encoding="utf-8")) if meta_path.exists() else {}
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{meta_path}: not readable ({error})") from error
    return Run(name, rows, meta)


def missing_rows(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Per run that lacks rows which another run has: their ids."""
    everything = set().union(*(run.rows for run in runs))
    lacking = {run.name: sorted(everything - run.rows.keys()) for run in runs}
    return {name: ids for name, ids in lacking.items() if ids}


def pool_file(runs: Sequence[Run]) -> Path:
    """The pool that the runs were made with.

    Raises:
        UserError: no run's record names it, or it is not there any more, or it has changed since.
    """
    for run in runs:
        recorded = run.meta.get("files", {}).get("pool")
        if recorded is None:
            continue
        path, expected = Path(recorded), run.meta["configuration"].get("pool")
        if not path.is_file():
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


def _answered(record: dict[str, Any], place: int, path: Path) -> AnsweredRow:
    absent = [key for key in ("targets", "task", "domain", "metric", "predicted_answer") if key not in record]
    if absent:
        raise UserError(f"{path}: row {place}: field {absent[0]!r} is missing; is this a run's file?")
    for key in ("targets", "task", "domain", "metric", "predicted_answer"):
        if not isinstance(record[key], str):
            raise UserError(f"{path}: row {place}: field {key!r} is {record[key]!r}, not a text")
    return AnsweredRow(
        id=record.get("id", place - 1),
        inputs=record.get("inputs", ""),
        targets=record["targets"],
        task=record["task"],
        domain=record["domain"],
        metric=record["metric"],
        answer=record["predicted_answer"],
        adapters=tuple(record.get("adapters", ())),
        weights=tuple(record.get("weights", ())),
        scores=tuple(record.get("scores", ())),
    )


def _check_rows_agree(runs: Sequence[Run], folder: Path) -> None:
    seen: dict[int, tuple[AnsweredRow, str]] = {}
    metric_of: dict[str, tuple[str, str]] = {}
    for run in runs:
        for id, row in run.rows.items():
            first, where = seen.setdefault(id, (row, run.name))
            if (row.task, row.inputs, row.targets) != (first.task, first.inputs, first.targets):
                raise UserError(
                    f"{folder}: row {id} is of task {row.task!r} in {run.name} and another row, of {first.task!r}, in "
                    f"{where}: these are not answers to the same benchmark; put them into folders of their own"
                )
            metric, other = metric_of.setdefault(row.task, (row.metric, run.name))
            if row.metric != metric:
                raise UserError(
                    f"{folder}: task {row.task!r} is scored by {row.metric!r} in {run.name} (row {id}) and by "
                    f"{metric!r} in {other}"
                )


def _natural(name: str) -> list[tuple[int, float, str]]:
    """A key by which k=8 stands before k=10."""
    parts = name.replace("=", " ").replace(",", " ").replace("@", " ").split()
    return [(0, float(part), "") if part.replace(".", "", 1).isdigit() else (1, 0.0, part) for part in parts]
