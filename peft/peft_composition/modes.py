"""The modes: composers by the names that users give.

A composer makes one pair per row from the adapters in memory at one module and from the rows' weights. A new composer
is a function, or a frozen dataclass with `__call__` if it has options, and a line in `MODES`.
"""

from __future__ import annotations

from collections.abc import Callable

from peft_composition.errors import CompositionError
from peft_composition.merges import Dare, Linear, Svd, Ties
from peft_composition.pairs import ActiveSlots, ModuleStack, Pair, fusion_pair, mixture_pair

Composer = Callable[[ModuleStack, ActiveSlots], Pair]

MODES: dict[str, Composer] = {
    "mixture": mixture_pair,
    "fusion": fusion_pair,
    "linear": Linear(),
    "ties": Ties(),
    "dare": Dare(),
    "svd": Svd(),
}


def composer_of(mode: str | Composer) -> Composer:
    """Return the composer of a name, or `mode` if it is a composer. Raises `CompositionError` for an unknown name."""
    if not isinstance(mode, str):
        return mode
    if mode not in MODES:
        raise CompositionError(f"unknown mode {mode!r}; choose one of: {', '.join(MODES)}")
    return MODES[mode]
