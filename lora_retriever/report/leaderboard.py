"""The leaderboard: one line for each run, with what the run does, its means, its cost and how often retrieval hit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_retriever.analysis.groups import ScoredGroups
from lora_retriever.analysis.runs import Run
from lora_retriever.analysis.scores import MEAN, NORMALIZED
from lora_retriever.analysis.summary import Interval, RunSummary
from lora_retriever.methods import registered
from lora_retriever.methods.base import OOD
from lora_retriever.report.use import Use


@dataclass(frozen=True)
class Standing:
    """One run on the leaderboard. None: not known, or the run has no such number.

    Attributes:
        does: a description of the run, in a line.
        mean: the mean over tasks, with its interval.
        groups: for each value by which the rows are split, the mean over tasks of the value's rows, with its interval.
            None: the run has no row of some value.
        exact: the mean of the tasks whose metric is `em`.
        seconds: seconds for each row that was answered and not taken over from another run.
        first: percentage of rows whose own adapter came first. None, also, for a run that uses no adapter.
        used: percentage of rows whose own adapter was used. None, also, for a run that uses no adapter.
    """

    run: str
    does: str
    mean: float
    interval: Interval | None
    groups: list[tuple[float, Interval | None] | None]
    exact: float | None
    normalized: float | None
    normalized_interval: Interval | None
    seconds: float | None
    first: float | None
    used: float | None


def standing_of(run: RunSummary, use: Use, groups: ScoredGroups | None = None) -> Standing:
    """The line of one run. `use` is the run's use of adapters, `groups` the scores of each group of rows."""
    scores = run.scored.main_scores()
    exact = [score for task, score in scores.items() if run.scored.tasks[task].metric == "em"]
    return Standing(
        run=run.name,
        does=what_it_does(run.scored.run),
        mean=run.values[MEAN],
        interval=run.intervals.get(MEAN),
        groups=[_mean_of(of_value.get(run.name)) for of_value in (groups.by_value if groups else {}).values()],
        exact=float(np.mean(exact)) if exact else None,
        normalized=run.values.get(NORMALIZED),
        normalized_interval=run.intervals.get(NORMALIZED),
        seconds=seconds_a_row(run.scored.run.meta.get("timings", {})),
        first=use.own_first if use.adapters_per_row else None,
        used=use.own_used if use.adapters_per_row else None,
    )


def _mean_of(run: RunSummary | None) -> tuple[float, Interval | None] | None:
    """The mean over tasks of a run on some rows, with its interval."""
    return None if run is None else (run.values[MEAN], run.intervals.get(MEAN))


def what_it_does(run: Run) -> str:
    """A description of a run in one line: the summary of its method, whether own adapters are masked, and the settings
    that a sweep varied."""
    recorded = run.meta.get("configuration", {}).get("method")
    name = recorded.get("name") if isinstance(recorded, dict) else None
    method = registered().get(str(name or run.method))
    if method is None:
        parts = ["a method that the project does not know"]
    else:
        parts = [method.summary]
        if method.name.endswith(OOD):
            parts.append("the row's own adapter is masked")
    return "; ".join([*parts, *(f"{setting} = {value}" for setting, value in run.settings.items())])


def seconds_a_row(timings: Mapping[str, Any]) -> float | None:
    """The seconds for each row, from the timings of a record. None: nothing was answered in the last start."""
    rows, reused, seconds = (timings.get(name) for name in ("rows", "reused", "seconds"))
    if not isinstance(rows, int) or not isinstance(reused, int) or not isinstance(seconds, int | float):
        return None
    return seconds / (rows - reused) if rows > reused else None
