"""Scorers: how similar a query is to an adapter's samples.

mean_ip, cosine         the adapter is the mean of its samples                    means.py
nearest, knn            the adapter is its samples, the most similar count        neighbours.py
discriminant            directions that vary within all adapters count less       discriminant.py
lexical, hybrid         words and form of the texts, alone or with meaning        texts.py
joint                   cosine and hybrid, standardised and added                 joint.py
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from lora_retriever.retrieval.scorers.base import (
    SCORERS,
    Array,
    Changeable,
    Fitted,
    HeldOut,
    Linear,
    Pool,
    Positions,
    Samples,
    Scorer,
    as_scorer,
    scorer,
    unit,
)

for file in pkgutil.iter_modules(__path__):  # every file of this folder registers its scorers
    import_module(f"{__name__}.{file.name}")

__all__ = [
    "SCORERS",
    "Array",
    "Changeable",
    "Fitted",
    "HeldOut",
    "Linear",
    "Pool",
    "Positions",
    "Samples",
    "Scorer",
    "as_scorer",
    "scorer",
    "unit",
]
