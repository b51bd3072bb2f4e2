"""The configurations of the paper: which adapters each row gets, with which weights, composed how.

`METHODS` is the register; a method's name is its run's name in a results folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lora_retriever.data import Row
from lora_retriever.errors import UserError
from lora_retriever.index import AdapterIndex, Hits
from lora_retriever.scorers import Array

Mode = Literal["mixture", "fusion"]


RECORDED = 8
"""So many adapters of a search are recorded, however few are used."""


@dataclass(frozen=True)
class Retrieved:
    """The best adapters of one row's search, more than are used, so that another k can be studied without searching.

    Attributes:
        probabilities: that each is the row's own, calibrated on the pool; empty where the scorer has none.
    """

    adapters: tuple[str, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Composition:
    """What one row is answered with: `adapters` with their `weights` and retrieval `scores` (None: not retrieved)."""

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float | None, ...] = ()
    retrieved: Retrieved | None = None


@dataclass(frozen=True)
class Method:
    """A way to give rows their adapters.

    Attributes:
        mode: how the adapters are composed.
        source: `none` the base model alone; `own` the adapter of the row's own task, the oracle; `retrieved` the best
            k of the pool; `retrieved_ood` the best k once the own adapter is masked.
        k: adapters per row; None takes the profile's.
    """

    name: str
    mode: Mode
    source: Literal["none", "own", "retrieved", "retrieved_ood"]
    k: int | None = None

    @property
    def retrieves(self) -> bool:
        """Whether the method needs an encoder and an index."""
        return self.source in ("retrieved", "retrieved_ood")

    def adapters_needed(self, k: int) -> int:
        """How many adapters a row gets under a profile's `k`."""
        return self.k if self.k is not None else k

    def depends_on(self, setting: str, k: int) -> bool:
        """Whether a setting that can be swept bears on the method under a profile's `k`.

        A run's name and the hash of its configuration keep these settings alone.
        """
        if setting == "seed":
            return True
        if setting == "k":
            return self.retrieves and self.k is None
        if setting == "temperature":
            return self.retrieves and self.adapters_needed(k) > 1  # a single adapter's weight is 1
        return self.retrieves


METHODS = {
    method.name: method
    for method in (
        Method("base", "mixture", "none", k=0),
        Method("selection", "fusion", "retrieved", k=1),
        Method("selection_ood", "fusion", "retrieved_ood", k=1),
        Method("fusion", "fusion", "retrieved"),
        Method("fusion_ood", "fusion", "retrieved_ood"),
        Method("mixture", "mixture", "retrieved"),
        Method("mixture_ood", "mixture", "retrieved_ood"),
        Method("best_selection", "mixture", "own", k=1),
    )
}


def find_methods(names: Sequence[str]) -> list[Method]:
    """The registered methods of these names, in the register's order.

    Raises:
        UserError: one is unknown.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r} (known: {', '.join(METHODS)})")
    return [method for name, method in METHODS.items() if name in names]


def weights_of(scores: Array, temperature: float | None) -> Array:
    """Weights [rows, k] of the adapters found, from their scores [rows, k]; every row sums to 1.

    Without a temperature w_p = 1/k (paper, section 3.2); with one w_p = exp(s_p/T) / Σ_q exp(s_q/T) over the k found
    (LoRAuter, arXiv 2601.21795, with cosine scores and T = 0.2). T is in the scorer's unit.
    """
    if temperature is None:
        return np.full(scores.shape, 1 / scores.shape[1])
    scores = scores.astype(np.float64)
    powers = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)  # the best is 1: nothing overflows
    return powers / powers.sum(axis=1, keepdims=True)


def route(
    method: Method,
    rows: Sequence[Row],
    k: int,
    index: AdapterIndex | None,
    queries: Array | None,
    temperature: float | None = None,
) -> list[Composition]:
    """The composition of every row: k adapters with their weights.

    Args:
        k: the profile's number of adapters.
        index, queries: the pool's index and the rows' embeddings [rows, dim]; needed where the method retrieves. The
            rows' inputs are given to the index as well, for scorers that read texts.
        temperature: the profile's, by which scores become weights; None for equal ones.
    """
    if method.source == "none":
        return [Composition()] * len(rows)
    if method.source == "own":
        return [Composition((row.task,), (1.0,), (None,)) for row in rows]
    assert index is not None and queries is not None, f"{method.name} retrieves, so it needs an index and queries"
    k = method.adapters_needed(k)
    own = [row.task for row in rows] if method.source == "retrieved_ood" else None
    recorded = max(k, min(RECORDED, len(index.names) - (own is not None)))
    hits = index.search(queries, recorded, exclude=own, texts=[row.inputs for row in rows])
    weights = weights_of(hits.scores[:, :k], temperature).tolist()  # [rows][k]
    return [
        Composition(found.adapters[:k], tuple(row_weights), found.scores[:k], found)
        for row_weights, found in zip(weights, _recorded(hits), strict=True)
    ]


def _recorded(hits: Hits) -> list[Retrieved]:
    """Each row's hits with rounded numbers, as a results file keeps them."""
    scores = [tuple(round(score, 6) for score in row) for row in hits.scores.tolist()]
    if hits.probabilities is None:
        return [Retrieved(tuple(names), row) for names, row in zip(hits.names, scores, strict=True)]
    probabilities = [tuple(round(chance, 6) for chance in row) for row in hits.probabilities.tolist()]
    return [Retrieved(tuple(names), *row) for names, *row in zip(hits.names, scores, probabilities, strict=True)]
