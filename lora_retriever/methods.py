"""The configurations of the paper: which adapters each row gets, with which weights, composed how.

`METHODS` is the register; a method's name is its run's name in a results folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lora_retriever.data import Row
from lora_retriever.errors import UserError
from lora_retriever.index import AdapterIndex
from lora_retriever.scorers import Array

Mode = Literal["mixture", "fusion"]


@dataclass(frozen=True)
class Composition:
    """What one row is answered with: `adapters` with their `weights` and retrieval `scores` (None: not retrieved)."""

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float | None, ...] = ()


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


def route(
    method: Method, rows: Sequence[Row], k: int, index: AdapterIndex | None, queries: Array | None
) -> list[Composition]:
    """The composition of every row: k adapters of equal weight 1/k (paper, section 3.2).

    Args:
        k: the profile's number of adapters.
        index, queries: the pool's index and the rows' embeddings [rows, dim]; needed where the method retrieves.
    """
    if method.source == "none":
        return [Composition()] * len(rows)
    if method.source == "own":
        return [Composition((row.task,), (1.0,), (None,)) for row in rows]
    assert index is not None and queries is not None, f"{method.name} retrieves, so it needs an index and queries"
    k = method.adapters_needed(k)
    own = [row.task for row in rows] if method.source == "retrieved_ood" else None
    hits = index.search(queries, k, exclude=own)
    return [
        Composition(tuple(names), (1 / k,) * k, tuple(round(float(score), 6) for score in scores))
        for names, scores in zip(hits.names, hits.scores, strict=True)
    ]
