"""AdapterSoup as the LoraRetriever paper's baseline: the average of three adapters, the same for the whole mixed set.

AdapterSoup (Chronopoulou et al. 2023, arXiv 2302.07027) averages the parameters of the adapters whose training texts
are most similar to the texts of a new domain, by sentence embeddings. The LoraRetriever paper (arXiv 2402.09997) takes
the mixed set as the new domain, and three adapters. Neither paper says how texts and adapters are compared in this
case. Here the mean embedding of all rows' inputs is compared with the adapters' mean embeddings, by cosine, under the
profile's encoder.

So a row's answer depends on the other rows. If a row's own adapter is masked and is among the three, the next best
adapter replaces the own adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.top_k import EMBEDDED

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class AdapterSoup:
    """The `k` adapters nearest to the mean of all rows' inputs, with equal weights."""

    k: Count = 3

    def route(self, context: Context) -> list[Composition]:
        """The same composition for every row. A row whose own adapter is masked gets the best k other adapters."""
        query = context.queries.mean(axis=0, keepdims=True)  # [1, dim]
        hits = context.index("cosine").search(query, self.k + context.masked)
        scores = [round(score, 6) for score in hits.scores[0].tolist()]
        ranked = list(zip(hits.names[0], scores, strict=True))
        compositions = []
        for own in context.masked_adapters:
            similarities = dict([hit for hit in ranked if hit[0] != own][: self.k])
            compositions.append(Composition(dict.fromkeys(similarities, 1 / self.k), similarities))
        return compositions


METHODS = with_ood(
    Method(
        "adaptersoup",
        "the average of the parameters of three adapters, chosen once for all rows together",
        "Chronopoulou et al. 2023, arXiv 2302.07027",
        AdapterSoup(),
        "fusion",
        reads=EMBEDDED,
    )
)
