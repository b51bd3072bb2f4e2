"""How well a scorer finds the inputs' own adapters: the paper's table 2, and further figures.

All figures of a scorer are means over rows, computed from one `Ranking`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lora_retriever.analysis.retrieval.rankings import (
    Ranking,
    RetrievalData,
    TextsAndDomains,
    Values,
    rank,
    rank_left_out,
)
from lora_retriever.analysis.retrieval.templates import Templates
from lora_retriever.resampling import Indices, bootstrap, exact_bound
from lora_retriever.retrieval.scorers import Scorer, as_scorer
from lora_retriever.tables import Cell

CUTS = (1, 3, 5, 8)
MASKED_CUTS = (1, 3)
"""With the own adapter masked: the k for which the adapters of the row's domain among the best k are counted."""


@dataclass(frozen=True)
class Figures:
    """Means over some rows, in percent, with 95 % intervals.

    `top1` … `top8`: rows whose own adapter is among the best 1 … 8. `mrr`: mean reciprocal rank. `same_domain1` and
    `same_domain3`: with the own adapter masked, the share of the best 1 and 3 adapters that are of the row's domain.
    """

    rows: int
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Evaluation:
    """The figures of one scorer on one encoder's embeddings.

    Attributes:
        calibration_error: in percent; None if no probabilities are stated.
        seen: over the rows whose template occurs in a sample of their own adapter; None: templates are not known, or
            there is no such row.
        unseen: over the other rows; None: templates are not known, or there is no such row.
        left_out: over all rows, each without its own adapter's samples of its template; None: the user did not ask for
            it.
        domains: by domain; empty if domains are not known.
        tasks: by task.
        confusions: by task and adapter of another task, the number of the task's rows for which this adapter was first;
            most frequent first.
        cut: by number of samples, the figures with only the first samples of every adapter.
        groups: by value of a further field of the rows; empty if the user named no field.
    """

    encoder: str
    scorer: str
    overall: Figures
    calibration_error: float | None
    seen: Figures | None
    unseen: Figures | None
    left_out: Figures | None
    domains: dict[str, Figures]
    tasks: dict[str, Figures]
    confusions: dict[tuple[str, str], int]
    cut: dict[int, Evaluation] = field(default_factory=dict)
    groups: dict[str, Figures] = field(default_factory=dict)


def evaluate_retrieval(
    encoder: str,
    data: RetrievalData,
    scorer: str | Scorer,
    templates: Templates | None,
    cuts: Sequence[int] = (),
    leave_out: bool = False,
    groups: Sequence[str | None] | None = None,
) -> Evaluation:
    """All figures of one scorer on one encoder's embeddings.

    Args:
        encoder: the encoder's name.
        templates: the templates of samples and rows, if texts are known.
        cuts: numbers of samples per adapter to which the pool is cut.
        leave_out: whether to rank all rows also without their own adapter's samples of their template.
        groups: each row's value of a further field. None: the row lacks the field.

    Raises:
        UserError: as for `rank`.
    """
    cut = {size: evaluate_retrieval(encoder, data.cut(size), scorer, _cut(templates, size)) for size in cuts}
    ranking = rank(data, scorer)
    tasks = np.array(data.tasks)
    values = row_values(ranking, data.described)

    def over(chosen: NDArray[np.bool_]) -> Figures | None:
        return figures(_of_rows(values, chosen), tasks[chosen]) if chosen.any() else None

    overall = over(np.ones(len(tasks), dtype=bool))
    assert overall is not None, "a benchmark has rows"
    left_out = None
    if leave_out and templates is not None:
        without, rows = rank_left_out(data, scorer, templates)
        if len(rows):
            left_out = figures(row_values(without, None), tasks[rows])
    unseen = None if templates is None else templates.unseen()
    wrong = (ranking.ranks != 1).nonzero()[0]
    return Evaluation(
        encoder,
        as_scorer(scorer).name,
        overall,
        ranking.calibration_error,
        None if unseen is None else over(~unseen),
        None if unseen is None else over(unseen),
        left_out,
        {} if data.described is None else _by_group(values, tasks, data.described.row_domains),
        _by_group(values, tasks, data.tasks),
        dict(Counter((data.tasks[row], data.names[ranking.order[row, 0]]) for row in wrong).most_common()),
        cut,
        {} if groups is None else _by_group(values, tasks, groups),
    )


def row_values(ranking: Ranking, described: TextsAndDomains | None) -> dict[str, Values]:
    """The values that `Figures` averages, row by row: [rows] each. A k above the pool's size is left out."""
    adapters = ranking.order.shape[1]
    values = {f"top{k}": (ranking.ranks <= k).astype(float) for k in CUTS if k <= adapters}
    values["mrr"] = 1 / ranking.ranks
    if described is not None:
        domains, own = np.array(described.adapter_domains), np.array(described.row_domains)
        for k in MASKED_CUTS:
            if k < adapters:
                values[f"same_domain{k}"] = (domains[ranking.others(k)] == own[:, None]).mean(axis=1)
    return values


def figures(values: dict[str, Values], tasks: NDArray[np.str_]) -> Figures:
    """Means over rows, with bootstrap intervals: rows are resampled within their tasks."""
    stacked = np.stack(list(values.values()))  # [figures, rows]
    by_task = [stacked[:, tasks == task] for task in dict.fromkeys(tasks.tolist())]
    sizes = [of_task.shape[1] for of_task in by_task]

    def drawn(positions: Sequence[Indices]) -> Values:
        sums = [
            of_task[:, rows].mean(axis=-1) * of_task.shape[1] for of_task, rows in zip(by_task, positions, strict=True)
        ]
        return 100 * np.sum(sums, axis=0) / sum(sizes)  # [figures, draws]

    means = 100 * stacked.mean(axis=1)
    cells = {}
    for name, mean, (low, high) in zip(values, means.tolist(), bootstrap(sizes, drawn).tolist(), strict=True):
        alike = mean in (0, 100)  # all rows are equal, so resampling shows no variation
        cells[name] = Cell(mean, *(exact_bound(mean, sum(sizes)) if alike else (low, high)))
    return Figures(sum(sizes), cells)


def _by_group(values: dict[str, Values], tasks: NDArray[np.str_], groups: Sequence[str | None]) -> dict[str, Figures]:
    """The figures of each group of rows. A row with None belongs to no group."""
    found = {}
    for group in dict.fromkeys(group for group in groups if group is not None):
        chosen = np.array([of_row == group for of_row in groups])
        found[group] = figures(_of_rows(values, chosen), tasks[chosen])
    return found


def _of_rows(values: dict[str, Values], chosen: NDArray[np.bool_]) -> dict[str, Values]:
    return {name: of_rows[chosen] for name, of_rows in values.items()}


def _cut(templates: Templates | None, samples: int) -> Templates | None:
    return templates and replace(templates, samples=tuple(groups[:samples] for groups in templates.samples))
