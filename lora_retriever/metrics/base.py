"""What a metric is: sums of per-row statistics, and the scores those sums give.

`compute(predictions=, references=)` is the interface of Hugging Face `evaluate`. The two steps behind it are what lets
a task be scored again thousands of times, on rows drawn anew, for intervals and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Metric(Protocol):
    """A metric."""

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of what it gives, the main score first."""

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        """What each row adds to the sums, [rows, statistics]."""

    def combine(self, sums: Array) -> Array:
        """The scores [..., scores] in percent of statistics summed over rows, [..., statistics]."""


def compute(metric: Metric, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores of these answers, in percent (the interface of `evaluate`'s modules)."""
    sums = metric.statistics(predictions, references).sum(axis=0)
    return dict(zip(metric.scores, metric.combine(sums).tolist(), strict=True))


class RowMean:
    """A metric that is the mean over rows of `score(target, answer)`, named scores between 0 and 1."""

    def __init__(self, scores: tuple[str, ...], score: Callable[[str, str], dict[str, float]]) -> None:
        self.scores = scores
        self._score = score

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        """The row's scores, and 1 to count it: [rows, scores + 1]."""
        rows = [self._score(target, answer) for answer, target in zip(predictions, references, strict=True)]
        return np.array([[*(row[name] for name in self.scores), 1.0] for row in rows])

    def combine(self, sums: Array) -> Array:
        """Means × 100."""
        return 100 * sums[..., :-1] / sums[..., -1:]
