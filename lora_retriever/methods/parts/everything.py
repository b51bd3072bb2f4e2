"""The router of methods whose gate chooses: every adapter of the pool is offered. Registers no method of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.generation.composition import Composition

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Everything:
    """Every adapter of the pool with weight 1, but a row's own with 0 where it is masked: a gate does the weighing."""

    def route(self, context: Context) -> list[Composition]:
        """The whole pool, in its order, for every row.

        A masked adapter is there with weight 0. Left out, it would be missing from batches that have no other row to
        offer it to, and what a gate prepares is kept by the set of adapters that a batch offers.
        """
        names = tuple(context.names)
        return [Composition({name: float(name != own) for name in names}) for own in context.masked_adapters]
