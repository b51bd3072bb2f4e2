"""The paper's own configurations: LoraRetriever (Zhao et al., Findings of ACL 2024, arXiv 2402.09997), section 3.

Retrieve the k adapters whose samples are most similar to the input. Answer with the best adapter (selection), with the
average of their outputs (mixture), or with the average of their parameters (fusion), w_p = 1/k. The oracle (perfect
selection) takes the adapter of the row's own task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.top_k import RETRIEVAL, SCORED, TOP_K, Nearest

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context

CITATION = "Zhao et al. 2024, arXiv 2402.09997"


@dataclass(frozen=True)
class Nothing:
    """No adapter: the base model alone."""

    def route(self, context: Context) -> list[Composition]:
        """The empty composition for each row."""
        return [Composition()] * len(context.rows)


@dataclass(frozen=True)
class Own:
    """The adapter of the row's own task, the oracle."""

    def route(self, context: Context) -> list[Composition]:
        """The adapter of each row's own task, with weight 1."""
        return [Composition.of({row.task: 1.0}) for row in context.rows]


METHODS = (
    Method("base", "the base model alone", CITATION, Nothing(), reads=frozenset()),
    *with_ood(
        Method(
            "selection",
            "the best adapter that retrieval finds",
            CITATION,
            Nearest(k=1),
            "fusion",
            reads=RETRIEVAL,
            settings=SCORED,
        )
    ),
    *with_ood(
        Method(
            "fusion",
            "the average of the parameters of the best k adapters",
            CITATION,
            Nearest(),
            "fusion",
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
    *with_ood(
        Method(
            "mixture",
            "the average of the outputs of the best k adapters",
            CITATION,
            Nearest(),
            "mixture",
            reads=RETRIEVAL,
            settings=TOP_K,
        )
    ),
    Method("best_selection", "the adapter of the row's own task, the oracle", CITATION, Own()),
)
