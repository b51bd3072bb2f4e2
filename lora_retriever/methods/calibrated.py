"""This project's method: mixtures weighted by calibrated probabilities of retrieval.

Two probabilities are calibrated on the pool's samples, and each sample is scored as if the pool did not have the
sample: c, the probability that the input's own adapter is in the pool (`AdapterIndex.presence`), and P(p), the
probability that this adapter is p, if it is in the pool (`Hits.probabilities`). The weights are

    w_p = t c · P(p) + (1 − t c) · 1/m for the m nearest.

So an input that is recognised gets its own adapter with nearly the whole weight, and an unknown input gets the average
of the nearest adapters. w is the expectation over the two cases "the own adapter is in the pool" and "it is not". The
user does not have to say which case holds. t and m were chosen by the metric scores of answers to pool samples that no
adapter was trained on, both with their own adapters and with masked own adapters (docs/results/methods-gemma-270m.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Share
from lora_retriever.methods.parts.presence import search_with_presence
from lora_retriever.methods.parts.top_k import RETRIEVAL, SCORED, compositions_of

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.scorers import Array


@dataclass(frozen=True)
class Calibrated:
    """Weights by calibrated probabilities.

    Attributes:
        trust: t, the share of the weight that P(p) distributes if c is 1.
        nearest: m, the number of adapters that share the rest of the weight.
        least: minimum weight of an adapter. Smaller weights become 0, and the remaining weights are scaled to sum to 1.
        floor: minimum c of an input that gets adapters. An input with a smaller c gets no adapter.
    """

    trust: Share = 1.0
    nearest: Count = 3
    least: float = 0.05
    floor: float = 0.0

    def route(self, context: Context) -> list[Composition]:
        """The adapters found, with their weights.

        Raises:
            UserError: the pool is too small, or the scorer cannot leave a sample out.
        """
        hits, probabilities, presence = search_with_presence("calibrated", context, self.nearest)
        return compositions_of(hits, self.weights(probabilities, presence))

    def weights(self, probabilities: Array, presence: Array) -> Array:
        """Weights [rows, found] from the probabilities [rows, found] of the adapters, best first, and c [rows]."""
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
        "a mixture of the nearest, weighted by the calibrated probability that each is the right one",
        "this project, docs/results/methods-gemma-270m.md",
        Calibrated(),
        reads=RETRIEVAL,
        settings=SCORED,
    )
)
