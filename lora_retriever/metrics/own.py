"""Metrics of a user's own: modules of Hugging Face `evaluate`, named by a row's `metric`.

A name that begins with `.`, `/` or `~` is a local folder or script. Any other is a script of the Hub, which is fetched
and run only where `allow_hub` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from lora_retriever.errors import UserError
from lora_retriever.files import is_location
from lora_retriever.metrics.base import Array


class Evaluated:
    """A metric of which nothing is known but `compute`, on its own scale.

    What a row adds is its jackknife value θ + (n − 1)(mean θ₋ⱼ − θ₋ᵢ), where θ₋ᵢ is the score without row i. Their mean
    is the score itself; for a metric that is a mean over rows they are the rows' scores, for others intervals are right
    to first order. It costs one `compute` per row.
    """

    def __init__(self, name: str, module: Any) -> None:
        self._name = name
        self._module = module
        self.scores: tuple[str, ...] = ()

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        """The jackknife values, and 1 to count the row: [rows, scores + 1].

        Raises:
            UserError: the module fails, or gives no number.
        """
        whole = self._compute(predictions, references)  # [scores]
        rows = len(predictions)
        if rows == 1:
            return np.append(whole, 1.0)[None, :]
        without = np.array(
            [
                self._compute(
                    [*predictions[:row], *predictions[row + 1 :]], [*references[:row], *references[row + 1 :]]
                )
                for row in range(rows)
            ]
        )  # [rows, scores]
        values = whole + (rows - 1) * (without.mean(axis=0) - without)
        return np.column_stack([values, np.ones(rows)])

    def combine(self, sums: Array) -> Array:
        """Means, on the metric's own scale."""
        return sums[..., :-1] / sums[..., -1:]

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        try:
            result = self._module.compute(predictions=list(predictions), references=list(references))
        except Exception as error:  # whatever a stranger's module raises
            raise UserError(f"metric {self._name}: {type(error).__name__}: {error}") from error
        numbers = {name: float(value) for name, value in (result or {}).items() if isinstance(value, Real)}
        if not numbers:
            raise UserError(f"metric {self._name}: compute gave {result!r}, no score")
        self.scores = tuple(numbers)
        return np.array(list(numbers.values()))


def load_metric(name: str, allow_hub: bool) -> Evaluated:
    """The `evaluate` module of this name.

    Raises:
        UserError: it is a Hub's and `allow_hub` is not set, is not there, or cannot be loaded.
    """
    if not is_location(name) and not allow_hub:
        raise UserError(
            f"unknown metric {name!r}; a metric of your own is the path of an `evaluate` module (./metrics/mine), "
            "a script of the Hub runs only with --allow-hub-metrics"
        )
    location = str(Path(name).expanduser()) if is_location(name) else name
    if is_location(name) and not Path(location).exists():
        raise UserError(f"metric {name}: no such folder or script (relative paths start at {Path.cwd()})")
    import evaluate  # seconds

    try:
        return Evaluated(name, evaluate.load(location))
    except Exception as error:  # import errors of the script included
        raise UserError(f"metric {name}: cannot be loaded: {type(error).__name__}: {error}") from error
