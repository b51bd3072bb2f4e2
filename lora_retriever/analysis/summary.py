"""The summary of a results folder: every run's scores with intervals, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lora_retriever.analysis.origins import origin_lines
from lora_retriever.analysis.runs import ORACLE, Run, id_ranges, missing_rows
from lora_retriever.analysis.scores import (
    LEAST,
    MEAN,
    NORMALIZED,
    Quantity,
    ScoredRun,
    gathered,
    interval_code,
    interval_over_tasks,
    normalized,
    parts_of,
    score_run,
)
from lora_retriever.data.rows import METRICS
from lora_retriever.metrics import Reference, Scoring
from lora_retriever.remembered import remembered
from lora_retriever.resampling import Array, Indices, bootstrap, widened
from lora_retriever.tables import Cell, Table

Interval = tuple[float, float]


@dataclass(frozen=True)
class RunSummary:
    """One run with its scores, and the oracle's scores, which normalize the run's scores. None: there is no oracle."""

    scored: ScoredRun
    oracle: ScoredRun | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.scored.name

    @property
    def rows(self) -> int:
        """The number of answered rows."""
        return len(self.scored.run.rows)

    @property
    def empty(self) -> int:
        """The number of answers that are empty or only dots. Such an answer scores 0, except against a blank target."""
        return sum(row.is_empty for row in self.scored.run.rows.values())

    @cached_property
    def values(self) -> dict[Quantity, float]:
        """Every quantity of the run. `NORMALIZED` is there only if there is an oracle."""
        values = dict(self.scored.quantities)
        if self.oracle is not None:
            share = normalized(self.scored.tasks, self.scored.points, self.oracle.points)
            if share is not None:
                values[NORMALIZED] = float(share)
        return values

    @property
    def tasks_not_normalized(self) -> list[str]:
        """The tasks that the normalized score leaves out: the oracle has no answers for them, or scores 0."""
        best = {} if self.oracle is None else self.oracle.main_scores()
        return [name for name in self.scored.tasks if best.get(name, 0) < LEAST]

    @cached_property
    def intervals(self) -> dict[Quantity, Interval]:
        """The 95 % bootstrap interval of every quantity. Rows are drawn within their tasks.

        A task whose rows all score 0, or all 100, does not vary when its rows are drawn; the possible error of such
        tasks is added to the interval (`widened`). A quantity with a task of a single row has no interval. The
        normalized score has an interval only if the oracle answered the same rows.
        """
        oracle = self.oracle if NORMALIZED in self.values and self._oracle_has_the_same_rows() else None
        names = [*self.scored.quantities, *([NORMALIZED] if oracle else [])]
        decisive: list[bytes | str] = [interval_code(), *self.scored.decisive]
        if oracle is not None:
            decisive += ["oracle", *oracle.decisive]
        (bounds,) = remembered(decisive, lambda: [self._bounds(names, oracle)])  # [quantities, 2], NaN: no interval
        return {
            quantity: (low, high)
            for quantity, (low, high) in zip(names, bounds.tolist(), strict=True)
            if not np.isnan(low)
        }

    @cached_property
    def interval_over_tasks(self) -> Interval | None:
        """The 95 % interval of the mean if the tasks were a sample, too. None for fewer than five tasks."""
        return interval_over_tasks(list(self.scored.main_scores().values()))

    def _bounds(self, names: Sequence[Quantity], oracle: ScoredRun | None) -> Array:
        """The ends of the intervals of the quantities `names`, [quantities, 2]; NaN where there is no interval."""
        tasks = self.scored.tasks

        def statistic(drawn: Sequence[Indices]) -> Array:
            scores = {name: task.scores_of(rows) for (name, task), rows in zip(tasks.items(), drawn, strict=True)}
            values = list(gathered(tasks, scores).values())
            if oracle is not None:
                best = {name: oracle.tasks[name].scores_of(rows) for name, rows in zip(tasks, drawn, strict=True)}
                share = normalized(tasks, scores, best)
                values.append(np.full(len(drawn[0]), np.nan) if share is None else share)
            return np.stack(values)

        bounds = bootstrap([len(task.ids) for task in tasks.values()], statistic)  # [quantities, 2]
        for index, quantity in enumerate(names):
            parts = parts_of(tasks, quantity)
            if min(len(task.ids) for task, _ in parts) < 2:
                bounds[index] = np.nan
            elif quantity != NORMALIZED and not np.isnan(bounds[index, 0]):
                points = self.scored.points
                ends = [(len(t.ids), round(points[t.name][at], 2)) for t, at in parts if t.metric in METRICS]
                wrong, right = ([rows for rows, score in ends if score == end] for end in (0, 100))
                low, high = bounds[index].tolist()
                bounds[index] = widened(self.values[quantity], (low, high), wrong, right, len(parts))
        return bounds

    def _oracle_has_the_same_rows(self) -> bool:
        assert self.oracle is not None
        theirs = self.oracle.tasks
        return all(name in theirs and task.ids == theirs[name].ids for name, task in self.scored.tasks.items())


def summarize(runs: Sequence[Run], scoring: Scoring) -> list[RunSummary]:
    """Score runs.

    Raises:
        UserError: a row's metric is unknown.
    """
    scored = [score_run(run, scoring) for run in runs]
    oracle = next((run for run in scored if run.name == ORACLE), None)
    return [RunSummary(run, oracle) for run in scored]


def to_json(runs: Sequence[RunSummary], scoring: Scoring, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The summary as JSON. Intervals are written beside the scores, under their own keys."""
    return {
        "scoring": scoring.name,
        "scoring_details": scoring.details,
        "scoring_notes": _scoring_notes(runs, scoring),
        "runs": {run.name: _run_as_json(run) for run in runs},
        "left_out": list(left_out),
        "missing_rows": missing_rows([run.scored.run for run in runs]),
    }


def to_table(
    runs: Sequence[RunSummary], by_task: bool = False, intervals: bool = True, left_out: Sequence[str] = ()
) -> Table:
    """A row for each domain and score, as in the paper's table 1, or for each task and score; means at the end."""
    level = "task" if by_task else "domain"
    quantities = [
        quantity
        for quantity in dict.fromkeys(quantity for run in runs for quantity in run.values)
        if quantity.level == level
    ]
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (f"{quantity.group} {quantity.score}", [_cell(run, quantity, intervals) for run in runs])
        for quantity in quantities
    ]
    means = len(rows)
    rows.append(("mean over tasks", [_cell(run, MEAN, intervals) for run in runs]))
    rows.append(("normalized", [_cell(run, NORMALIZED, intervals) for run in runs]))
    return Table([run.name for run in runs], rows, [*left_out, *notes(runs, intervals)], rules=frozenset({means}))


def to_run_table(runs: Sequence[RunSummary], intervals: bool = True, left_out: Sequence[str] = ()) -> Table:
    """A row for each run, when runs are too many for columns: means with intervals, and the domains' main scores."""
    main: dict[str, Quantity] = {}  # the first score of each domain, for example rouge-1
    for quantity in dict.fromkeys(quantity for run in runs for quantity in run.values):
        if quantity.level == "domain":
            main.setdefault(quantity.group, quantity)
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            run.name,
            [
                *(_cell(run, quantity, intervals) for quantity in (MEAN, NORMALIZED)),
                *(_cell(run, quantity, intervals=False) for quantity in main.values()),
                str(run.empty),
            ],
        )
        for run in runs
    ]
    domains = [f"{quantity.group} {quantity.score}" for quantity in main.values()]
    columns = ["mean over tasks", "normalized", *domains, "empty answers"]
    return Table(columns, rows, [*left_out, *notes(runs, intervals, by_run=True)])


def beside(tables: Sequence[Table], names: Sequence[str]) -> Table:
    """Several tables of the same runs as one table. Columns of the same name stand side by side.

    A table without groups may lack columns that another table has.
    """
    ordered, last = labels_of(tables[::-1])
    heads = list(dict.fromkeys(head for table in tables for head in _heads(table)))
    cells = [{label: dict(zip(_heads(table), cells, strict=True)) for label, cells in table.rows} for table in tables]
    columns = [f"{column} {name}" for _, column in heads for name in names]
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (label, [by_label.get(label, {}).get(head) for head in heads for by_label in cells]) for label in ordered
    ]
    shared = list(dict.fromkeys(note for table in tables for note in table.notes))
    groups = tuple((name, width * len(names)) for name, width in tables[0].groups)
    rules = frozenset({len(rows) - last})
    return replace(tables[0], columns=columns, rows=rows, notes=shared, rules=rules, groups=groups)


def _heads(table: Table) -> list[tuple[str, str]]:
    """The name of each column's group (empty: no group) with the name of the column."""
    over = [name for name, width in table.groups for _ in range(width)] or [""] * len(table.columns)
    return list(zip(over, table.columns, strict=True))


def labels_of(tables: Sequence[Table]) -> tuple[list[str], int]:
    """The labels of the rows of several tables, each once, the means last; and the number of labels of means."""
    labels = dict.fromkeys(label for table in tables for label, _ in table.rows)
    last = [label for label in ("mean over tasks", "normalized") if label in labels]
    return [*(label for label in labels if label not in last), *last], len(last)


def notes(runs: Sequence[RunSummary], intervals: bool, by_run: bool = False) -> list[str]:
    """The notes under a table.

    The notes say whose answers these are, the profile's note, the meaning of ±, which rows are missing or empty, and
    which runs use one adapter in effect.

    Args:
        by_run: leaves out notes that need a line for each run.
    """
    lines = origin_lines({run.name: run.scored.run.origin for run in runs})
    lines += dict.fromkeys(run.scored.run.note for run in runs if run.scored.run.note)
    if intervals:
        lines.append("± half of the 95 % bootstrap interval, rows drawn within their tasks.")
        wider = [
            f"{run.name} ±{(high - low) / 2:.1f}"
            for run in runs
            if (span := run.interval_over_tasks)
            for low, high in [span]
        ]
        if wider and not by_run:
            scoring = runs[0].scored.scoring.name
            lines.append(f"Mean over tasks if the tasks are a sample, too ({scoring} scoring): {', '.join(wider)}.")
    single = sorted({name for run in runs for name, task in run.scored.tasks.items() if len(task.ids) == 1})
    if intervals and single:
        lines.append(f"No interval where a task has a single row: {', '.join(single)}.")
    lines += _missing_lines([run.scored.run for run in runs])
    if not by_run:
        lines += _by_runs((run.name, f"{run.empty} answers are empty or dots only.") for run in runs if run.empty)
    lines += [f"{note}." for run in runs if (note := run.scored.run.single_note)]
    lines += _by_runs(
        (run.name, f"normalized without {', '.join(lost)}, which {ORACLE} lacks or scores 0 on.")
        for run in runs
        if NORMALIZED in run.values and (lost := run.tasks_not_normalized)
    )
    lines += _scoring_notes(runs, runs[0].scored.scoring)
    if runs[0].scored.scoring.name == "standard":
        lines += [f"{score}: {how}." for score, how in runs[0].scored.scoring.details.items()]
    return lines


def _missing_lines(runs: Sequence[Run]) -> list[str]:
    """A line for the runs that lack the same rows of other runs, without rows that a note of the folder names."""
    noted = {run.name: run.noted_as_missing for run in runs}
    lacking: dict[tuple[int, ...], list[str]] = {}
    for name, ids in missing_rows(runs).items():
        if new := tuple(id for id in ids if id not in noted[name]):
            lacking.setdefault(new, []).append(name)
    return [
        f"{', '.join(names)} lack{'s' if len(names) == 1 else ''} {len(ids)} rows that other runs have: "
        f"{id_ranges(ids)}."
        for ids, names in lacking.items()
    ]


def _by_runs(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Notes on runs as lines; runs with the same note share a line."""
    runs: dict[str, list[str]] = {}
    for name, note in notes:
        runs.setdefault(note, []).append(name)
    return [f"{', '.join(names)}: {note}" for note, names in runs.items()]


def _scoring_notes(runs: Sequence[RunSummary], scoring: Scoring) -> list[str]:
    """The scoring's notes on the tasks' targets, over all runs."""
    rows = {id: row for run in runs for id, row in run.scored.run.rows.items()}
    targets: dict[str, list[Reference]] = {}
    metrics: dict[str, str] = {}
    for row in rows.values():
        targets.setdefault(row.task, []).append(row.targets)
        metrics[row.task] = row.metric
    return scoring.notes({task: (metrics[task], wanted) for task, wanted in targets.items()})


def _cell(run: RunSummary, quantity: Quantity, intervals: bool) -> Cell | None:
    if quantity not in run.values:
        return None
    low, high = run.intervals.get(quantity, (None, None)) if intervals else (None, None)
    return Cell(run.values[quantity], low, high)


def _run_as_json(run: RunSummary) -> dict[str, Any]:
    tasks = {name: {"domain": task.domain, "n": len(task.ids)} for name, task in run.scored.tasks.items()}
    domains: dict[str, dict[str, float]] = {}
    intervals: dict[str, Any] = {"tasks": {}, "domains": {}, "mean": None, "normalized": None}
    for quantity, value in run.values.items():
        interval = _rounded(run.intervals.get(quantity))
        if quantity.level == "task":
            tasks[quantity.group][quantity.score] = round(value, 4)
            intervals["tasks"].setdefault(quantity.group, {})[quantity.score] = interval
        elif quantity.level == "domain":
            domains.setdefault(quantity.group, {})[quantity.score] = round(value, 4)
            intervals["domains"].setdefault(quantity.group, {})[quantity.score] = interval
        else:
            intervals[quantity.level] = interval
    origin = run.scored.run.origin
    return {
        "rows": run.rows,
        **({"origin": origin.fields} if origin else {}),
        "empty_answers": run.empty,
        "tasks": tasks,
        "domains": domains,
        "mean": round(run.values[MEAN], 4),
        "normalized": round(run.values[NORMALIZED], 4) if NORMALIZED in run.values else None,
        "intervals": {**intervals, "mean_over_tasks": _rounded(run.interval_over_tasks)},
    }


def _rounded(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(bound, 2) for bound in interval]
