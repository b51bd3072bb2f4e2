"""`kas`: the chunks that a plan shares with a reference plan, step by step. Standard scoring adds sounder scores."""

from __future__ import annotations

from lora_retriever.metrics.base import Metric
from lora_retriever.metrics.named import StandardOptions

MAIN_SCORE = "kas"


def paper() -> list[Metric]:
    """KAS exactly as published."""
    from lora_retriever.metrics.plans import KAS

    return [KAS]


def standard(options: StandardOptions) -> list[Metric]:
    """KAS, F1 of chunks by position and by alignment, length error, objects in the table; CIDEr where installed."""
    from lora_retriever.metrics.plans import CIDER, KAS, OBJECTS, SOUND, has_cider

    return [KAS, SOUND, OBJECTS, *([CIDER] if has_cider() else [])]
