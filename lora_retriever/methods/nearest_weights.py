"""Nearest by weights: the adapter whose update responds most to the prompt, found without samples of its task.

A baseline of this project, described nowhere else. This baseline shows how well the adapters' model weights alone find
the right adapter. The base reads the prompt. An adapter's score is the mean, over the prompt's tokens and the adapter's
modules, of ‖s B A x‖ / (‖s B A‖_F ‖x‖), the share of the input to which the update responds. The size of the update,
its scaling s, and the size of the input do not count. The row is answered with the best adapter.
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
        """The best adapter of every row, with weight 1."""
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
