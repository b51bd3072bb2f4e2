"""This project's method for strong adapters: as few adapters as the probabilities allow, the best at full strength.

P(p) is the calibrated probability that adapter p is the input's own, if the pool has the own adapter
(`Hits.probabilities`), and c is the probability that the pool has it (`AdapterIndex.presence`). The most probable
adapters are kept until their P sums to at least `mass`, and at most `most` of them. Their weights are

    w_p = P(p) / (Σ_q P(q)^n)^(1/n) over the adapters kept,

so n = 1 gives weights that sum to 1, and a large n gives the best adapter a weight of nearly 1. A third of a strong
adapter is too little of the adapter, so a mixture whose weights sum to 1 loses what each of its adapters can do
(docs/results/instructions-gemma-270m.md). An input that is recognised has one adapter with weight 1: `selection`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Positive, Share
from lora_retriever.methods.parts.top_k import RECORDED, RETRIEVAL, SCORED, compositions_of

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.scorers import Array


@dataclass(frozen=True)
class Confident:
    """The adapters that probably include the own adapter, the best one the strongest.

    Attributes:
        mass: the probability that the kept adapters have at least together.
        most: maximum number of adapters.
        norm: n, the norm of the weights that is 1.
        floor: minimum c of an input that gets adapters. An input below gets none.
    """

    mass: Share = 0.5
    most: Count = 3
    norm: Positive = 2.0
    floor: Share = 0.0

    def route(self, context: Context) -> list[Composition]:
        """The kept adapters, with their weights.

        Raises:
            UserError: the pool is too small, or the scorer cannot leave a sample out.
        """
        try:
            hits = context.search(min(max(RECORDED, self.most), context.available))
            presence = context.index().presence(hits)  # [rows]
        except ValueError as error:
            raise UserError(f"method confident: {error}") from error
        if hits.probabilities is None or presence is None:
            raise UserError(f"method confident: scorer {context.scorer} cannot leave a sample of this pool out")
        return compositions_of(hits, self.weights(hits.probabilities, presence))

    def weights(self, probabilities: Array, presence: Array) -> Array:
        """Weights [rows, found] from the probabilities [rows, found] of the adapters, best first, and c [rows]."""
        before = np.cumsum(probabilities, axis=1) - probabilities  # the probability of the adapters before each
        kept = (before < self.mass) & (np.arange(probabilities.shape[1]) < self.most)  # [rows, found]
        kept[:, 0] = True
        shares = np.where(kept, probabilities, 0) / probabilities[:, :1]  # the best has 1, so no power is 0
        weights = shares / (shares**self.norm).sum(axis=1, keepdims=True) ** (1 / self.norm)
        return np.where(presence[:, None] >= self.floor, weights, 0)


METHODS = with_ood(
    Method(
        "confident",
        "the fewest adapters that probably include the right one, the best one at nearly full strength",
        "this project, docs/results/instructions-gemma-270m.md",
        Confident(),
        reads=RETRIEVAL,
        settings=SCORED,
    )
)
