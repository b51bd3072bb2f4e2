"""LoRAuter: Effective LoRA Adapter Routing using Task Representations (Dhasade et al., 2026, arXiv 2601.21795).

An input is compared with tasks rather than adapters: a task's embedding is the mean of its validation samples', and the
similarity the cosine. The adapters of the k = 3 nearest tasks are mixed with weights softmax(similarity / 0.2). Which
adapter serves a task best, the paper finds on the validation samples; in a pool of one adapter a task, as here, that is
the task's own, and the pool's samples take the place of the validation set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.top_k import RETRIEVAL, check_k, compositions_of, recorded, weights_of

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Similar:
    """The `k` adapters nearest by cosine, whatever the profile's scorer, weighted by softmax(cosine / temperature)."""

    k: int = 3
    temperature: float = 0.2

    def __post_init__(self) -> None:
        check_k(self.k)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be more than 0")

    def route(self, context: Context) -> list[Composition]:
        """The adapters found, with their weights."""
        hits = context.search(recorded(self.k, context), scorer="cosine")
        return compositions_of(hits, weights_of(hits.scores[:, : self.k], self.temperature))


METHODS = with_ood(
    Method(
        "lorauter",
        "mixture of the nearest tasks' adapters, weighted by similarity",
        "Dhasade et al. 2026, arXiv 2601.21795",
        Similar(),
        reads=RETRIEVAL,
    )
)
