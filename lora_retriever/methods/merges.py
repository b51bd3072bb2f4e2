"""Merges of the retrieved adapters by TIES, DARE and SVD, with the formulas that PEFT uses for LoRA.

The adapters are the paper's, the best k that retrieval finds. The composer differs. The formulas are in
`peft_composition.merges`. TIES and DARE were described for whole models. Here, as in PEFT, TIES and DARE act on the
factors A and B, and not on the product BA, so the result stays of low rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Power
from lora_retriever.methods.parts.top_k import (
    RETRIEVAL,
    TOP_K,
    Nearest,
    compositions_of,
    recorded,
    retrieval_weights,
    weights_of,
)
from peft_composition.merges import Dare, Svd, Ties

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Raised:
    """The `k` adapters that retrieval finds, each with its weight to the power of `power`.

    A composer that merges factor by factor multiplies each factor by the square root of the weight. So with `power` 2
    the weights 1/k give the mean of the factors. TIES divides by the number of adapters whose signs agree, so TIES
    needs `power` 0: every weight is 1.
    """

    power: Power
    k: Count | None = None

    def route(self, context: Context) -> list[Composition]:
        """The adapters that retrieval finds, with their weights."""
        k = context.k if self.k is None else self.k
        hits = context.search(recorded(k, context))
        weights = retrieval_weights(hits, k, context) if self.power else weights_of(hits.scores[:, :k], None)
        return compositions_of(hits, weights**self.power)  # [rows, k]


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
            settings=TOP_K | {"seed"},
        )
    ),
    *with_ood(
        Method(
            "svd",
            "the mixture of the best k, cut to the rank of a single adapter",
            "PEFT's add_weighted_adapter",
            Nearest(),
            Svd(),
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
)
