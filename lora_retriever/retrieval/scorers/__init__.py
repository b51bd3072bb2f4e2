"""Scorers: how like an adapter's samples a query is.

mean_ip, cosine         the adapter is the mean of its samples                    means.py
nearest, knn            the adapter is its samples, the nearest speak for it      neighbours.py
discriminant            what varies within all adapters counts less               discriminant.py
lexical, hybrid         words and form of the texts, alone or with meaning        texts.py
"""

from __future__ import annotations

from lora_retriever.retrieval.scorers import discriminant, means, neighbours, texts
from lora_retriever.retrieval.scorers.base import (
    SCORERS,
    Array,
    Fitted,
    HeldOut,
    Linear,
    Places,
    Pool,
    Samples,
    Scorer,
    scorer,
)

__all__ = [
    "SCORERS",
    "Array",
    "Fitted",
    "HeldOut",
    "Linear",
    "Places",
    "Pool",
    "Samples",
    "Scorer",
    "discriminant",
    "means",
    "needs_texts",
    "neighbours",
    "scorer",
    "texts",
]


def needs_texts(name: str) -> bool:
    """Whether a scorer reads texts, those of the pool's samples and of the queries."""
    return SCORERS[name].needs_texts
