"""Merges of the retrieved adapters by recipes made for merging whole models, as PEFT has them for LoRA.

The adapters are the paper's, the best k that retrieval finds; only the composer differs. The formulas are in
`peft_composition.merges`. TIES and DARE act on the factors A and B, as PEFT's do, and not on the product BA as their
papers have it: so the result stays of low rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.top_k import RETRIEVAL, TOP_K, Nearest, check_k, compositions_of, recorded, weights_of
from peft_composition.merges import Dare, Svd, Ties

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Raised:
    """The `k` adapters that retrieval finds, each with its weight to the power of `power`.

    A composer that works factor by factor weighs each by the root of a weight: 2 makes of 1/k the mean of the factors
    (1 would make k times that of k equal adapters). TIES divides by how many agree, so it wants 0: each whole.
    """

    power: int
    k: int | None = None

    def __post_init__(self) -> None:
        check_k(self.k)
        if self.power < 0:
            raise ValueError(f"power is {self.power}; it must be 0 or more")

    def route(self, context: Context) -> list[Composition]:
        """The adapters found, with their weights."""
        k = context.k if self.k is None else self.k
        hits = context.search(recorded(k, context))
        weights = weights_of(hits.scores[:, :k], context.temperature if self.power else None)  # [rows, k]
        return compositions_of(hits, weights**self.power)


METHODS = (
    *with_ood(
        Method(
            "ties",
            "the best k trimmed, with signs elected",
            "Yadav et al. 2023, arXiv 2306.01708",
            Raised(0),
            Ties(),
            reads=RETRIEVAL,
            settings=TOP_K - {"temperature"},
        )
    ),
    *with_ood(
        Method(
            "dare",
            "the parameters of the best k thinned out at random, rescaled and averaged",
            "Yu et al. 2023, arXiv 2311.03099",
            Raised(2),
            Dare(),
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
    *with_ood(
        Method(
            "svd",
            "the mixture of the best k, cut to the rank of one",
            "PEFT's add_weighted_adapter",
            Nearest(),
            Svd(),
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
)
