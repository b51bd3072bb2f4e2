"""LoRAuter: Effective LoRA Adapter Routing using Task Representations (Dhasade et al., 2026, arXiv 2601.21795).

An input is compared with tasks and not with adapters. A task's embedding is the mean embedding of its validation
samples, and the similarity is the cosine. The adapters of the k = 3 nearest tasks are mixed with the weights
softmax(similarity / 0.2). The paper finds the best adapter of a task on the validation samples. Here the pool has one
adapter for each task, which is the best adapter of the task. The pool's samples take the place of the validation
samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count, Positive
from lora_retriever.methods.parts.top_k import EMBEDDED, compositions_of, recorded, weights_of

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Similar:
    """The `k` adapters nearest by cosine under any profile, weighted by softmax(cosine / temperature)."""

    k: Count = 3
    temperature: Positive = 0.2

    def route(self, context: Context) -> list[Composition]:
        """The adapters that the search finds, with their weights."""
        hits = context.search(recorded(self.k, context), scorer="cosine")
        return compositions_of(hits, weights_of(hits.scores[:, : self.k], self.temperature))


METHODS = with_ood(
    Method(
        "lorauter",
        "mixture of the nearest tasks' adapters, weighted by similarity",
        "Dhasade et al. 2026, arXiv 2601.21795",
        Similar(),
        reads=EMBEDDED,
    )
)
