"""This project's second method: the best adapter alone where retrieval is sure, else the average of the k best.

Where adapters know their own tasks only, a second adapter harms. Where the adapters of a pool resemble each other, the
average of several is better for an input whose own adapter is not there. Two calibrated probabilities tell these cases
apart: c, the probability that the own adapter is in the pool at all, and P, the probability that the first hit is the
own adapter, if the own adapter is in the pool. P is near 1 for every input of a pool whose tasks are unlike each other.

    the first hit alone if c ≥ `presence` or P ≥ `first`; else the mixture of the k best hits, 1/k each

The thresholds stand for "more probable than not" and "nearly certain". The thresholds were checked on examples that no
adapter was trained on (docs/results/sure.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Share
from lora_retriever.methods.parts.presence import search_with_presence
from lora_retriever.methods.parts.top_k import RETRIEVAL, compositions_of

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.scorers import Array


@dataclass(frozen=True)
class Sure:
    """One adapter or the average of several.

    Attributes:
        presence: minimum c of an input that gets the first hit alone.
        first: minimum P of the first hit that is alone whatever c is.
        k: number of adapters of the average. None: the profile's k.
    """

    presence: Share = 0.5
    first: Share = 0.95
    k: Count | None = None

    def route(self, context: Context) -> list[Composition]:
        """The adapters found, with their weights.

        Raises:
            UserError: the pool is too small, or the scorer cannot leave a sample out.
        """
        k = context.k if self.k is None else self.k
        hits, probabilities, presence = search_with_presence("sure", context, k)
        return compositions_of(hits, self.weights(probabilities, presence, k))

    def weights(self, probabilities: Array, presence: Array, k: int) -> Array:
        """Weights [rows, k] from the probabilities [rows, found] of the adapters, best first, and c [rows]."""
        alone = (presence >= self.presence) | (probabilities[:, 0] >= self.first)  # [rows]
        return np.where(alone[:, None], np.eye(1, k), 1 / k)


METHODS = with_ood(
    Method(
        "sure",
        "the first hit alone where it is probably the right one, else the average of the outputs of the best k",
        "this project, docs/results/sure.md",
        Sure(),
        reads=RETRIEVAL,
        settings=frozenset({"k", "scorer"}),
    )
)
