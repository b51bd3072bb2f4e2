"""The paper's own configurations: LoraRetriever (Zhao et al., Findings of ACL 2024, arXiv 2402.09997), section 3.

Retrieve the k adapters whose samples are most similar to the input; answer with the best one (selection), the average
of their outputs (mixture) or of their parameters (fusion), w_p = 1/k. The oracle (perfect selection) takes the adapter
of the input's own task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_retriever.methods.base import Composition, Method, Reads, Retrieved, Settings, with_ood

if TYPE_CHECKING:
    from lora_retriever.index import Hits
    from lora_retriever.scorers import Array
    from lora_retriever.setting import Setting

CITATION = "Zhao et al. 2024, arXiv 2402.09997"
RECORDED = 8
"""So many adapters of a search are recorded, however few are used."""


@dataclass(frozen=True)
class Nothing:
    """No adapter: the base model alone."""

    def route(self, setting: Setting) -> list[Composition]:
        """The empty composition for every row."""
        return [Composition()] * len(setting.rows)


@dataclass(frozen=True)
class Own:
    """The adapter of the row's own task, the oracle."""

    def route(self, setting: Setting) -> list[Composition]:
        """The row's own adapter, whole."""
        return [Composition.of({row.task: 1.0}) for row in setting.rows]


@dataclass(frozen=True)
class Nearest:
    """The `k` adapters that retrieval finds; None takes the profile's."""

    k: int | None = None

    def __post_init__(self) -> None:
        check_k(self.k)

    def route(self, setting: Setting) -> list[Composition]:
        """The adapters found, weighted alike, or by the profile's temperature where it has one."""
        k = setting.k if self.k is None else self.k
        hits = setting.search(recorded(k, setting))
        weights = weights_of(hits.scores[:, :k], setting.temperature)  # [rows, k]
        return compositions_of(hits, weights)


def check_k(k: int | None) -> None:
    """See that a router's option k is a number of adapters, or None.

    Raises:
        ValueError: it is less than 1.
    """
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")


def recorded(k: int, setting: Setting) -> int:
    """How many adapters to search for where `k` are used: those that are recorded, too."""
    return max(k, min(RECORDED, setting.available))


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


def compositions_of(hits: Hits, weights: Array) -> list[Composition]:
    """The first adapters of every row's hits with their weights [rows, k]; those of weight 0 are not used."""
    compositions = []
    for found, row_weights in zip(recorded_hits(hits), weights.tolist(), strict=True):
        used = [place for place, weight in enumerate(row_weights) if weight]
        adapters = tuple(found.adapters[place] for place in used)
        scores = tuple(found.scores[place] for place in used)
        compositions.append(Composition(adapters, tuple(row_weights[place] for place in used), scores, found))
    return compositions


def recorded_hits(hits: Hits) -> list[Retrieved]:
    """Each row's hits with rounded numbers, as a results file keeps them."""
    scores = [tuple(round(score, 6) for score in row) for row in hits.scores.tolist()]
    if hits.probabilities is None:
        return [Retrieved(tuple(names), row) for names, row in zip(hits.names, scores, strict=True)]
    probabilities = [tuple(round(chance, 6) for chance in row) for row in hits.probabilities.tolist()]
    return [Retrieved(tuple(names), *row) for names, *row in zip(hits.names, scores, probabilities, strict=True)]


RETRIEVAL: frozenset[Reads] = frozenset({"adapters", "pool", "encoder"})
SCORED: frozenset[Settings] = frozenset({"scorer"})
TOP_K: frozenset[Settings] = frozenset({"k", "scorer", "temperature"})

METHODS = (
    Method("base", "the base model alone", CITATION, Nothing(), reads=frozenset()),
    *with_ood(
        Method(
            "selection",
            "the best adapter that retrieval finds",
            CITATION,
            Nearest(k=1),
            "fusion",
            reads=RETRIEVAL,
            settings=SCORED,
        )
    ),
    *with_ood(
        Method(
            "fusion",
            "the average of the parameters of the best k adapters",
            CITATION,
            Nearest(),
            "fusion",
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
    *with_ood(
        Method(
            "mixture",
            "the average of the outputs of the best k adapters",
            CITATION,
            Nearest(),
            "mixture",
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
    Method("best_selection", "the adapter of the row's own task, the oracle", CITATION, Own()),
)
