"""`em`: exact match. Standard scoring adds `f1` on question answering and `accuracy` on choice tasks."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "em"


def paper() -> list[Metric]:
    """Exact match without dots and case."""
    from lora_retriever.metrics.paper import EXACT_MATCH

    return [EXACT_MATCH]


def standard(options: StandardOptions) -> list[Metric]:
    """Exact match after SQuAD's normalisation, and the score that fits the kind of the task."""
    from lora_retriever.metrics.standard import ACCURACY, EXACT_MATCH, F1

    return [EXACT_MATCH, *{"qa": [F1], "choice": [ACCURACY]}.get(options.kind, [])]
