"""Compositions of the marked adapter with others: mixtures, fusions, merges, and weights other than 1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lora_retriever.generation.composition import Composition
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Scene
from peft_composition import Composer
from peft_composition.merges import Dare, Linear, Svd, Ties

OTHERS = (1, 2, 3, 5, 10)
"""Numbers of other adapters."""
MERGES: dict[str, Composer] = {
    "linear merge": Linear(),
    "TIES, density 0.5": Ties(),
    "DARE, density 0.5": Dare(),
    "DARE, density 0.1": Dare(density=0.1),
    "SVD merge": Svd(),
}
MERGED_WITH = 2
"""Number of other adapters in a merge."""
WEIGHTS = (0.75, 0.5, 0.25, 0.1, -1.0)


def attacks(scene: Scene) -> Iterator[Attack]:
    """The marked adapter alone, with others, and with other weights. A selection is the adapter alone."""
    yield Attack("alone (a selection)", lambda: [Measured.of(scene.ask(Composition.of({MARKED: 1.0})))])
    for mode in ("mixture", "fusion"):
        for count in OTHERS:
            if count <= len(scene.others):
                yield Attack(f"{mode} with {count}", partial(_composed, scene, mode, count))
    for name, merge in MERGES.items():
        if len(scene.others) >= MERGED_WITH:
            yield Attack(f"{name}, with {MERGED_WITH}", partial(_composed, scene, merge, MERGED_WITH))
    for weight in WEIGHTS:
        yield Attack(f"weight {weight:g}", partial(_weighted, scene, weight))


def _composed(scene: Scene, mode: str | Composer, count: int) -> list[Measured]:
    """Even compositions with drawn adapters. TIES takes weights of 1, since its weights are no shares."""
    weight = 1.0 if isinstance(mode, Ties) else 1 / (count + 1)
    return [
        Measured.of(
            scene.ask(Composition.of({MARKED: weight, **dict.fromkeys(names, weight)}), mode), note=", ".join(names)
        )
        for names in scene.drawn_others(count, "composing")
    ]


def _weighted(scene: Scene, weight: float) -> list[Measured]:
    return [Measured.of(scene.ask(Composition.of({MARKED: weight})))]
