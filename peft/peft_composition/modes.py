"""The ways of composing, by the names that users give them.

A composer makes, from one module's resident adapters and the rows' weights, one pair per row. A new one is a function
(or, if it has options, a frozen dataclass that can be called) and its line here.
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
    """Return the composer of a name, or one that is given itself. Raises `CompositionError` for an unknown name."""
    if not isinstance(mode, str):
        return mode
    if mode not in MODES:
        raise CompositionError(f"unknown mode {mode!r}; choose one of: {', '.join(MODES)}")
    return MODES[mode]
