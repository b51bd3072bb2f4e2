"""The rows as the page's reader takes them: every text once, every answer a number that points to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lora_retriever.analysis.runs import AnsweredRow
from lora_retriever.analysis.scores import ScoredRun
from lora_retriever.analysis.summary import RunSummary
from lora_retriever.data.rows import joined

Item = TypeVar("Item", bound=Hashable)
Used = tuple[tuple[int, ...], tuple[float, ...], tuple[float | None, ...]]


@dataclass(frozen=True)
class Task:
    """A task of the benchmark; its name is that of its own adapter, too."""

    name: str
    domain: str
    metric: str


@dataclass(frozen=True)
class RunRows:
    """One run's part, a number per row: places of the answer and of what was used (-1: not answered), the score."""

    answers: list[int]
    used: list[int]
    scores: list[float | None]


@dataclass(frozen=True)
class Rows:
    """All rows, in the file's order, and every run's answers to them.

    Attributes:
        task: per row, the place of its task.
        used: what was used for some answer: places of adapters, their weights, their retrieval scores.
    """

    tasks: list[Task]
    adapters: list[str]
    texts: list[str]
    used: list[Used]
    ids: list[int]
    task: list[int]
    inputs: list[str]
    targets: list[str]
    runs: list[RunRows]


class _Places(Generic[Item]):
    """Items in the order in which they were first met; `of` gives an item's place."""

    def __init__(self) -> None:
        self._places: dict[Item, int] = {}

    def of(self, item: Item) -> int:
        return self._places.setdefault(item, len(self._places))

    @property
    def items(self) -> list[Item]:
        return list(self._places)


def all_rows(runs: Sequence[RunSummary]) -> list[AnsweredRow]:
    """Every row that some run answered, once, in the order of ids; its answer is of no meaning."""
    rows = {id: row for run in reversed(runs) for id, row in run.scored.run.rows.items()}
    return [rows[id] for id in sorted(rows)]


def tasks_of(rows: Sequence[AnsweredRow]) -> list[Task]:
    """The tasks, those of a domain together, in the order in which rows bring them up."""
    domains = list(dict.fromkeys(row.domain for row in rows))
    tasks = {row.task: Task(row.task, row.domain, row.metric) for row in rows}
    return sorted(tasks.values(), key=lambda task: domains.index(task.domain))


def row_scores(run: ScoredRun) -> dict[int, float]:
    """The main score of every row alone, by id: 0 or 100 for exact match, the row's own BLEU or ROUGE for others."""
    found: dict[int, float] = {}
    for task in run.tasks.values():
        scores = np.concatenate([metric.combine(statistics) for metric, statistics in task.parts], axis=-1)
        found |= zip(task.ids, scores[:, task.main].tolist(), strict=True)
    return found


def pack_rows(runs: Sequence[RunSummary], rows: Sequence[AnsweredRow], tasks: Sequence[Task]) -> Rows:
    """The rows with the answers of all runs."""
    texts, adapters, used = _Places[str](), _Places[str](), _Places[Used]()
    packed = []
    for run in runs:
        scores = row_scores(run.scored)
        answered = [run.scored.run.rows.get(row.id) for row in rows]
        packed.append(
            RunRows(
                answers=[texts.of(row.answer) if row else -1 for row in answered],
                used=[used.of(_used(row, adapters)) if row else -1 for row in answered],
                scores=[rounded(scores[row.id], 1) if row else None for row in answered],
            )
        )
    places = {task.name: place for place, task in enumerate(tasks)}
    return Rows(
        tasks=list(tasks),
        adapters=adapters.items,
        texts=texts.items,
        used=used.items,
        ids=[row.id for row in rows],
        task=[places[row.task] for row in rows],
        inputs=[row.inputs for row in rows],
        targets=[joined(row.targets) for row in rows],
        runs=packed,
    )


def rounded(value: float | None, digits: int) -> float | None:
    """A number as short as JSON can have it, 50 instead of 50.0; None for what JSON has no word for."""
    if value is None or not np.isfinite(value):
        return None
    short = round(value, digits)
    return int(short) if short == int(short) else short


def _used(row: AnsweredRow, adapters: _Places[str]) -> Used:
    weights = tuple(round(weight, 4) for weight in row.weights)
    return tuple(map(adapters.of, row.adapters)), weights, tuple(rounded(score, 4) for score in row.scores)
