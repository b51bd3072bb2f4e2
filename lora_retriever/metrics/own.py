"""Metrics of a user's own: modules of Hugging Face `evaluate`, named by a row's `metric`.

A name that begins with `.`, `/` or `~` is a local folder or script. Rows and results are data, and data never brings
code: a local metric runs only where its folder is allowed by the profile or on the command line. Any other name is a
script of the Hub, which is fetched and run only where `allow_hub` says so.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.files import is_location
from lora_retriever.metrics.base import Array, Reference, RowError, compared


class Evaluated:
    """A metric of which only `compute` is known, on the metric's own scale.

    A row adds its jackknife value θ + (n − 1)(mean θ₋ⱼ − θ₋ᵢ), where θ₋ᵢ is the score without row i. The mean
    of these values is the score itself. For a metric that is a mean over rows, the values are the rows' scores; for
    other metrics, intervals are right to first order. The values take one `compute` per row.
    """

    def __init__(self, name: str, module: Any) -> None:
        self._name = name
        self._module = module
        self.scores: tuple[str, ...] = ()

    def statistics(self, predictions: Sequence[str], references: Sequence[Reference]) -> Array:
        """The jackknife values, and 1 to count the row: [rows, scores + 1].

        If every row has one reference, the module gets a text for each row; else a list of texts for each row.

        Raises:
            RowError: the module fails, or gives NaN or infinity, because of one row.
            UserError: the module fails or gives no finite number on all rows together.
        """
        answers, listed = compared(predictions, references)
        targets: list[Any] = list(listed)
        if all(len(texts) == 1 for texts in listed):
            targets = [text for (text,) in listed]
        try:
            return self._jackknife(answers, targets)
        except RowError:
            raise
        except UserError as error:
            failures = self._failures_alone(answers, targets)
            # If every row fails alone, the module is broken or needs several rows, so no single row is the cause.
            if failures and (len(failures) < len(answers) or len(answers) == 1):
                row, message = next(iter(failures.items()))
                raise RowError(message, row) from error
            raise

    def combine(self, sums: Array) -> Array:
        """Means, on the metric's own scale."""
        return sums[..., :-1] / sums[..., -1:]

    def _jackknife(self, answers: list[str], targets: list[Any]) -> Array:
        whole = self._compute(answers, targets)  # [scores]
        names, rows = self.scores, len(answers)
        if rows == 1:
            return np.append(whole, 1.0)[None, :]
        without = []
        for row in range(rows):
            try:
                scores = self._compute([*answers[:row], *answers[row + 1 :]], [*targets[:row], *targets[row + 1 :]])
            except UserError as error:
                raise RowError(f"{error} (on the task's rows without this row)", row) from error
            if self.scores != names:
                raise RowError(
                    f"metric {self._name}: compute gives the scores {', '.join(names)} on all rows, but "
                    f"{', '.join(self.scores)} without this row",
                    row,
                )
            without.append(scores)
        left = np.array(without)  # [rows, scores]
        return np.column_stack([whole + (rows - 1) * (left.mean(axis=0) - left), np.ones(rows)])

    def _failures_alone(self, answers: list[str], targets: list[Any]) -> dict[int, str]:
        """The rows on which the module fails when it gets the row alone, with the messages."""
        failures = {}
        for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
            try:
                self._compute([answer], [target])
            except UserError as error:
                failures[row] = str(error)
        return failures

    def _compute(self, predictions: Sequence[str], references: Sequence[Any]) -> Array:
        try:
            result = self._module.compute(predictions=list(predictions), references=list(references))
        except Exception as error:  # a user's module may raise anything
            raise UserError(f"metric {self._name}: {type(error).__name__}: {error}") from error
        content = result if isinstance(result, dict) else {}
        numbers = {str(name): float(value) for name, value in content.items() if isinstance(value, Real)}
        if not numbers:
            raise UserError(f"metric {self._name}: compute gave {quoted(result)}, no score")
        for name, value in numbers.items():
            if not np.isfinite(value):
                raise UserError(f"metric {self._name}: compute gave {value} for {name}")
        self.scores = tuple(numbers)
        return np.array(list(numbers.values()))


def find_metric(name: str, allow_hub: bool, allowed_folders: Sequence[Path]) -> str:
    """The path or the name that `evaluate` loads for a metric's name. Nothing is imported.

    Links are resolved on both sides, so that no link leads out of an allowed folder.

    Args:
        allow_hub: whether scripts of the Hub may run.
        allowed_folders: folders whose metrics may run, with the folders inside them.

    Raises:
        UserError: the metric is not there, or is not allowed; the message says how to allow it.
    """
    if not is_location(name):
        if not allow_hub:
            raise UserError(
                f"unknown metric {quoted(name)}; a metric of your own is the path of an `evaluate` module "
                "(./metrics/mine), a script of the Hub runs only with --allow-hub-metrics"
            )
        if os.path.exists(name):  # `evaluate` would load that file instead of the Hub's
            raise UserError(
                f"metric {quoted(name)} is a metric of the Hub and also a path here; write ./{name} for the path"
            )
        return name
    path = _resolved(name)
    script = path / f"{path.name}.py" if os.path.isdir(path) else path
    if not os.path.isfile(script):
        raise UserError(
            f"metric {name}: no such folder or script (relative paths start at {Path.cwd()}; a folder holds a script "
            "of its own name)"
        )
    folders = [_resolved(str(folder)) for folder in allowed_folders]
    if not any(folder == script.resolve() or folder in script.resolve().parents for folder in folders):
        raise UserError(
            f"metric {name}: code that rows name runs only from allowed folders. If you trust {path.parent}, "
            f"allow that folder: --allow-metrics {shlex.quote(str(path.parent))}, or `metrics: [FOLDER]` in the profile"
        )
    return str(script.resolve())


def load_metric(name: str, allow_hub: bool, allowed_folders: Sequence[Path] = ()) -> Evaluated:
    """The `evaluate` module of this name.

    Raises:
        UserError: as for `find_metric`, or the module cannot be loaded.
    """
    location = find_metric(name, allow_hub, allowed_folders)
    import evaluate  # takes seconds to import

    try:
        return Evaluated(name, evaluate.load(location))
    except Exception as error:  # a script may raise anything
        raise UserError(f"metric {name}: cannot be loaded: {type(error).__name__}: {error}") from error


def _resolved(name: str) -> Path:
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user's home, a circle of links, a NUL
        raise UserError(f"metric {quoted(name)}: not a path ({error})") from error
