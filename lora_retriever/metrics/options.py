"""Multiple choice by likelihood: the score of the chosen option. `generation.answer` says which option is chosen."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric, RowMean


def choice_metric(name: str) -> Metric:
    """The metric of this name: 100 where the chosen option is a target of the row, else 0."""
    return RowMean((name,), lambda target, chosen: {name: float(target == chosen)})
