"""The metrics that a row may name, one file each. The name of the file is the name of the metric.

A file has `MAIN_SCORE`, the name of the score that counts in means over tasks, and two functions: `paper()` gives the
metrics of the paper's scoring, and `standard(options)` gives the metrics of the field's standard scoring. The metric of
the main score comes first. The libraries behind the metrics take seconds to import, so a file imports them within its
functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from lora_retriever.metrics.base import Metric


@dataclass(frozen=True)
class StandardOptions:
    """The options of standard scoring for one task.

    Attributes:
        kind: the kind of the task, `qa` or `choice`. Empty: another kind.
        stemming: whether ROUGE stems words.
    """

    kind: str = ""
    stemming: bool = False


class NamedMetric(Protocol):
    """The interface of a metric's file."""

    MAIN_SCORE: str

    def paper(self) -> list[Metric]:
        """The metrics of the paper's scoring."""

    def standard(self, options: StandardOptions) -> list[Metric]:
        """The metrics of standard scoring."""


@cache
def named_metric(name: str) -> NamedMetric:
    """The metric of this name.

    Raises:
        ModuleNotFoundError: there is no file of this name.
    """
    return cast(NamedMetric, import_module(f"{__name__}.{name}"))
