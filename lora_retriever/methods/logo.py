"""LoGo: a mixture of the adapters that respond most to the prompt (Lee et al. 2025, arXiv 2511.07129).

One pass reads the prompt, and every adapter's output o for its last token is taken at the query projection of the last
block. Its norm is the adapter's signal, or 1 / the entropy of softmax(o). The `top_k` adapters of the strongest signals
are kept, with the signals, scaled to sum to 1, as weights of their outputs in the whole answer.

From the authors' code (github.com/archon159/LoGo) are its defaults, the norm and 20 adapters (of a pool of 260), the
module, and the small number that is added to an entropy. Two things are otherwise here. Their code takes the block's
input before its layer norm, which the projection does not see; here it is the projection's own input. And the pass runs
under the adapters that happen to be active, those of the row before; here it is the base model's, so that a row's route
does not depend on other rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.responses import PROBED, by_name, strongest

if TYPE_CHECKING:
    from lora_retriever.generation.composition import Composition
    from lora_retriever.methods.context import Context

CITATION = "Lee et al. 2025, arXiv 2511.07129"
Signal = Literal["norm", "entropy"]


@dataclass(frozen=True)
class LoGo:
    """The `top_k` adapters of the strongest signals, at most; fewer where the pool has fewer."""

    signal: Signal = "norm"
    top_k: int = 20

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal):
            raise ValueError(f"signal is {self.signal!r}; choose one of: {', '.join(get_args(Signal))}")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; a row needs one adapter at least")

    def route(self, context: Context) -> list[Composition]:
        """The adapters kept with their weights, the strongest first; none for a row to which no adapter responds."""
        from lora_retriever.methods.parts.probing import probe

        signals = probe(context)
        measured = signals.norm if self.signal == "norm" else signals.certainty  # [rows, adapters]
        return [strongest(row, self.top_k) for row in by_name(measured, context)]


METHODS = with_ood(
    Method("logo", "a mixture of the adapters that respond most to the prompt", CITATION, LoGo(), reads=PROBED)
)
