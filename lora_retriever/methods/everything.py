"""The router of methods whose gate chooses: every adapter of the pool is offered. Registers no method of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.methods.base import Composition

if TYPE_CHECKING:
    from lora_retriever.setting import Setting


@dataclass(frozen=True)
class Everything:
    """Every adapter of the pool with weight 1, but for a row's own where it is masked: a gate does the weighing."""

    def route(self, setting: Setting) -> list[Composition]:
        """The whole pool, in its order, for every row."""
        names = setting.names
        return [Composition.of({name: 1.0 for name in names if name != own}) for own in setting.excluded]
