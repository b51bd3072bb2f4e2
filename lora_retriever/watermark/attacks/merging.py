"""Merges of the marked adapter with two others, and the marked adapter alone with weights other than 1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lora_retriever.generation.composition import Composition
from lora_retriever.watermark.attacks.composing import with_others
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Scene
from peft_composition import Composer
from peft_composition.merges import Dare, Linear, Svd, Ties

MERGES: dict[str, Composer] = {
    "linear merge": Linear(),
    "TIES, density 0.5": Ties(),
    "DARE, density 0.5": Dare(),
    "DARE, density 0.1": Dare(density=0.1),
    "SVD merge": Svd(),
}
OTHERS = 2
"""Number of other adapters in a merge."""
WEIGHTS = (0.75, 0.5, 0.25, 0.1, -1.0)


def attacks(scene: Scene) -> Iterator[Attack]:
    """Merges with two others, then weights. TIES takes weights of 1, because the weights of TIES do not sum to 1."""
    for name, merge in MERGES.items() if len(scene.others) >= OTHERS else ():
        weight = 1.0 if isinstance(merge, Ties) else 1 / (OTHERS + 1)
        yield Attack(f"{name}, with {OTHERS}", partial(with_others, scene, merge, OTHERS, weight))
    for weight in WEIGHTS:
        yield Attack(f"weight {weight:g}", partial(_weighted, scene, weight))


def _weighted(scene: Scene, weight: float) -> list[Measured]:
    return [Measured.of(scene.ask(Composition.of({MARKED: weight})))]
