"""Statistics that a fault of the code would leave in answers: by place in the batch, by batch, for equal inputs.

All statistics compare rows of the same task, because tasks differ much more than faults.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_retriever.analysis.runs import AnsweredRow, Run, read_folder
from lora_retriever.analysis.scores import score_run
from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.metrics import Scoring
from lora_retriever.resampling import bootstrap

Values = NDArray[np.float64]
BATCH = 8
"""Number of rows in a batch of the original."""
PERMUTATIONS = 1999
WHOLE_PROMPT = "Below is an instruction"
"""The beginning of the template. If nothing was generated, the original takes the whole prompt as the answer."""
MARK = "###"


@dataclass(frozen=True)
class Answers:
    """The answers of one method to all rows of the benchmark, in the rows' order.

    Attributes:
        name: the method's name.
        texts: the answers, without white space at their ends.
        exact: 100 where the answer is right by the paper's exact match, else 0; NaN for rows with another metric.
    """

    name: str
    texts: tuple[str, ...]
    exact: Values

    def equal(self, other: Answers) -> Values:
        """100 where both answers are the same text, else 0: [rows]."""
        return np.array([100.0 * (a == b) for a, b in zip(self.texts, other.texts, strict=True)])


def read_answers(folder: Path, rows: Sequence[Row]) -> dict[str, Answers]:
    """The answers of a folder, by method.

    Raises:
        UserError: the folder has no answers, or the answers of a run are not to the benchmark's rows in their order.
    """
    found = {}
    for run in read_folder(folder)[0]:
        if [row.inputs for row in run.rows.values()] != [row.inputs for row in rows]:
            raise UserError(f"{folder}: {run.name}: its rows are not the benchmark's rows in the benchmark's order")
        texts = [row.answer.strip() for row in run.rows.values()]
        found[run.name] = Answers(run.name, tuple(texts), exact_match(rows, texts))
    return found


def exact_match(rows: Sequence[Row], texts: Sequence[str]) -> Values:
    """Exact match of each row in percent [rows], by the paper's scoring. NaN: the row has another metric."""
    answered = {
        row.id: AnsweredRow.model_validate({**row.model_dump(), "predicted_answer": text})
        for row, text in zip(rows, texts, strict=True)
        if row.metric == "em"
    }
    values = np.full(len(rows), np.nan)
    for task in score_run(Run("answers", answered, {}), Scoring("paper")).tasks.values():
        values[list(task.ids)] = task.scores_of(np.arange(len(task.ids))[:, None])[task.main]
    return values


def mean_over_tasks(values: Values, tasks: Sequence[str]) -> tuple[float, float, float]:
    """The mean over tasks of the rows' values, with its 95 % interval. NaN: the row does not count."""
    groups = [values[places][~np.isnan(values[places])] for places in places_of(tasks).values()]
    groups = [group for group in groups if len(group)]

    def mean(rows: Sequence[NDArray[np.int64]]) -> Values:
        return np.mean([group[index].mean(axis=-1) for group, index in zip(groups, rows, strict=True)], axis=0)[None]

    low, high = bootstrap([len(group) for group in groups], mean)[0]
    return float(np.mean([group.mean() for group in groups])), low, high


def difference_within(values: Values, tasks: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The mean of the chosen rows minus the mean of the other rows of their tasks, with its 95 % interval.

    Every task counts by its number of chosen rows. A task without chosen or without other rows does not count.
    """
    pairs = []
    for places in places_of(tasks).values():
        known = places[~np.isnan(values[places])]
        inside, outside = values[known[chosen[known]]], values[known[~chosen[known]]]
        if len(inside) and len(outside):
            pairs.append((inside, outside))
    weights = np.array([len(inside) for inside, _ in pairs], dtype=float)
    weights /= weights.sum()

    def difference(rows: Sequence[NDArray[np.int64]]) -> Values:
        drawn = [
            inside[a].mean(axis=-1) - outside[b].mean(axis=-1)
            for (inside, outside), a, b in zip(pairs, rows[::2], rows[1::2], strict=True)
        ]
        return np.tensordot(weights, np.stack(drawn), axes=1)[None]

    low, high = bootstrap([len(side) for pair in pairs for side in pair], difference)[0]
    point = sum(w * (inside.mean() - outside.mean()) for w, (inside, outside) in zip(weights, pairs, strict=True))
    return float(point), low, high


def heterogeneity(values: Values, tasks: Sequence[str], groups: Sequence[object]) -> float:
    """The p-value of "rows of a task do not differ by group": a permutation test within tasks.

    The statistic is Σ_g (Σ_{i in g} d_i)² / n_g, where d_i is a row's value minus the mean of its task.
    """
    kept, deviations = _deviations(values, tasks)
    _, number = np.unique([str(groups[place]) for place in kept], return_inverse=True)
    order, sizes = np.argsort(number, kind="stable"), np.bincount(number)
    starts = np.cumsum([0, *sizes[:-1]])

    def statistic(drawn: Values) -> Values:  # [draws, rows] → [draws]
        return (np.add.reduceat(drawn[:, order], starts, axis=1) ** 2 / sizes).sum(axis=1)

    return _permutation_p(statistic, deviations, kept, tasks)


def slope(values: Values, tasks: Sequence[str], predictor: Values) -> tuple[float, float]:
    """The correlation, within tasks, of the rows' values with a predictor [rows], and its permutation p-value."""
    kept, deviations = _deviations(values, tasks)
    x = _deviations(np.where(np.isnan(values), np.nan, predictor), tasks)[1]
    scale = float(np.sqrt((x**2).sum() * (deviations**2).sum()))
    p = _permutation_p(lambda drawn: np.abs(drawn @ x), deviations, kept, tasks)
    return float(deviations @ x) / scale, p


def _deviations(values: Values, tasks: Sequence[str]) -> tuple[NDArray[np.int64], Values]:
    """The places of the rows that count, task by task, and each row's value minus the mean of its task."""
    groups = [places[~np.isnan(values[places])] for places in places_of(tasks).values()]
    groups = [places for places in groups if len(places)]
    return np.concatenate(groups), np.concatenate([values[places] - values[places].mean() for places in groups])


def _permutation_p(
    statistic: Callable[[Values], Values], deviations: Values, kept: NDArray[np.int64], tasks: Sequence[str]
) -> float:
    """The share of permutations within tasks whose statistic is at least the observed one."""
    generator = np.random.default_rng(0)
    sizes = [len(list(rows)) for _, rows in groupby(tasks[place] for place in kept)]
    ends = np.cumsum(sizes)
    drawn = np.concatenate(
        [
            deviations[end - size : end][generator.random((PERMUTATIONS, size)).argsort(axis=1)]
            for size, end in zip(sizes, ends, strict=True)
        ],
        axis=1,
    )  # [draws, rows]
    observed = statistic(deviations[None])[0]
    return (1 + int((statistic(drawn) >= observed * (1 - 1e-9)).sum())) / (PERMUTATIONS + 1)


@dataclass(frozen=True)
class EqualInputs:
    """Pairs of rows of one task with the same input, and the number of pairs with different answers.

    Attributes:
        together: of the pairs within one batch of 8, the number with different answers, and the number of all.
        apart: the same two numbers of all other pairs.
    """

    together: tuple[int, int]
    apart: tuple[int, int]


def equal_inputs(rows: Sequence[Row], answers: Answers) -> EqualInputs:
    """Count the pairs of rows of one task whose inputs are equal and whose answers differ."""
    same: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        same[row.task, row.inputs].append(place)
    counts: Counter[tuple[bool, bool]] = Counter()
    for places in same.values():
        for first, second in combinations(places, 2):
            counts[first // BATCH == second // BATCH, answers.texts[first] != answers.texts[second]] += 1

    def pair(together: bool) -> tuple[int, int]:
        return counts[together, True], counts[together, True] + counts[together, False]

    return EqualInputs(pair(True), pair(False))


def shared_input(rows: Sequence[Row]) -> str:
    """The input that rows of the most tasks share."""
    tasks: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        tasks[row.inputs].add(row.task)
    return max(tasks, key=lambda text: len(tasks[text]))


def most_frequent(texts: Iterable[str]) -> tuple[str, int, int]:
    """The most frequent of some texts, its count, and the number of texts."""
    counts = Counter(texts)
    text, count = counts.most_common(1)[0]
    return text, count, sum(counts.values())


def places_of(tasks: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
    """For each task, the indices of its rows."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, task in enumerate(tasks):
        found[task].append(place)
    return {task: np.array(places) for task, places in found.items()}


def in_mixed_batches(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Whether each row is in a batch that has rows of two tasks."""
    return _by_batch(rows, lambda batch: len({row.task for row in batch}) > 1).astype(bool)


def padding(rows: Sequence[Row]) -> Values:
    """For each row, the share of padding, in characters: (longest input of the batch − input) / longest input of the
    batch."""
    longest = _by_batch(rows, lambda batch: max(len(row.inputs) for row in batch))
    return 1 - np.array([len(row.inputs) for row in rows]) / longest


def _by_batch(rows: Sequence[Row], value: Callable[[Sequence[Row]], float]) -> Values:
    """A value of each row's batch, [rows]."""
    starts = range(0, len(rows), BATCH)
    batches = [rows[start : start + BATCH] for start in starts]
    return np.array([float(value(batch)) for batch in batches for _ in batch])
