"""Our scores beside the paper's: both figures, the difference, and a verdict by our interval.

There are three verdicts. `differs`: the paper's figure lies outside our 95 % interval. `agrees`: our whole interval
lies within a tolerance of the paper's figure (an equivalence test). `cannot tell`: neither is true, because our
interval holds the paper's figure and also figures far from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lora_retriever.analysis.origins import FILE
from lora_retriever.analysis.published import MEAN_EM, Published, PublishedFigure, normalized_scores, source
from lora_retriever.analysis.scores import MEAN, NORMALIZED, Quantity
from lora_retriever.analysis.summary import Interval, RunSummary, notes
from lora_retriever.errors import UserError
from lora_retriever.tables import Cell, Table

Verdict = Literal["differs", "agrees", "cannot tell"]
MARKS: dict[Verdict, str] = {"differs": "≠", "agrees": "≈", "cannot tell": "?"}
DERIVED = "†"

TOLERANCE = 2.0
"""Maximum difference of scores that agree, in points; or `TOLERANCE_SHARE` of the paper's figure if that is less."""
TOLERANCE_SHARE = 0.1
ROUNDING = 0.05
"""The paper prints one decimal, so a measured value lies within this distance of the printed figure, in points."""

MEANS = {MEAN_EM: "mean over EM tasks", MEAN: "mean over tasks", NORMALIZED: "normalized"}


@dataclass(frozen=True)
class ReproducedFigure:
    """A figure of the paper beside our score and our 95 % interval.

    Attributes:
        ours, interval: None if our run has no such score or interval.
        comparable: whether both figures are scores of the same tasks. If not, no difference is computed.
    """

    paper: PublishedFigure
    ours: float | None
    interval: Interval | None
    comparable: bool

    @property
    def difference(self) -> float | None:
        """Our score minus the paper's figure, in points."""
        return self.ours - self.paper.value if self.comparable and self.ours is not None else None

    @property
    def difference_interval(self) -> Interval | None:
        """Our interval minus the paper's figure, in points."""
        if self.difference is None or self.interval is None:
            return None
        low, high = self.interval
        return low - self.paper.value, high - self.paper.value

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the difference. None: there is no difference."""
        if self.difference is None:
            return None
        low, high = self.difference_interval or (0.0, 0.0)
        if high - low < ROUNDING:  # no interval, or nothing varied (a single row): no evidence for any verdict
            return "cannot tell"
        if low > ROUNDING or high < -ROUNDING:
            return "differs"
        tolerance = min(TOLERANCE, TOLERANCE_SHARE * self.paper.value)
        return "agrees" if -tolerance <= low and high <= tolerance else "cannot tell"


@dataclass(frozen=True)
class ReproducedRun:
    """One of our runs with all figures of the paper's run of the same name: domains, tasks, means.

    Attributes:
        foreign: our tasks that the paper does not have under the same name, domain and metric.
        paper_rows: the number of rows that our other tasks have in the paper.
    """

    run: RunSummary
    figures: dict[Quantity, ReproducedFigure]
    foreign: tuple[str, ...]
    paper_rows: int

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def profile(self) -> str | None:
        """The profile that the run's record names; None where there is no record."""
        return self.run.scored.run.meta.get("profile")


@dataclass(frozen=True)
class Reproduction:
    """Our runs beside the paper's, in the paper's order. `others` are our runs that the paper does not have."""

    paper: Published
    runs: tuple[ReproducedRun, ...]
    others: tuple[str, ...]


def reproduce(runs: Sequence[RunSummary], paper: Published) -> Reproduction:
    """Our runs, in paper scoring, beside the paper's figures.

    Raises:
        UserError: the paper has none of the runs.
    """
    ours = {run.name: run for run in runs}
    found = tuple(_reproduced(ours[name], paper) for name in paper.printed if name in ours)
    if not found:
        raise UserError(f"none of these runs ({', '.join(ours)}) is in the paper, which has {', '.join(paper.printed)}")
    return Reproduction(paper, found, tuple(name for name in ours if name not in paper.printed))


def reproduction_table(
    reproduction: Reproduction, by_task: bool = False, intervals: bool = True, left_out: Sequence[str] = ()
) -> Table:
    """The paper's table 1, or tables 4 and 5 by task. Each run has three columns: ours, paper, difference."""
    level = "task" if by_task else "domain"
    printed = printed_quantities(reproduction.paper, level)
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            MEANS.get(quantity, f"{quantity.group} {quantity.score}"),
            [cell for run in reproduction.runs for cell in _cells(run.figures.get(quantity), intervals)],
        )
        for quantity in [*printed, *MEANS]
    ]
    return Table(
        ["ours", "paper", "difference"] * len(reproduction.runs),
        rows,
        [*left_out, *_notes(reproduction, level, intervals)],
        rules=frozenset({len(printed)}),
        groups=tuple((run.name, 3) for run in reproduction.runs),
    )


def reproduction_as_json(reproduction: Reproduction, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The reproduction as JSON: by domain and by task, with the notes of the table by domain."""
    model = reproduction.paper.model
    return {
        "scoring": "paper",
        "paper": model,
        "sources": [source("table1.csv"), source("tables4_5.csv")],
        "tolerance": {"points": TOLERANCE, "share": TOLERANCE_SHARE},
        "runs": {
            run.name: {
                "rows": run.run.rows,
                "paper_rows": run.paper_rows,
                "profile": run.profile,
                **({"origin": origin.fields} if (origin := run.run.scored.run.origin) else {}),
                "figures": [_figure_as_json(quantity, figure) for quantity, figure in run.figures.items()],
            }
            for run in reproduction.runs
        },
        "others": list(reproduction.others),
        "normalized": {
            "source": source("normalized.csv"),
            "methods": {row.method: {"iid": row.iid, "ood": row.ood} for row in normalized_scores(model)},
        },
        "notes": [*left_out, *_notes(reproduction, "domain", intervals=True)],
    }


def _reproduced(run: RunSummary, paper: Published) -> ReproducedRun:
    tasks = run.scored.tasks
    known = {task.name: (task.domain, task.metric) for task in paper.tasks.values()}
    foreign = tuple(name for name, task in tasks.items() if known.get(name) != (task.domain, task.metric))
    shared = [name for name in tasks if name not in foreign]
    on_ours, whole = paper.figures(run.name, shared), paper.figures(run.name, paper.tasks)
    spoilt = {Quantity("domain", tasks[name].domain, score) for name in foreign for score in tasks[name].names}
    if foreign:
        spoilt |= set(MEANS)
    values, intervals = dict(run.values), dict(run.intervals)
    exact = {name: task for name, task in tasks.items() if task.metric == "em"}
    if exact:
        of_exact = RunSummary(replace(run.scored, tasks=exact), None)
        values[MEAN_EM], intervals[MEAN_EM] = of_exact.values[MEAN], of_exact.intervals[MEAN]
    figures = {}
    for quantity, figure in whole.items():
        comparable = quantity in on_ours and quantity not in spoilt
        paper_figure = on_ours[quantity] if comparable else figure
        figures[quantity] = ReproducedFigure(paper_figure, values.get(quantity), intervals.get(quantity), comparable)
    return ReproducedRun(run, figures, foreign, sum(paper.tasks[name].rows for name in shared))


def _notes(reproduction: Reproduction, level: str, intervals: bool) -> list[str]:
    difference = "difference: ours − the paper's, [our 95 % interval, seen from the paper's figure]."
    return notes_on(reproduction, level, intervals, explanations_of(reproduction.paper, level, difference))


def _cells(figure: ReproducedFigure | None, intervals: bool) -> list[Cell | str | None]:
    """Ours, the paper's, the difference."""
    if figure is None:
        return [None, None, None]
    ours, difference = None, None
    if figure.ours is not None:
        low, high = (figure.interval if intervals else None) or (None, None)
        ours = Cell(figure.ours, low, high)
    if figure.difference is not None and figure.verdict is not None:
        low, high = (figure.difference_interval if intervals else None) or (None, None)
        difference = Cell(figure.difference, low, high, f" {MARKS[figure.verdict]}", difference=True)
    return [ours, Cell(figure.paper.value, mark=DERIVED if figure.paper.derived else ""), difference]


def printed_quantities(paper: Published, level: str) -> list[Quantity]:
    """The lines of the paper's tables: domains, or tasks."""
    return [quantity for quantity in next(iter(paper.printed.values())) if quantity.level == level]


def notes_on(reproduction: Reproduction, level: str, intervals: bool, explanations: Sequence[str]) -> list[str]:
    """The notes: reservations against the comparison, the explanations of the table, then the counts of verdicts."""
    runs, paper = reproduction.runs, reproduction.paper
    lines = [*_reservations(runs, paper), *notes([run.run for run in runs], intervals), *explanations]
    lines += [line for run in runs if (line := _verdicts(run, level))]
    if reproduction.others:
        lines.append(f"Not in the paper, so not here: {', '.join(reproduction.others)}.")
    if absent := [name for name in paper.printed if name not in {run.name for run in runs}]:
        lines.append(f"In the paper, but not among these runs: {', '.join(absent)}.")
    return [*lines, *_normalized(runs, paper.model)]


def explanations_of(paper: Published, level: str, difference: str, our: str = "our") -> list[str]:
    """How to read the table.

    Args:
        difference: how the table shows a difference from the paper's figure.
        our: whose score and interval the table shows.
    """
    where = source("table1.csv" if level == "domain" else "tables4_5.csv")
    return [
        f"paper: {paper.model} in {where}; {DERIVED} derived from its tables 4 and 5, printed nowhere. {difference}",
        f"{MARKS['differs']} differs: the paper's figure lies outside {our} interval. {MARKS['agrees']} agrees: {our} "
        f"interval lies wholly within {TOLERANCE:.0f} points of it, or {100 * TOLERANCE_SHARE:.0f} % of it where that "
        f"is less. {MARKS['cannot tell']} neither: the interval is too wide to tell, which is no agreement.",
        f"The interval is of {our} score alone: the answers behind the paper's figures are not known, so nothing can "
        "be paired. At 95 %, about one figure in twenty differs by chance.",
    ]


def _reservations(runs: Sequence[ReproducedRun], paper: Published) -> list[str]:
    """The reservations against the comparison, each once, with the runs that it concerns."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for text in _reservations_of(run, paper):
            found.setdefault(text, []).append(run.name)
    return [f"{', '.join(names)}: {text}" for text, names in found.items()]


def _reservations_of(run: ReproducedRun, paper: Published) -> Iterator[str]:
    """The reservations against one run: another model, other tasks, other rows."""
    origin = run.run.scored.run.origin
    if run.profile is None and origin is not None:
        yield (
            f"{FILE} says that {origin.model} answered; a reproduction only if this is the paper's {paper.model}."
            if origin.model
            else f"{FILE} does not say which model answered; a reproduction only if {paper.model}'s did."
        )
    elif run.profile is None:
        yield f"no record (NAME.meta.json) says which models answered; a reproduction only if {paper.model}'s did."
    elif run.profile != paper.model:
        yield (
            f"from the profile {run.profile}, not {paper.model}. Of other models, the differences say nothing about a "
            "reproduction."
        )
    tasks = run.run.scored.tasks
    if run.foreign:
        yield (
            f"{len(run.foreign)} of the tasks not the paper's: {_few(run.foreign)}. Where they count, the paper's "
            "figure is of its own tasks, and there is no difference to form."
        )
    shared = tasks.keys() - set(run.foreign)
    rows = sum(len(tasks[name].ids) for name in shared)
    if shared and (len(shared) < len(paper.tasks) or rows != run.paper_rows):
        yield (
            f"{len(shared)} of the paper's {len(paper.tasks)} tasks, and {rows:,} of their {run.paper_rows:,} rows. "
            "The paper's figures are of these tasks, over all their rows."
        )


def _verdicts(run: ReproducedRun, level: str) -> str:
    judged = [figure.verdict for quantity, figure in run.figures.items() if quantity.level == level and figure.verdict]
    counts = ", ".join(f"{judged.count(verdict)} {mark}" for verdict, mark in MARKS.items())
    return f"{run.name}: of {len(judged)} figures {counts}." if judged else ""


def _normalized(runs: Sequence[ReproducedRun], model: str) -> list[str]:
    """Normalized scores that LoRAuter's paper published later, beside our normalized scores."""
    published = normalized_scores(model)
    if not published:
        return []
    scores = {run.name: run.run for run in runs if NORMALIZED in run.figures and NORMALIZED in run.run.values}
    ours = [
        f"{name} {_normalized_score(scores.get(name))} / {_normalized_score(scores.get(f'{name}_ood'))}"
        for name in ("selection", "fusion", "mixture")
        if name in scores or f"{name}_ood" in scores
    ]
    theirs = ", ".join(f"{row.method} {row.iid} / {row.ood}" for row in published)
    return [
        f"Normalized scores, in-domain / masked. Ours: {', '.join(ours) or 'none, there is no run best_selection'}.",
        f"Published in {source('normalized.csv')}, which ran all these methods itself: {theirs}.",
    ]


def _normalized_score(run: RunSummary | None) -> str:
    if run is None:
        return "–"
    low, high = run.intervals.get(NORMALIZED, (None, None))
    text = f"{run.values[NORMALIZED]:.1f}"
    return text if low is None or high is None else f"{text} ±{(high - low) / 2:.1f}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _figure_as_json(quantity: Quantity, figure: ReproducedFigure) -> dict[str, Any]:
    return {
        "level": quantity.level,
        "group": quantity.group,
        "score": quantity.score,
        "ours": _rounded(figure.ours),
        "interval": _rounded_pair(figure.interval),
        "paper": _rounded(figure.paper.value),
        "derived": figure.paper.derived,
        "difference": _rounded(figure.difference),
        "difference_interval": _rounded_pair(figure.difference_interval),
        "verdict": figure.verdict,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rounded_pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(bound, 2) for bound in interval]
