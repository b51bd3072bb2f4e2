"""`Composition`: the adapters of one row with their weights, and the hits of the row's search."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_THE_WEIGHT = 0.99
"""Share of a row's weight above which one adapter is in effect the row's only adapter."""
NEARLY_ALL_ROWS = 0.95
"""Minimum share of such rows for which a run is noted."""


@dataclass(frozen=True)
class Retrieved:
    """The best adapters of one row's search: more than the run uses, so that another k can be studied.

    Attributes:
        adapters: names, best first.
        scores: retrieval scores, in the scorer's unit.
        probabilities: the probability of each adapter to be the row's own, calibrated on the pool. Empty where the
            scorer gives none.
    """

    adapters: tuple[str, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Composition:
    """The adapters with which one row is answered. Under a gate: the adapters that the gate may weigh.

    Attributes:
        weights: the weight of each adapter, by the adapter's name.
        scores: the retrieval score of each adapter that retrieval found, by the adapter's name.
        retrieved: the hits of the row's search. None: the method does not retrieve.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    retrieved: Retrieved | None = None

    def __post_init__(self) -> None:
        """Check the weights and the scores, and make each number a `float`.

        Raises:
            ValueError: weights or scores are no mapping from names to finite numbers, or an adapter has a score but no
                weight.
        """
        object.__setattr__(self, "weights", _numbers("weight", self.weights))
        object.__setattr__(self, "scores", _numbers("score", self.scores))
        if strange := [name for name in self.scores if name not in self.weights]:
            raise ValueError(f"adapter {strange[0]!r} has a retrieval score but no weight")

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Composition:
        """The composition of adapters that were not retrieved, by their weights. Adapters of weight 0 are left out."""
        return cls({name: weight for name, weight in _numbers("weight", weights).items() if weight})

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return tuple(self.weights)


def nearly_single(name: str, k: int, weights: Sequence[Collection[float]]) -> str | None:
    """A note on a run that in effect uses one adapter, not `k`: in nearly all rows, one adapter has nearly all weight.

    Args:
        name: the run's name.
        k: the number of adapters that the run gives a row.
        weights: the weights of each row's adapters.
    """
    single = sum(max(row) > NEARLY_THE_WEIGHT * sum(row) for row in weights if row)
    if k < 2 or not weights or single < NEARLY_ALL_ROWS * len(weights):
        return None
    return (
        f"{name}: in {single} of {len(weights)} rows, one adapter has more than {100 * NEARLY_THE_WEIGHT:.0f} % of the "
        f"weight, so the k = {k} adapters are in effect one. A higher temperature spreads the weights"
    )


def _numbers(kind: str, given: object) -> dict[str, float]:
    """Weights or scores as a dictionary of floats. Raises `ValueError` for anything else."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{kind}s must be a mapping from adapters' names to numbers, and not {given!r:.80}")
    for name, value in given.items():
        if not isinstance(name, str):
            raise ValueError(f"a {kind} belongs to {name!r:.80}, which is no adapter's name")
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"the {kind} of adapter {name!r:.80} is {value!r:.80}, which is no finite number")
    return {name: float(value) for name, value in given.items()}


def adapters_of(compositions: Sequence[Composition]) -> list[str]:
    """The adapters that a batch uses, each once, in alphabetical order."""
    return sorted({name for composition in compositions for name in composition.weights})


def weight_matrix(compositions: Sequence[Composition]) -> tuple[list[str], Tensor]:
    """The adapters of a batch and the paper's mapping matrix M [batch, adapters], float32."""
    import torch

    names = adapters_of(compositions)
    rows = [[composition.weights.get(name, 0.0) for name in names] for composition in compositions]
    return names, torch.tensor(rows, dtype=torch.float32).reshape(len(compositions), len(names))
