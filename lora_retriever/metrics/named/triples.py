"""`triples`: micro precision, recall and F1 of triples and of relations. Both scorings compute the same."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "f1"


def paper() -> list[Metric]:
    """Precision, recall and F1 over the sets of all rows, as published."""
    from lora_retriever.metrics.triples import TRIPLES

    return [TRIPLES]


def standard(options: StandardOptions) -> list[Metric]:
    """The same as under the paper's scoring."""
    return paper()
