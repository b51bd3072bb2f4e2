"""`rouge`: overlap of words, word pairs and longest common subsequences (`rouge-1`, `rouge-2`, `rouge-l`)."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "rouge-1"


def paper() -> list[Metric]:
    """The package `rouge`."""
    from lora_retriever.metrics.paper import ROUGE

    return [ROUGE]


def standard(options: StandardOptions) -> list[Metric]:
    """The package rouge-score."""
    from lora_retriever.metrics.standard import rouge_metric

    return [rouge_metric(options.stemming)]
