"""Per-sample composition of LoRA adapters: each row of a batch is served by its own mixture or fusion.

One idea carries the package: every composition is a low-rank update. `checkpoint` reads an adapter and `exactness`
refuses what cannot be composed exactly; `residency` says which adapters are in memory; `pairs` stacks these and makes,
once per batch, one low-rank pair per row and module; `updates` adds them, or has rows share what they can, or weighs
adapters by token as `gates` describe; `hooks` puts that into the forward pass; `model` is the face of it all; `save`
writes a composition as an ordinary PEFT checkpoint, and `writer` does so without the base's weights.
"""

from peft_composition.errors import AdapterError, AdapterMemoryError, CompositionError
from peft_composition.gates import Gate, GateUsage, Offered, Tokens
from peft_composition.model import ComposableModel
from peft_composition.modes import Composer
from peft_composition.writer import CompositionWriter

__all__ = [
    "AdapterError",
    "AdapterMemoryError",
    "ComposableModel",
    "Composer",
    "CompositionError",
    "CompositionWriter",
    "Gate",
    "GateUsage",
    "Offered",
    "Tokens",
]
