"""Metrics: sums of per-row statistics, and the scores that these sums give.

`compute(predictions=, references=)` is the interface of Hugging Face `evaluate`. The two steps behind `compute` allow
scoring a task again thousands of times, on rows drawn anew, for intervals and tests.

The reference of a row is one text or several texts. Predictions and references are compared in one Unicode form and
with one kind of line end (`texts.in_one_form`), whatever the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_retriever.errors import UserError
from lora_retriever.metrics.texts import in_one_form

Array = NDArray[np.float64]
Reference = str | Sequence[str]
"""The reference of a row: one text, or several texts of which the best counts."""


class Metric(Protocol):
    """A metric."""

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the metric's scores, the main score first."""

    def statistics(self, predictions: Sequence[str], references: Sequence[Reference]) -> Array:
        """The statistics that each row adds to the sums, [rows, statistics].

        Raises:
            RowError: a row cannot be scored, or its statistics are not finite.
        """

    def combine(self, sums: Array) -> Array:
        """The scores [..., scores] in percent, from statistics summed over rows, [..., statistics]."""


class RowError(UserError):
    """A metric cannot score one row.

    Attributes:
        row: the index of the row among the predictions, from 0. The caller knows the run, the task and the row's id.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


def compute(metric: Metric, *, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
    """The scores of these answers, in percent (the interface of `evaluate`'s modules)."""
    sums = metric.statistics(predictions, references).sum(axis=0)
    return dict(zip(metric.scores, metric.combine(sums).tolist(), strict=True))


def compared(
    predictions: Sequence[str], references: Sequence[Reference]
) -> tuple[list[str], list[list[str]]]:  # [rows], [rows][references of the row]
    """Predictions and references for a metric: in one Unicode form, and every reference as a list of texts.

    Raises:
        RowError: a row has an empty list of references.
    """
    listed = [
        [in_one_form(text) for text in ([reference] if isinstance(reference, str) else reference)]
        for reference in references
    ]
    for row, texts in enumerate(listed):
        if not texts:
            raise RowError("the list of targets is empty", row)
    return [in_one_form(prediction) for prediction in predictions], listed


def finite(statistics: Array, metric: str) -> Array:
    """The statistics [rows, statistics], unchanged.

    Raises:
        RowError: a statistic is NaN or infinite.
    """
    wrong = ~np.isfinite(statistics)
    if wrong.any():
        row = int(wrong.any(axis=1).argmax())
        value = statistics[row][wrong[row]][0]
        raise RowError(f"{metric} gives {value} for this row; a mean with that row means nothing", row)
    return statistics


class RowMean:
    """A metric that is the mean over rows of `score(target, answer)`, named scores between 0 and 1.

    With several targets, each score takes the target with the highest score, unless `score` takes several at once.
    """

    def __init__(
        self, scores: tuple[str, ...], score: Callable[[Any, str], dict[str, float]], takes_several: bool = False
    ) -> None:
        self.scores = scores
        self._score = score
        self._takes_several = takes_several

    def statistics(self, predictions: Sequence[str], references: Sequence[Reference]) -> Array:
        """The row's scores, and 1 to count the row: [rows, scores + 1].

        Raises:
            RowError: `score` fails for a row or gives a number that is not finite.
        """
        answers, targets = compared(predictions, references)
        rows = [
            self._best(answer, texts, row) for row, (answer, texts) in enumerate(zip(answers, targets, strict=True))
        ]
        return finite(np.array([[*scores, 1.0] for scores in rows]), " and ".join(self.scores))

    def combine(self, sums: Array) -> Array:
        """Means × 100."""
        return 100 * sums[..., :-1] / sums[..., -1:]

    def _best(self, answer: str, targets: Sequence[str], row: int) -> list[float]:
        try:
            found = [self._score(wanted, answer) for wanted in ([targets] if self._takes_several else targets)]
        except Exception as error:  # whatever a library raises for one odd text must name that text's row
            raise RowError(f"{' and '.join(self.scores)}: {type(error).__name__}: {error}", row) from error
        return [max(scores[name] for scores in found) for name in self.scores]
