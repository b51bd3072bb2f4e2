"""Labelled matrices, ordered by domain: which adapters were retrieved for which tasks, and how similar adapters are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_retriever.analysis.scores import ScoredRun
from lora_retriever.report.rows import Task
from lora_retriever.retrieval.index import AdapterIndex

NO_DOMAIN = "without rows"


@dataclass(frozen=True)
class Label:
    """The name of a row or column, and its domain."""

    name: str
    domain: str


@dataclass(frozen=True)
class Matrix:
    """A labelled matrix of values between 0 and 1 (cosines may lie below).

    Attributes:
        title: what the matrix shows, for a heading or a choice among several matrices.
        counts: number of benchmark rows behind each row of the matrix, if the values are shares of benchmark rows;
            else empty.
    """

    title: str
    rows: list[Label]
    columns: list[Label]
    values: list[list[float]]
    counts: list[int]


def retrieves(run: ScoredRun) -> bool:
    """Whether the run found adapters by retrieval: some answer's first adapter has a score."""
    return any(row.scores and row.scores[0] is not None for row in run.run.rows.values())


def retrieval_maps(runs: Sequence[ScoredRun], tasks: Sequence[Task]) -> list[Matrix]:
    """Task × adapter: the share of a task's rows for which the adapter came first. Runs that agree share one matrix."""
    maps: list[Matrix] = []
    names: list[list[str]] = []
    for run in filter(retrieves, runs):
        found = _shares(run, tasks, k=1)
        for known, agreeing in zip(maps, names, strict=True):
            if (known.columns, known.values, known.counts) == (found.columns, found.values, found.counts):
                agreeing.append(run.name)
                break
        else:
            maps.append(found)
            names.append([run.name])
    return [
        Matrix(", ".join(agreeing), known.rows, known.columns, known.values, known.counts)
        for known, agreeing in zip(maps, names, strict=True)
    ]


def adapter_similarity(index: AdapterIndex, tasks: Sequence[Task]) -> Matrix:
    """Cosine of the adapters' mean embeddings: the paper's figure 3."""
    labels = _labels(index.names, tasks)
    position_of = {name: position for position, name in enumerate(index.names)}
    positions = [position_of[label.name] for label in labels]
    values = index.similarity()[np.ix_(positions, positions)]
    return Matrix("Adapters: cosine of their mean embeddings.", labels, labels, _listed(values), [])


def task_similarity(runs: Sequence[ScoredRun], tasks: Sequence[Task]) -> Matrix | None:
    """The similarity of tasks: the cosine between the shares with which a run retrieved each adapter for two tasks.

    Needs no index.
    The shares come from the run that retrieved most adapters per row. None if no run retrieved any adapter.
    """
    candidates = [run for run in runs if retrieves(run)]
    if not candidates:
        return None
    widest = max(candidates, key=lambda run: max(len(row.adapters) for row in run.run.rows.values()))
    found = _shares(widest, tasks, k=None)
    values = np.array(found.values)  # [tasks, adapters]
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    title = (
        f"Tasks: cosine of the shares in which {widest.name} retrieved each adapter for them. Results hold no "
        "embeddings. With --index FOLDER this section shows how similar the adapters themselves are."
    )
    return Matrix(title, found.rows, found.rows, _listed(unit @ unit.T), [])


def _shares(run: ScoredRun, tasks: Sequence[Task], k: int | None) -> Matrix:
    """Task × adapter: the share of a task's rows whose first k adapters (None: all) hold the adapter."""
    present = [task for task in tasks if task.name in run.tasks]
    found = [(row.task, row.adapters[:k]) for row in run.run.rows.values()]
    columns = _labels(dict.fromkeys(name for _, adapters in found for name in adapters), tasks)
    row_of = {task.name: row for row, task in enumerate(present)}
    column_of = {label.name: column for column, label in enumerate(columns)}
    counts = np.zeros((len(present), len(columns)))
    for task, adapters in found:
        for name in adapters:
            counts[row_of[task], column_of[name]] += 1
    sizes = [len(run.tasks[task.name].ids) for task in present]
    labels = [Label(task.name, task.domain) for task in present]
    return Matrix(run.name, labels, columns, _listed(counts / np.array(sizes)[:, None]), sizes)


def _labels(adapters: Sequence[str] | dict[str, None], tasks: Sequence[Task]) -> list[Label]:
    """Adapters in the order of the tasks that have their names; adapters without such a task come last."""
    known = [Label(task.name, task.domain) for task in tasks if task.name in adapters]
    names = {label.name for label in known}
    return known + [Label(name, NO_DOMAIN) for name in adapters if name not in names]


def _listed(values: NDArray[np.floating]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]
