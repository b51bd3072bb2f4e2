"""The router of methods whose gate chooses: every adapter of the pool is offered. Registers no method of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.generation.composition import Composition

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Everything:
    """Every adapter of the pool with weight 1, and masked adapters with weight 0. A gate weighs the adapters."""

    def route(self, context: Context) -> list[Composition]:
        """The whole pool, in its order, for every row.

        A masked adapter is named with weight 0. The prepared state of a gate is kept for each set of adapters that
        batches offer. If masked adapters were left out, the sets would differ from batch to batch.
        """
        names = tuple(context.names)
        return [Composition({name: float(name != own) for name in names}) for own in context.masked_adapters]
