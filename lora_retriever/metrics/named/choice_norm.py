"""`choice_norm`: the option with the highest log-likelihood per character is the answer; the harness' `acc_norm`."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "choice_norm"


def paper() -> list[Metric]:
    """The share of rows whose chosen option is a target. The paper has no such metric."""
    from lora_retriever.metrics.options import choice_metric

    return [choice_metric(MAIN_SCORE)]


def standard(options: StandardOptions) -> list[Metric]:
    """The same as under the paper's scoring."""
    return paper()
