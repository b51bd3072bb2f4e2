"""`bleu`: n-gram precision. Standard scoring adds `chrf`."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "bleu"


def paper() -> list[Metric]:
    """nltk's sentence BLEU without smoothing, averaged over rows."""
    from lora_retriever.metrics.paper import BLEU

    return [BLEU]


def standard(options: StandardOptions) -> list[Metric]:
    """sacrebleu's corpus BLEU and chrF."""
    from lora_retriever.metrics.standard import BLEU, CHRF

    return [BLEU, CHRF]
