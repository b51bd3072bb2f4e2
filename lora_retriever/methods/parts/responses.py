"""Turns the responses of adapters to a row's prompt into the row's composition. `probing` measures the responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Reads

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.scorers import Array

PROBED: frozenset[Reads] = frozenset({"adapters", "model"})
"""The parts of the experiment that methods read if they route by responses."""


def by_name(measured: Array, context: Context) -> list[dict[str, float]]:
    """The signals [rows, adapters] of each row by adapter, without signals of 0 and without masked adapters."""
    return [
        {name: value for name, value in zip(context.names, row, strict=True) if value > 0 and name != own}
        for row, own in zip(measured.tolist(), context.masked_adapters, strict=True)
    ]


def strongest(signals: dict[str, float], top_k: int) -> Composition:
    """The `top_k` adapters with the strongest signals, weighted by the signals. Of equal signals the first counts."""
    best = sorted(signals, key=lambda name: -signals[name])[:top_k]
    total = float(np.sum([signals[name] for name in best]))
    return Composition.of({name: signals[name] / total for name in best})
