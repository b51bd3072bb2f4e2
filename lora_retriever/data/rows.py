"""Benchmark rows and adapter pools: reading and checking the two kinds of input file.

A row is `{inputs, targets, task, domain, metric}`, a pool entry `{model_name, domain, sample: [{inputs, targets},
...]}`. Both are read from one JSON list (the official files) or from JSON lines. Nothing here knows of models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_retriever.errors import UserError
from lora_retriever.files import is_location

METRICS = ("em", "bleu", "rouge")
"""The metrics that a row may name without bringing its own."""
EXAMPLE_LENGTH = 100  # characters of a text that messages and audits show


class Sample(BaseModel):
    """One example of a task: what is asked and what is to be answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: str = Field(min_length=1)
    targets: str


class Row(Sample):
    """One row of a benchmark. `id` is the row's place in its file, from 0; it survives `--limit`."""

    task: str = Field(min_length=1)
    domain: str = Field(min_length=1)
    metric: str
    id: int


class PoolEntry(BaseModel):
    """One adapter of a pool, described by samples of the data it was trained for. `model_name` is its task's name."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_name: str = Field(min_length=1)
    domain: str
    sample: tuple[Sample, ...] = Field(min_length=1)


Record = TypeVar("Record", bound=BaseModel)


def read_rows(path: Path, limit_per_task: int | None = None) -> list[Row]:
    """The rows of a benchmark file, in the file's order; at most the first `limit_per_task` of every task.

    Raises:
        UserError: the file is missing, empty or no JSON, or a row lacks a field or names an unknown metric.
    """
    records = [{**record, "id": place} for place, record in enumerate(read_records(path))]
    rows = _validated(Row, records, path)
    for row in rows:
        if row.metric not in METRICS and not is_location(row.metric):
            known = ", ".join(METRICS)
            raise UserError(f"{path}: row {row.id + 1}: unknown metric {row.metric!r} (known: {known})")
    if limit_per_task is None:
        return rows
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.task] += 1
        if seen[row.task] <= limit_per_task:
            kept.append(row)
    return kept


def read_samples(path: Path) -> list[Sample]:
    """The examples `{inputs, targets}` of a file, in the file's order.

    Raises:
        UserError: the file is missing, empty or no JSON, or an example lacks a field; the message names its row.
    """
    return _validated(Sample, read_records(path), path)


def read_pool(path: Path) -> list[PoolEntry]:
    """The entries of a pool file, in the file's order.

    Raises:
        UserError: the file is missing, empty or no JSON, an entry lacks a field, or two entries share a name.
    """
    entries = _validated(PoolEntry, read_records(path), path)
    repeated = [name for name, count in Counter(entry.model_name for entry in entries).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: adapter {repeated[0]!r} is there more than once")
    return entries


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that holds one JSON list, or one JSON object a line.

    Raises:
        UserError: the file cannot be read, is empty, or is not JSON; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from error
    else:
        records = []
        for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a text may hold U+2028
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number}: not valid JSON ({error.msg})") from error
    if not records:
        raise UserError(f"{path}: the file holds no rows")
    for place, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise UserError(f"{path}: row {place}: expected an object, found {type(record).__name__}")
    return records


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks in the order in which they first appear."""
    return list(dict.fromkeys(row.task for row in rows))


def single_spaced(text: str) -> str:
    """The text with every stretch of white space as one space: equal for texts that are the same here."""
    return " ".join(text.split())


def shortened(text: str, length: int = EXAMPLE_LENGTH) -> str:
    """The beginning of a text in one line."""
    line = single_spaced(text)
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _validated(kind: type[Record], records: Sequence[dict[str, Any]], path: Path) -> list[Record]:
    checked = []
    for place, record in enumerate(records, start=1):
        try:
            checked.append(kind.model_validate(record))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            reason = "is missing" if first["type"] == "missing" else first["msg"].lower()
            raise UserError(f"{path}: row {place}: field {field!r}: {reason}") from error
    return checked
