"""LoGo: a mixture of the adapters that respond most to the prompt (Lee et al. 2025, arXiv 2511.07129).

One pass reads the prompt. Every adapter's output o for the last token is measured at the query projection of the last
block. The adapter's signal is the norm of o, or 1 / the entropy of softmax(o). The `top_k` adapters with the strongest
signals are kept. Their signals, scaled to sum to 1, are the weights of their outputs for the whole answer.

The defaults (the norm, and 20 adapters of a pool of 260), the module, and the small number that is added to an entropy
come from the authors' code (github.com/archon159/LoGo). Two things differ. Their code takes the block's input before
the layer norm, which is not the projection's input; here the projection's own input is taken. Their pass runs with the
adapters of the row before. Here the pass runs with the base model alone, so a row's composition does not depend on
other rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count
from lora_retriever.methods.parts.responses import PROBED, by_name, strongest

if TYPE_CHECKING:
    from lora_retriever.generation.composition import Composition
    from lora_retriever.methods.context import Context

CITATION = "Lee et al. 2025, arXiv 2511.07129"
Signal = Literal["norm", "entropy"]


@dataclass(frozen=True)
class LoGo:
    """The `top_k` adapters with the strongest signals, or all adapters of a smaller pool."""

    signal: Signal = "norm"
    top_k: Count = 20

    def route(self, context: Context) -> list[Composition]:
        """The kept adapters with their weights, the strongest first. A row to which no adapter responds gets no
        adapter."""
        from lora_retriever.methods.parts.probing import probe

        signals = probe(context)
        measured = signals.norm if self.signal == "norm" else signals.certainty  # [rows, adapters]
        return [strongest(row, self.top_k) for row in by_name(measured, context)]


METHODS = with_ood(
    Method("logo", "a mixture of the adapters that respond most to the prompt", CITATION, LoGo(), reads=PROBED)
)
