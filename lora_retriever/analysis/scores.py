"""From answers to metric scores: of tasks, of domains, and means over tasks. Every table and test starts from here.

The score of a domain is the mean of its tasks' scores. The mean over tasks is the mean of their main scores. The
paper's scoring rounds the score of a task to one decimal first; draws for intervals are never rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from lora_retriever.analysis.runs import AnsweredRow, Run
from lora_retriever.data.rows import METRICS
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.metrics import Metric, RowError, Scoring, main_score
from lora_retriever.metrics.base import Array
from lora_retriever.remembered import code_of, remembered
from lora_retriever.resampling import FEWEST_TASKS, Indices, over_tasks

PARSERS = ("data/plans.py", "data/triples.py")
"""The files, outside of `metrics`, that read answers for a metric."""
PACKAGES = ("nltk", "rouge", "rouge-score", "sacrebleu", "pycocoevalcap", "numpy")
"""The packages behind the metrics. Not all need to be installed."""


@dataclass(frozen=True)
class Quantity:
    """The meaning of a number in a table: the score of a task or a domain, or a mean over all tasks."""

    level: Literal["task", "domain", "mean", "normalized"]
    group: str = ""
    score: str = ""


MEAN = Quantity("mean")
NORMALIZED = Quantity("normalized")


@dataclass(frozen=True)
class ScoredTask:
    """One task of one run: the numbers that the task's rows add to the sums of each metric.

    Attributes:
        ids: the ids of the rows, in the order of the statistics.
        parts: each metric with its statistics [rows, statistics].
    """

    name: str
    domain: str
    metric: str
    ids: tuple[int, ...]
    parts: tuple[tuple[Metric, Array], ...]

    @cached_property
    def names(self) -> list[str]:
        """The names of the scores, the main score first."""
        return [name for metric, _ in self.parts for name in metric.scores]

    @property
    def main(self) -> int:
        """The index, among the task's scores, of the main score: the score that counts in means over tasks."""
        return self.names.index(main_score(self.metric) or self.names[0])

    @property
    def decisive(self) -> Iterator[bytes | str]:
        """Everything that decides the task's scores, and the values that are computed from the scores."""
        yield json.dumps([self.name, self.domain, self.metric, self.names])
        for _, statistics in self.parts:
            yield str(statistics.shape)
            yield statistics.tobytes()

    def scores_of(self, rows: Indices) -> Array:
        """The scores [names, draws] of drawn rows [draws, rows drawn], in percent."""
        return self._combined([statistics[rows].sum(axis=-2) for _, statistics in self.parts])

    def scores_swapped(self, other: ScoredTask, swapped: Array) -> tuple[Array, Array]:
        """The scores [names, draws] of this run's task and of the other run's, after swapping rows.

        Args:
            swapped: [draws, rows], 1 where the two runs exchange their answers to a row, else 0.
        """
        mine, theirs = [], []
        for (_, own), (_, others) in zip(self.parts, other.parts, strict=True):
            moved = swapped @ (others - own)  # [draws, statistics]
            mine.append(own.sum(axis=0) + moved)
            theirs.append(others.sum(axis=0) - moved)
        return self._combined(mine), other._combined(theirs)

    def _combined(self, sums: Sequence[Array]) -> Array:
        scores = [metric.combine(total) for (metric, _), total in zip(self.parts, sums, strict=True)]
        return np.moveaxis(np.concatenate(scores, axis=-1), -1, 0)

    def cut(self, ids: Sequence[int]) -> ScoredTask:
        """The task on some of its rows, in the order of `ids`."""
        place = {id: position for position, id in enumerate(self.ids)}
        rows = [place[id] for id in ids]
        parts = tuple((metric, statistics[rows]) for metric, statistics in self.parts)
        return ScoredTask(self.name, self.domain, self.metric, tuple(ids), parts)


@dataclass(frozen=True)
class ScoredRun:
    """One run, scored."""

    run: Run
    scoring: Scoring
    tasks: dict[str, ScoredTask]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def decisive(self) -> Iterator[bytes | str]:
        """Everything that decides the run's scores, and the values that are computed from the scores."""
        yield self.scoring.name
        for task in self.tasks.values():
            yield from task.decisive

    @cached_property
    def points(self) -> dict[str, Array]:
        """Each task's scores [names], rounded to one decimal under the paper's scoring."""
        whole = {name: task.scores_of(np.arange(len(task.ids))[None])[:, 0] for name, task in self.tasks.items()}
        return {name: scores.round(1) if self.scoring.name == "paper" else scores for name, scores in whole.items()}

    @cached_property
    def quantities(self) -> dict[Quantity, float]:
        """All scores of the run except the normalized score."""
        return {quantity: float(value) for quantity, value in gathered(self.tasks, self.points).items()}

    def main_scores(self) -> dict[str, float]:
        """The main score of each task: the score that counts in means over tasks."""
        return {name: float(self.points[name][task.main]) for name, task in self.tasks.items()}


def score_run(run: Run, scoring: Scoring) -> ScoredRun:
    """Score a run's answers.

    Raises:
        UserError: a row's metric is unknown or not allowed, or cannot score a row; the message names run, task and row.
    """
    grouped: dict[str, list[AnsweredRow]] = {}
    for row in run.rows.values():
        grouped.setdefault(row.task, []).append(row)
    metrics = {task: _metrics(run, rows[0], scoring) for task, rows in grouped.items()}

    def compute() -> list[Array]:
        return [_statistics(run, rows, metric) for task, rows in grouped.items() for metric in metrics[task]]

    if all(rows[0].metric in METRICS for rows in grouped.values()):
        statistics = iter(remembered(_decisive(grouped, scoring), compute))
    else:
        # not remembered, because a user's own metric may read files that are not known here
        statistics = iter(compute())
    return ScoredRun(
        run,
        scoring,
        {
            task: ScoredTask(
                task,
                rows[0].domain,
                rows[0].metric,
                tuple(row.id for row in rows),
                tuple((metric, next(statistics)) for metric in metrics[task]),
            )
            for task, rows in grouped.items()
        },
    )


def _metrics(run: Run, first: AnsweredRow, scoring: Scoring) -> list[Metric]:
    """The metrics of a task, named by the task's first row."""
    try:
        return scoring.metrics_of(first.task, first.metric)
    except UserError as error:
        raise UserError(f"{run.name}: task {quoted(first.task)} (row {first.id} is its first): {error}") from error


def _statistics(run: Run, rows: Sequence[AnsweredRow], metric: Metric) -> Array:
    """The statistics that each row of a task adds to the metric's sums, [rows, statistics]."""
    further = {"inputs": [row.inputs for row in rows]} if getattr(metric, "reads_inputs", False) else {}
    try:
        return metric.statistics([row.answer for row in rows], [row.targets for row in rows], **further)
    except RowError as error:
        raise UserError(f"{run.name}: task {rows[0].task!r}, row {rows[error.row].id}: {error}") from error
    except UserError as error:
        raise UserError(f"{run.name}: task {rows[0].task!r} (row {rows[0].id} is its first): {error}") from error


def _decisive(grouped: Mapping[str, Sequence[AnsweredRow]], scoring: Scoring) -> Iterator[str]:
    """Everything that decides the statistics of a run's rows under the project's own metrics."""
    yield code_of("metrics", *PARSERS, packages=PACKAGES)
    yield f"{scoring.name} {scoring.stemming}"
    for task, rows in grouped.items():
        yield from (task, rows[0].metric, scoring.kinds.get(task, ""))
        for row in rows:
            yield json.dumps([row.answer, row.targets, row.inputs])


def gathered(tasks: Mapping[str, ScoredTask], scores: Mapping[str, Array]) -> dict[Quantity, Array]:
    """All quantities [...] from the scores [names, ...] of every task: tasks, domains, mean over tasks."""
    found: dict[Quantity, Array] = {}
    domains: dict[Quantity, list[Array]] = {}
    for name, task in tasks.items():
        for score, value in zip(task.names, scores[name], strict=True):
            found[Quantity("task", name, score)] = value
            domains.setdefault(Quantity("domain", task.domain, score), []).append(value)
    found |= {quantity: np.mean(values, axis=0) for quantity, values in domains.items()}
    found[MEAN] = np.mean([scores[name][task.main] for name, task in tasks.items()], axis=0)
    return found


def parts_of(tasks: Mapping[str, ScoredTask], quantity: Quantity) -> list[tuple[ScoredTask, int]]:
    """The tasks whose scores a quantity averages, each with the index of the score among the task's scores."""
    concerned = [
        task
        for task in tasks.values()
        if quantity.group in ("", task.domain if quantity.level == "domain" else task.name)
        and quantity.score in ("", *task.names)
    ]
    return [(task, task.names.index(quantity.score) if quantity.score else task.main) for task in concerned]


LEAST = 0.05
"""A score below this, in percent, is printed as 0.0 with the paper's one decimal."""


def normalized(
    tasks: Mapping[str, ScoredTask], scores: Mapping[str, Array], oracle: Mapping[str, Array]
) -> Array | None:
    """Mean over tasks of score / oracle's score × 100 (LoRAuter, arXiv 2601.21795), [...].

    A task on which the oracle scores less than `LEAST` has no such ratio and is left out: BLEU without smoothing is
    1e-78 where no phrase is right, and a ratio to 1e-78 cannot be averaged. None: no task is left.
    """
    shared = [(scores[name][task.main], oracle[name][task.main]) for name, task in tasks.items() if name in oracle]
    if not shared:
        return None
    ours, best = (np.array(side) for side in zip(*shared, strict=True))  # [tasks, ...]
    counts = best >= LEAST
    if not counts.any(axis=0).all():
        return None
    return np.asarray(np.where(counts, 100 * ours / np.where(counts, best, 1), 0).sum(axis=0) / counts.sum(axis=0))


def interval_over_tasks(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean of one value per task, if the tasks were a sample. None for fewer than five tasks."""
    if len(values) < FEWEST_TASKS:
        return None
    (bounds,) = remembered([interval_code(), "over tasks", np.array(values).tobytes()], lambda: [over_tasks(values)])
    low, high = bounds.tolist()
    return low, high


def interval_code() -> str:
    """A text that changes with the code that decides intervals and p-values, beside the rows' statistics."""
    return code_of("resampling.py", "metrics", *PARSERS, "analysis", packages=("numpy", "scipy"))
