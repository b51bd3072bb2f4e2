"""Composition of LoRA adapters for each row: every row of a batch is served by its own mixture or fusion of adapters.

The whole package uses one fact: every composition is a low-rank update. The files, in the order of the data:

- `files`, `configuration`, `matching`, `names`: read the files of an adapter, and find the modules that it adapts
- `exactness`, `fit`: refuse an adapter that cannot be composed exactly, or does not fit the base
- `checkpoint`: reads an adapter with all these checks, or checks the adapter without its tensors
- `residency`: decides which adapters are in memory
- `pairs`, `merges`, `merging`, `modes`: stack the adapters in memory, and compose one low-rank pair per row and module
- `updates`, `gates`: add pairs to the output of a module, share them between rows, or weigh adapters by token
- `hooks`: puts the updates into the forward pass
- `model`: the class that users call
- `save`, `writer`: write a composition as an ordinary PEFT checkpoint; `writer` needs no model weights of the base
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_composition.checkpoint import AdapterHeader, inspect_adapter
    from peft_composition.errors import AdapterError, AdapterMemoryError, AdapterWarning, CompositionError
    from peft_composition.gates import Gate, GateUsage, Offered, Tokens
    from peft_composition.layers import check_finite
    from peft_composition.model import ComposableModel
    from peft_composition.modes import Composer
    from peft_composition.writer import CompositionWriter

__all__ = [
    "AdapterError",
    "AdapterHeader",
    "AdapterMemoryError",
    "AdapterWarning",
    "ComposableModel",
    "Composer",
    "CompositionError",
    "CompositionWriter",
    "Gate",
    "GateUsage",
    "Offered",
    "Tokens",
    "check_finite",
    "inspect_adapter",
]

_HOMES = {
    "checkpoint": ("AdapterHeader", "inspect_adapter"),
    "errors": ("AdapterError", "AdapterMemoryError", "AdapterWarning", "CompositionError"),
    "gates": ("Gate", "GateUsage", "Offered", "Tokens"),
    "layers": ("check_finite",),
    "model": ("ComposableModel",),
    "modes": ("Composer",),
    "writer": ("CompositionWriter",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch, transformers and peft take seconds to import."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
