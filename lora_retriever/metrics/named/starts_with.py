"""`starts_with`: whether the answer begins with the target, so that a right answer with further words is right."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "starts_with"


def paper() -> list[Metric]:
    """The share of rows whose answer begins with a target. The paper has no such metric."""
    from lora_retriever.metrics.paper import STARTS_WITH

    return [STARTS_WITH]


def standard(options: StandardOptions) -> list[Metric]:
    """The same as under the paper's scoring."""
    return paper()
