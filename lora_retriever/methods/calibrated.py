"""Ours: mixtures weighted by what retrieval knows, and by how sure it is that it knows anything.

Two probabilities are calibrated on the pool's samples alone, each scored as if it had been left out: c, that the
input's own adapter is in the pool at all (`AdapterIndex.presence`), and P(p), that it is p if it is
(`Hits.probabilities`). The weights are

    w_p = t c · P(p) + (1 − t c) · 1/m for the m nearest,

so that an input which is recognised gets its adapter alone, or nearly, and a strange one the average of the nearest: w
is the expectation over "it is there, and best" and "it is not". The user need not say which of the two it is. t and m
were chosen by how answers to pool samples score that no adapter was trained on, with their own adapters and with these
masked (docs/results/methods-gemma-270m.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.top_k import RECORDED, RETRIEVAL, SCORED, check_k, compositions_of

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.scorers import Array


@dataclass(frozen=True)
class Calibrated:
    """Weights by calibrated probabilities.

    Attributes:
        trust: t, the share of the whole that a recognised input gives to the adapter it is recognised by.
        nearest: m, how many adapters share the rest.
        least: weights below this are dropped, and the others scaled to sum to 1.
        floor: an input for which c is below this gets no adapter.
    """

    trust: float = 1.0
    nearest: int = 3
    least: float = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_k(self.nearest)
        if not 0 <= self.trust <= 1:
            raise ValueError(f"trust is {self.trust}; it must be from 0 to 1")

    def route(self, context: Context) -> list[Composition]:
        """The adapters found, with their weights.

        Raises:
            UserError: the pool is too small, or the scorer cannot leave a sample out.
        """
        try:
            hits = context.search(min(max(RECORDED, self.nearest), context.available))
            presence = context.index().presence(hits)  # [rows]
        except ValueError as error:
            raise UserError(f"method calibrated: {error}") from error
        if hits.probabilities is None or presence is None:
            raise UserError(f"method calibrated: scorer {context.scorer} cannot leave a sample of this pool out")
        return compositions_of(hits, self.weights(hits.probabilities, presence))

    def weights(self, probabilities: Array, presence: Array) -> Array:
        """Weights [rows, found] from the probabilities [rows, found] of what was found, best first, and c [rows]."""
        recognised = self.trust * presence[:, None]  # [rows, 1]
        nearest = np.zeros(probabilities.shape)
        nearest[:, : self.nearest] = 1 / min(self.nearest, probabilities.shape[1])
        weights = recognised * probabilities + (1 - recognised) * nearest  # [rows, found]
        weights = np.where(weights >= np.minimum(self.least, weights.max(axis=1, keepdims=True)), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
        return np.where(presence[:, None] >= self.floor, weights, 0)


METHODS = with_ood(
    Method(
        "calibrated",
        "a mixture of the nearest, the more of one the surer it is the right one",
        "ours, docs/results/methods-gemma-270m.md",
        Calibrated(),
        reads=RETRIEVAL,
        settings=SCORED,
    )
)
