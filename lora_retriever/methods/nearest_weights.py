"""Nearest by weights: the adapter that makes most of the prompt, found without any sample of its task.

A plain baseline of this project, described nowhere else: what can be told of the right adapter from the adapters'
weights alone. While the base reads the prompt, an adapter's score is the mean, over the prompt's tokens and the
adapter's modules, of ‖s B A x‖ / (‖s B A‖_F ‖x‖), the share of the input to which its update responds. The size of the
update does not count, nor that of the input, and so neither does the scaling. The best adapter answers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.parts.responses import PROBED, by_name, strongest

if TYPE_CHECKING:
    from lora_retriever.generation.composition import Composition
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class NearestWeights:
    """The adapter whose update responds to the largest share of the prompt."""

    def route(self, context: Context) -> list[Composition]:
        """The best adapter of every row, whole."""
        from lora_retriever.methods.parts.probing import probe

        return [strongest(row, 1) for row in by_name(probe(context).share, context)]


METHODS = with_ood(
    Method(
        "nearest_weights",
        "the adapter whose weights respond to most of the prompt, no samples needed",
        "a baseline of this project",
        NearestWeights(),
        "fusion",
        reads=PROBED,
    )
)
