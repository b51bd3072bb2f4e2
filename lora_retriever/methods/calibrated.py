"""Ours: mixtures weighted by what retrieval knows, and by how sure it is that it knows anything.

Two probabilities are calibrated on the pool's samples alone, each scored as if it had been left out: c, that the
input's own adapter is in the pool at all (`AdapterIndex.presence`), and P(p), that it is p if it is
(`Hits.probabilities`). Where the own adapter is there, it is the best; where it is not, the average of the nearest ones
is. So the weights are the expectation over both cases,

    w_p = c · P(p) + (1 − c) · 1/m for the m nearest,

and what is left below `least` of the whole is dropped: an input that is recognised is answered by a single adapter, a
strange one by a mixture. The user need not say which of the two it is: the paper's selection is good at the one, its
mixture at the other. m was chosen on the pool as well, by the loss of its samples' answers with their own adapter
masked (docs/results/methods-gemma-270m.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_retriever.errors import UserError
from lora_retriever.methods.base import Composition, Method, with_ood
from lora_retriever.methods.paper import RECORDED, RETRIEVAL, SCORED, check_k, compositions_of

if TYPE_CHECKING:
    from lora_retriever.scorers import Array
    from lora_retriever.setting import Setting


@dataclass(frozen=True)
class Calibrated:
    """Weights by calibrated probabilities.

    Attributes:
        nearest: m, how many adapters answer an input whose own one is not there.
        least: weights below this are dropped, and the others scaled to sum to 1.
        sharing: whether c is used at all; without it, w_p = P(p).
        floor: an input for which c is below this gets no adapter.
    """

    nearest: int = 8
    least: float = 0.05
    sharing: bool = True
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_k(self.nearest)

    def route(self, setting: Setting) -> list[Composition]:
        """The adapters found, with their weights.

        Raises:
            UserError: the pool is too small, or the scorer cannot leave a sample out.
        """
        try:
            hits = setting.search(min(max(RECORDED, self.nearest), setting.available))
            presence = setting.index().presence(hits)  # [rows]
        except ValueError as error:
            raise UserError(f"method calibrated: {error}") from error
        if hits.probabilities is None or presence is None:
            raise UserError(f"method calibrated: scorer {setting.scorer} cannot leave a sample of this pool out")
        return compositions_of(hits, self.weights(hits.probabilities, presence))

    def weights(self, probabilities: Array, presence: Array) -> Array:
        """Weights [rows, found] from the probabilities [rows, found] of what was found, best first, and c [rows]."""
        there = presence[:, None] if self.sharing else np.ones((len(presence), 1))
        nearest = np.zeros(probabilities.shape)
        nearest[:, : self.nearest] = 1 / min(self.nearest, probabilities.shape[1])
        weights = there * probabilities + (1 - there) * nearest  # [rows, found]
        weights = np.where(weights >= np.minimum(self.least, weights.max(axis=1, keepdims=True)), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
        return np.where(presence[:, None] >= self.floor, weights, 0)


METHODS = with_ood(
    Method(
        "calibrated",
        "one adapter where retrieval is sure, a mixture where it is not",
        "ours, docs/results/methods-gemma-270m.md",
        Calibrated(),
        reads=RETRIEVAL,
        settings=SCORED,
    )
)
