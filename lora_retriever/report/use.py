"""The adapters that each run used, and how often its answers were right after right and after wrong retrieval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_retriever.analysis.runs import AnsweredRow
from lora_retriever.analysis.scores import ScoredRun
from lora_retriever.data.rows import OPTION_METRICS
from lora_retriever.report.rows import Task, row_scores
from lora_retriever.resampling import wilson_interval

MOST_USED = 5
EXACT = ("em", *OPTION_METRICS)
"""The metrics under which an answer is right or wrong."""

NOTHING = "no adapter"
UNKNOWN = "not recorded"
OWN_FIRST = "own adapter first"
OWN_AMONG = "own adapter not first"
SAME_DOMAIN = "own absent, its domain first"
OTHER_DOMAIN = "own absent, other domain first"
SITUATIONS = (OWN_FIRST, OWN_AMONG, SAME_DOMAIN, OTHER_DOMAIN, NOTHING, UNKNOWN)


@dataclass(frozen=True)
class Situation:
    """The rows for which retrieval had the same outcome.

    Attributes:
        exact: number of rows of exact-match tasks. `right` is the percentage of right answers among them, `low` and
            `high` its 95 % interval.
        others: number of rows of other tasks. `score` is the mean of their metric scores.
    """

    name: str
    exact: int
    right: float | None
    low: float | None
    high: float | None
    others: int
    score: float | None


@dataclass(frozen=True)
class Use:
    """How one run used the pool. `situations` has all of `SITUATIONS`.

    Shares are percentages of the rows whose adapters are recorded. If no row's adapters are recorded, every figure
    before `situations` is None, which stands for unknown.
    """

    run: str
    adapters_per_row: float | None
    distinct: int | None
    most_used: list[tuple[str, float]] | None
    own_first: float | None
    own_used: float | None
    domain_first: float | None
    situations: list[Situation]


def use_of(run: ScoredRun, tasks: Sequence[Task]) -> Use:
    """Count the adapters that a run used."""
    domains = {task.name: task.domain for task in tasks}
    rows, scores = list(run.run.rows.values()), row_scores(run)
    found: dict[str, list[AnsweredRow]] = {}
    for row in rows:
        found.setdefault(situation_of(row, domains), []).append(row)
    situations = [_situation(name, found.get(name, ()), scores) for name in SITUATIONS]
    known = [row for row in rows if row.names_adapters]
    if not known:
        return Use(run.name, None, None, None, None, None, None, situations)
    used = Counter(name for row in known for name in row.adapters)
    return Use(
        run=run.name,
        adapters_per_row=sum(len(row.adapters) for row in known) / len(known),
        distinct=len(used),
        most_used=[(name, 100 * count / len(known)) for name, count in used.most_common(MOST_USED)],
        own_first=100 * len(found.get(OWN_FIRST, ())) / len(known),
        own_used=100 * sum(row.task in row.adapters for row in known) / len(known),
        domain_first=100
        * sum(domains.get(name) == row.domain for row in known for name in row.adapters[:1])
        / len(known),
        situations=situations,
    )


def situation_of(row: AnsweredRow, domains: Mapping[str, str]) -> str:
    """The outcome of retrieval for a row. `domains` maps a task's name, which is its adapter's name, to its domain."""
    if not row.adapters:
        return NOTHING if row.names_adapters else UNKNOWN
    if row.task in row.adapters:
        return OWN_FIRST if row.adapters[0] == row.task else OWN_AMONG
    return SAME_DOMAIN if domains.get(row.adapters[0]) == row.domain else OTHER_DOMAIN


def _situation(name: str, rows: Sequence[AnsweredRow], scores: Mapping[int, float]) -> Situation:
    exact = [scores[row.id] for row in rows if row.metric in EXACT]
    others = [scores[row.id] for row in rows if row.metric not in EXACT]
    right = low = high = None
    if exact:
        hits = sum(score == 100 for score in exact)
        right = 100 * hits / len(exact)
        low, high = wilson_interval(hits, len(exact))
    return Situation(name, len(exact), right, low, high, len(others), float(np.mean(others)) if others else None)
