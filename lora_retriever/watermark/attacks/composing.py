"""Compositions of the marked adapter with others under equal weights: mixtures and fusions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lora_retriever.generation.composition import Composition
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Scene
from peft_composition import Composer

OTHERS = (1, 2, 3, 5, 10)
"""Numbers of other adapters."""


def attacks(scene: Scene) -> Iterator[Attack]:
    """The marked adapter alone, which is also a selection; then compositions with one other adapter, two other
    adapters, and so on."""
    yield Attack("alone (a selection)", lambda: [Measured.of(scene.ask(Composition.of({MARKED: 1.0})))])
    for count in OTHERS:
        for mode in ("mixture", "fusion") if count <= len(scene.others) else ():
            yield Attack(f"{mode} with {count}", partial(with_others, scene, mode, count, 1 / (count + 1)))


def with_others(scene: Scene, mode: str | Composer, count: int, weight: float) -> list[Measured]:
    """Compositions with drawn adapters, in which every adapter has the same weight."""
    return [
        Measured.of(
            scene.ask(Composition.of({MARKED: weight, **dict.fromkeys(names, weight)}), mode), note=", ".join(names)
        )
        for names in scene.drawn_others(count, "composing")
    ]
