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

import numpy as np

from lora_retriever.methods.base import Composition, Method, Reads, with_ood
from lora_retriever.methods.probing import probe

if TYPE_CHECKING:
    from lora_retriever.scorers import Array
    from lora_retriever.setting import Setting

CITATION = "Lee et al. 2025, arXiv 2511.07129"
PROBED: frozenset[Reads] = frozenset({"adapters", "model"})
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

    def route(self, setting: Setting) -> list[Composition]:
        """The adapters kept with their weights, the strongest first; none for a row to which no adapter responds."""
        signals = probe(setting)
        measured = signals.norm if self.signal == "norm" else signals.certainty  # [rows, adapters]
        return [strongest(row, self.top_k) for row in by_name(measured, setting)]


def by_name(measured: Array, setting: Setting) -> list[dict[str, float]]:
    """For every row its signals [rows, adapters] by adapter, without those that are 0 or masked."""
    return [
        {name: value for name, value in zip(setting.names, row, strict=True) if value > 0 and name != own}
        for row, own in zip(measured.tolist(), setting.excluded, strict=True)
    ]


def strongest(signals: dict[str, float], top_k: int) -> Composition:
    """The `top_k` adapters of the strongest signals, which are their weights, scaled to sum 1. Of equals, the first."""
    best = sorted(signals, key=lambda name: -signals[name])[:top_k]
    total = float(np.sum([signals[name] for name in best]))
    return Composition.of({name: signals[name] / total for name in best})


METHODS = with_ood(
    Method("logo", "a mixture of the adapters that respond most to the prompt", CITATION, LoGo(), reads=PROBED)
)
