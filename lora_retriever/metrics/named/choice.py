"""`choice`: the option with the highest likelihood is the answer; `acc` of lm-evaluation-harness."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "choice"


def paper() -> list[Metric]:
    """The share of rows whose chosen option is a target. The paper has no such metric."""
    from lora_retriever.metrics.options import choice_metric

    return [choice_metric(MAIN_SCORE)]


def standard(options: StandardOptions) -> list[Metric]:
    """The same as under the paper's scoring."""
    return paper()
