"""Comparisons of runs on the rows that they share: differences, intervals, and p-values corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_retriever.analysis.runs import id_ranges
from lora_retriever.analysis.scores import (
    MEAN,
    Quantity,
    ScoredRun,
    ScoredTask,
    gathered,
    interval_code,
    interval_over_tasks,
    parts_of,
)
from lora_retriever.data.rows import METRICS
from lora_retriever.errors import UserError
from lora_retriever.remembered import remembered
from lora_retriever.resampling import (
    PERMUTATIONS,
    Array,
    Indices,
    bootstrap,
    holm,
    permutation_test,
    widened,
)
from lora_retriever.tables import Cell, Table

P_SEPARABLE = 0.05
NOT_SEPARABLE = "~"


@dataclass(frozen=True)
class Difference:
    """The score of a run minus the score of another run, in points.

    Attributes:
        low, high: the ends of the 95 % interval of the difference.
        p: the p-value of the paired permutation test.
        corrected: the p-value after Holm's correction for all differences of the comparison.
    """

    value: float
    low: float
    high: float
    p: float
    corrected: float = 1.0

    @property
    def separable(self) -> bool:
        """Whether the two runs differ at the 5 % level, corrected for all comparisons."""
        return self.corrected < P_SEPARABLE


@dataclass(frozen=True)
class Comparison:
    """One run against another run, on the rows that both have.

    Attributes:
        only_ours, only_theirs: ids of rows that one of the two runs lacks. These rows are left out.
        over_tasks: the interval of the mean over tasks if the tasks are a sample, too. None for fewer than five tasks.
    """

    name: str
    other: str
    rows: int
    only_ours: tuple[int, ...]
    only_theirs: tuple[int, ...]
    differences: dict[Quantity, Difference]
    over_tasks: tuple[float, float] | None


def compare(runs: Sequence[ScoredRun], versus: str, level: str = "domain") -> list[Comparison]:
    """Compare every other run with the run `versus`: the scores of each task or domain, and the mean over tasks.

    Args:
        level: "task" or "domain", or "mean" for the mean over tasks alone.

    Raises:
        UserError: there is no run of that name, there is no other run, or two runs share no row.
    """
    return compare_pairs(pairs_with(runs, versus), level)


def pairs_with(runs: Sequence[ScoredRun], versus: str) -> list[tuple[ScoredRun, ScoredRun]]:
    """Every other run, each with the run `versus`.

    Raises:
        UserError: there is no run of that name, or there is no other run.
    """
    known = {run.name: run for run in runs}
    if versus not in known:
        raise UserError(f"no run {versus!r} to compare with (there are: {', '.join(known)})")
    others = [run for run in runs if run.name != versus]
    if not others:
        raise UserError(f"{versus} is the only run: there is nothing to compare it with")
    return [(run, known[versus]) for run in others]


def compare_pairs(runs: Sequence[tuple[ScoredRun, ScoredRun]], level: str = "domain") -> list[Comparison]:
    """Compare the first run of each pair with the second. The p-values are corrected for all pairs together.

    Args:
        level: as for `compare`.

    Raises:
        UserError: two runs of a pair share no row.
    """
    pairs = [_shared(run, other) for run, other in runs]
    quantities = [
        [quantity for quantity in gathered(ours, _whole(ours)) if quantity.level in (level, "mean")]
        for ours, _ in pairs
    ]
    # Holm multiplies the smallest p-value by the number of comparisons; the product must be able to stay far below 5 %.
    permutations = max(PERMUTATIONS, 100 * sum(map(len, quantities)))
    found = [
        _compare(run, other, *pair, wanted, permutations)
        for (run, other), pair, wanted in zip(runs, pairs, quantities, strict=True)
    ]
    corrected = iter(holm([difference.p for comparison in found for difference in comparison.differences.values()]))
    return [
        replace(
            comparison,
            differences={
                quantity: replace(difference, corrected=next(corrected))
                for quantity, difference in comparison.differences.items()
            },
        )
        for comparison in found
    ]


def comparison_table(comparisons: Sequence[Comparison], scoring: str, left_out: Sequence[str] = ()) -> Table:
    """A row for each score, a column for each comparison: difference, interval, and a mark if not separable.

    A column has the name of the run, or the names of both runs (`A − B`) where not all are compared with the same run.
    """
    quantities = list(dict.fromkeys(quantity for comparison in comparisons for quantity in comparison.differences))
    ordered = [*(quantity for quantity in quantities if quantity != MEAN), MEAN]
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            "mean over tasks" if quantity == MEAN else f"{quantity.group} {quantity.score}",
            [difference_cell(comparison.differences.get(quantity)) for comparison in comparisons],
        )
        for quantity in ordered
    ]
    names, other = _names(comparisons)
    total = number_of_differences(comparisons)
    lines = [
        *left_out,
        f"Points above (+) or below (−) {other}, {scoring} scoring, on the same rows; [95 % bootstrap interval of the "
        "difference], p of the paired permutation test.",
        f"{NOT_SEPARABLE} not separable: p, corrected for {total} comparisons (Holm), is {P_SEPARABLE} or more.",
    ]
    spans = [
        f"{name} [{c.over_tasks[0]:+.1f}, {c.over_tasks[1]:+.1f}]"
        for name, c in zip(names, comparisons, strict=True)
        if c.over_tasks
    ]
    if spans:
        lines.append(f"Mean over tasks if the tasks are a sample, too: {', '.join(spans)}.")
    for comparison in comparisons:
        if comparison.only_theirs:
            lines.append(_left_out(comparison.name, comparison.only_theirs, comparison.other))
        if comparison.only_ours:
            lines.append(_left_out(comparison.other, comparison.only_ours, comparison.name))
    return Table(
        names,
        rows,
        lines,
        bounds=True,
        signed=True,
        rules=frozenset({len(rows) - 1}),
    )


def number_of_differences(comparisons: Sequence[Comparison]) -> int:
    """The number of comparisons for which Holm's correction corrects."""
    return sum(len(comparison.differences) for comparison in comparisons)


def comparisons_as_json(
    comparisons: Sequence[Comparison], scoring: str, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """The comparisons as JSON. Where not all are with the same run, `versus` is with each run."""
    several = len({comparison.other for comparison in comparisons}) > 1
    return {
        "scoring": scoring,
        "left_out": list(left_out),
        "versus": None if several else comparisons[0].other,
        "comparisons": number_of_differences(comparisons),
        "runs": {
            comparison.name: {
                **({"versus": comparison.other} if several else {}),
                "rows": comparison.rows,
                "mean_over_tasks_interval": comparison.over_tasks and [round(end, 2) for end in comparison.over_tasks],
                "missing_rows": {comparison.name: comparison.only_theirs, comparison.other: comparison.only_ours},
                "differences": [
                    {
                        "level": quantity.level,
                        "group": quantity.group,
                        "score": quantity.score,
                        "difference": round(difference.value, 4),
                        "interval": [round(difference.low, 2), round(difference.high, 2)],
                        "p": round(difference.p, 6),
                        "p_holm": round(difference.corrected, 6),
                        "separable": difference.separable,
                    }
                    for quantity, difference in comparison.differences.items()
                ],
            }
            for comparison in comparisons
        },
    }


def _shared(run: ScoredRun, other: ScoredRun) -> tuple[dict[str, ScoredTask], dict[str, ScoredTask]]:
    """The tasks of both runs, cut to the rows that both have, in the same order."""
    ours, theirs = {}, {}
    for name, task in run.tasks.items():
        there = set(other.tasks[name].ids) if name in other.tasks else set()
        if ids := [id for id in task.ids if id in there]:
            ours[name], theirs[name] = task.cut(ids), other.tasks[name].cut(ids)
    if not ours:
        raise UserError(f"{run.name} and {other.name} share no row: they cannot be compared")
    return ours, theirs


def _compare(
    run: ScoredRun,
    other: ScoredRun,
    ours: dict[str, ScoredTask],
    theirs: dict[str, ScoredTask],
    wanted: Sequence[Quantity],
    permutations: int,
) -> Comparison:
    def difference(left: dict[str, Array], right: dict[str, Array]) -> Array:  # [wanted, ...]
        above, below = gathered(ours, left), gathered(theirs, right)
        return np.stack([above[quantity] - below[quantity] for quantity in wanted])

    def drawn(rows: Sequence[Indices]) -> Array:
        left = {name: task.scores_of(r) for (name, task), r in zip(ours.items(), rows, strict=True)}
        right = {name: task.scores_of(r) for (name, task), r in zip(theirs.items(), rows, strict=True)}
        return difference(left, right)

    sizes = [len(task.ids) for task in ours.values()]
    starts = np.cumsum([0, *sizes])

    def swapped(sides: Array) -> Array:
        both = {
            name: task.scores_swapped(theirs[name], sides[..., start : start + size])
            for (name, task), start, size in zip(ours.items(), starts[:-1], sizes, strict=True)
        }
        values = difference({n: pair[0] for n, pair in both.items()}, {n: pair[1] for n, pair in both.items()})
        return np.moveaxis(values, 0, -1)

    mine, others = _whole(ours), _whole(theirs)
    values = difference(mine, others)
    main = [float(mine[name][task.main] - others[name][task.main]) for name, task in ours.items()]
    constant = [name for name, task in ours.items() if task.metric in METRICS and _differs_alike(task, theirs[name])]
    decisive: list[bytes | str] = [interval_code(), f"{permutations} {wanted}"]
    for task in (*ours.values(), *theirs.values()):
        decisive += task.decisive
    bounds, p_values = remembered(  # [wanted, 2], [wanted]
        decisive, lambda: [bootstrap(sizes, drawn), permutation_test(sum(sizes), swapped, permutations)]
    )
    return Comparison(
        run.name,
        other.name,
        sum(sizes),
        tuple(sorted(run.run.rows.keys() - other.run.rows.keys())),
        tuple(sorted(other.run.rows.keys() - run.run.rows.keys())),
        {
            quantity: Difference(
                float(value), *_widened(quantity, float(value), tuple(interval), ours, constant), float(p)
            )
            for quantity, value, interval, p in zip(wanted, values, bounds.tolist(), p_values, strict=True)
        },
        interval_over_tasks(main),
    )


def _differs_alike(task: ScoredTask, other: ScoredTask) -> bool:
    """Whether the two runs differ by the same amount on every row of a task, for example by 0."""
    differences = [one - two for (_, one), (_, two) in zip(task.parts, other.parts, strict=True)]
    return all(bool((rows == rows[0]).all()) for rows in differences)


def _widened(
    quantity: Quantity,
    value: float,
    interval: tuple[float, float],
    tasks: dict[str, ScoredTask],
    constant: Sequence[str],
) -> tuple[float, float]:
    """The interval, widened for the tasks of `constant`, whose rows all have the same difference and so hide their
    variation.

    The widening never goes beyond ±100 points. The interval itself can be wider, because `length-error` and `cider` can
    exceed 100.
    """
    parts = [task for task, _ in parts_of(tasks, quantity)]
    rows = [len(task.ids) for task in parts if task.name in constant]
    low, high = widened(value, interval, rows, rows, len(parts))
    return max(low, min(interval[0], -100.0)), min(high, max(interval[1], 100.0))


def _whole(tasks: dict[str, ScoredTask]) -> dict[str, Array]:
    """The unrounded scores [names] of each task on all of its rows."""
    return {name: task.scores_of(np.arange(len(task.ids))[None])[:, 0] for name, task in tasks.items()}


def _names(comparisons: Sequence[Comparison]) -> tuple[list[str], str]:
    """The names of the columns, and the name or description of the other run of each comparison."""
    others = list(dict.fromkeys(comparison.other for comparison in comparisons))
    if len(others) == 1:
        return [comparison.name for comparison in comparisons], others[0]
    return [f"{comparison.name} − {comparison.other}" for comparison in comparisons], "the run after the sign −"


def difference_cell(difference: Difference | None) -> Cell | None:
    """The cell of a table: the difference with its interval, p-value and mark. None: there is no difference."""
    if difference is None:
        return None
    p = f" p {difference.p:.3f}" if difference.p >= 0.001 else " p <.001"
    return Cell(
        difference.value, difference.low, difference.high, p + ("" if difference.separable else f" {NOT_SEPARABLE}")
    )


def _left_out(name: str, ids: Sequence[int], other: str) -> str:
    return f"{name} lacks {len(ids)} rows that {other} has; they are left out here: {id_ranges(ids)}."
