"""The router of methods that retrieve: the k best adapters of each row, weighted by retrieval scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition, Retrieved
from lora_retriever.methods.base import Reads, Settings
from lora_retriever.methods.options import Count

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.index import Hits
    from lora_retriever.retrieval.scorers import Array

RECORDED = 8
"""Minimum number of adapters of a search that a run records, also if the method uses fewer."""
RETRIEVAL: frozenset[Reads] = frozenset({"adapters", "pool"})
"""The parts that a method reads if it searches by the profile's scorer.

The scorer decides whether the method needs an encoder.
"""
EMBEDDED: frozenset[Reads] = RETRIEVAL | {"encoder"}
"""The parts that a method reads if it reads embeddings under every profile."""
SCORED: frozenset[Settings] = frozenset({"scorer"})
TOP_K: frozenset[Settings] = frozenset({"k", "scorer", "temperature"})


@dataclass(frozen=True)
class Nearest:
    """The `k` adapters that retrieval finds. None: the profile's k."""

    k: Count | None = None

    def route(self, context: Context) -> list[Composition]:
        """The adapters found, with equal weights, or weighted by the profile's temperature if the profile sets one."""
        k = context.k if self.k is None else self.k
        hits = context.search(recorded(k, context))
        return compositions_of(hits, retrieval_weights(hits, k, context))


def recorded(k: int, context: Context) -> int:
    """The number of adapters to search for, if `k` are used. A run records more adapters than the run uses."""
    return max(k, min(RECORDED, context.available))


def retrieval_weights(hits: Hits, k: int, context: Context) -> Array:
    """Weights [rows, k] of the first `k` hits of each row, by the profile's temperature T; None: 1/k (paper).

    Where the scores are cosines, w_p ∝ exp(cosine_p / T), as in LoRAuter (arXiv 2601.21795). For other scorers, whose
    scores have no unit, w_p ∝ P(p)^(1/T), with P(p) the calibrated probability that p is the input's own adapter. T = 1
    gives the probabilities themselves, scaled to sum to 1.

    Raises:
        UserError: the scorer's probabilities cannot be calibrated on this pool.
    """
    temperature = context.temperature if k > 1 else None  # the weight of a single adapter is 1
    if temperature is None:
        return weights_of(hits.scores[:, :k], None)
    try:
        return weights_of(hits.scores[:, :k], temperature * context.index().weight_unit)
    except ValueError as error:
        raise UserError(f"retrieval.temperature: {error}; leave out the temperature, or take scorer cosine") from error


def weights_of(scores: Array, temperature: float | None) -> Array:
    """Weights [rows, k] of the adapters found, from their scores [rows, k]; every row sums to 1.

    Without a temperature, w_p = 1/k (paper, section 3.2). With a temperature T, w_p = exp(s_p/T) / Σ_q exp(s_q/T),
    where the sum is over the k adapters found. T is on the scale of the scores.
    """
    if temperature is None:
        return np.full(scores.shape, 1 / scores.shape[1])
    from scipy.special import softmax

    return np.asarray(softmax(scores.astype(np.float64) / temperature, axis=1))


def compositions_of(hits: Hits, weights: Array) -> list[Composition]:
    """The first adapters of each row's hits, with their weights [rows, k]. An adapter of weight 0 is not used."""
    compositions = []
    for found, row_weights in zip(recorded_hits(hits), weights.tolist(), strict=True):
        used = {name: weight for name, weight in zip(found.adapters, row_weights, strict=False) if weight}
        scores = dict(zip(found.adapters, found.scores, strict=True))
        compositions.append(Composition(used, {name: scores[name] for name in used}, found))
    return compositions


def recorded_hits(hits: Hits) -> list[Retrieved]:
    """The hits of each row, with rounded numbers, for the results file."""
    scores = [tuple(round(score, 6) for score in row) for row in hits.scores.tolist()]
    if hits.probabilities is None:
        return [Retrieved(tuple(names), row) for names, row in zip(hits.names, scores, strict=True)]
    probabilities = [tuple(round(chance, 6) for chance in row) for row in hits.probabilities.tolist()]
    return [Retrieved(tuple(names), *row) for names, *row in zip(hits.names, scores, probabilities, strict=True)]
