"""Baselines for routers: equal weights for all adapters, and random adapters.

Neither method reads the meaning of inputs.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.generation.composition import Composition
from lora_retriever.methods.base import Method, with_ood
from lora_retriever.methods.options import Count

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Alike:
    """Every adapter of the pool with weight 1/P, or 1/(P - 1) if the row's own adapter is masked."""

    def route(self, context: Context) -> list[Composition]:
        """Equal weights for all adapters that are not masked."""
        allowed = ([name for name in context.names if name != own] for own in context.masked_adapters)
        return [Composition.of({name: 1 / len(names) for name in names}) for names in allowed]


@dataclass(frozen=True)
class Drawn:
    """`k` adapters drawn for every row, with weight 1/k. None: the profile's k.

    A draw depends on the seed, the row's id and the row's input, and not on other rows. With a smaller k, the first k
    of the adapters that a larger k draws are drawn. If the row's own adapter is masked, only this adapter is replaced.
    """

    k: Count | None = None

    def route(self, context: Context) -> list[Composition]:
        """The drawn adapters of each row."""
        k = context.k if self.k is None else self.k
        names, compositions = sorted(context.names), []
        for row, own in zip(context.rows, context.masked_adapters, strict=True):
            # The seed is a text. Python's random hashes the text by SHA-512, so every process draws the same.
            order = random.Random(f"{context.seed} {row.id} {row.inputs}").sample(names, len(names))
            drawn = [name for name in order if name != own][:k]
            compositions.append(Composition.of(dict.fromkeys(drawn, 1 / k)))
        return compositions


METHODS = (
    *with_ood(
        Method(
            "uniform",
            "the average of the outputs of all adapters",
            "a floor of every router",
            Alike(),
        )
    ),
    *with_ood(
        Method(
            "random",
            "the average of the outputs of k adapters drawn for each row",
            "a floor of every router",
            Drawn(),
            settings=frozenset({"k", "seed"}),
        )
    ),
)
