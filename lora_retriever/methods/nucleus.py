"""Nearest samples vote for their adapters, and the smallest set of adapters that together have the share `mass` of the
votes is mixed.

"Dynamic composition from a vector database", arXiv 2602.21222. The `neighbours` samples nearest to the input by cosine
are retrieved. The share of an adapter is the sum of the cosines of its retrieved samples, divided by the sum of all
retrieved samples' cosines. The adapters with the largest shares are kept until their shares sum to at least `mass`, and
the kept shares are scaled to sum to 1.

The paper's text was not available. Summaries of the paper name the retrieval of training examples, the distribution
over tasks, and the cut of this distribution to a nucleus. This project chose the votes by cosine, the number of
neighbours, the mass and the mode. A negative cosine does not vote. If a row's own adapter is masked, its samples do not
vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Share
from lora_retriever.methods.parts.top_k import EMBEDDED

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context
    from lora_retriever.retrieval.scorers import Array, Positions


@dataclass(frozen=True)
class Votes:
    """The adapters for which the `neighbours` nearest samples vote, up to a share of `mass` of the votes."""

    neighbours: Count = 20
    mass: Share = 0.9

    def route(self, context: Context) -> list[Composition]:
        """The kept adapters of every row, best first. A row for which no sample votes gets no adapter."""
        index = context.index("cosine")
        cosines, owners = index.sample_cosines(context.queries)  # [rows, samples], [samples]
        names = index.names
        compositions = []
        for row, own in zip(cosines, context.masked_adapters, strict=True):
            masked = np.array([name == own for name in names])[owners]  # [samples]
            weights = self.weights(np.where(masked, -np.inf, row), owners, len(names))  # [adapters]
            order = np.argsort(-weights, kind="stable")
            compositions.append(Composition.of({names[place]: float(weights[place]) for place in order}))
        return compositions

    def weights(self, cosines: Array, owners: Positions, adapters: int) -> Array:
        """Weights [adapters] from one input's cosines [samples] and the adapter of every sample, int [samples]."""
        nearest = np.argsort(-cosines, kind="stable")[: self.neighbours]
        votes: Array = np.bincount(owners[nearest], np.clip(cosines[nearest], 0, None), adapters).astype(np.float64)
        if not votes.any():
            return votes
        shares = votes / votes.sum()
        order = np.argsort(-shares, kind="stable")
        before = np.cumsum(shares[order]) - shares[order]  # the mass of the adapters before each adapter
        kept = order[: max(1, int((before < self.mass).sum()))]
        weights = np.zeros_like(shares)
        weights[kept] = shares[kept]
        return weights / weights.sum()


METHODS = with_ood(
    Method(
        "nucleus",
        "a mixture of the adapters of the 20 nearest samples, by their votes, without the last tenth of the votes",
        "arXiv 2602.21222",
        Votes(),
        reads=EMBEDDED,
    )
)
