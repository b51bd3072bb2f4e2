"""False alarms: suspects without the mark, and keys that the marked adapter does not know."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from lora_retriever.generation.composition import Composition
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Scene
from lora_retriever.watermark.local import LocalSuspect
from lora_retriever.watermark.suspects import verify

COMPOSED = 3
"""Number of unmarked adapters in a composition."""


def attacks(scene: Scene) -> Iterator[Attack]:
    """The base, every unmarked adapter, compositions of unmarked adapters, and decoy keys on the marked adapter."""
    yield Attack("base", lambda: [Measured.of(scene.ask(Composition()))])
    unmarked = [*([scene.unmarked] if scene.unmarked else []), *scene.others]
    if unmarked:
        yield Attack("unmarked adapters", partial(_each, scene, [[name] for name in unmarked], "mixture"))
    if len(scene.others) >= COMPOSED:
        for mode in ("mixture", "fusion"):
            drawn = scene.drawn_others(COMPOSED, "innocents")
            yield Attack(f"unmarked {mode}s of {COMPOSED}", partial(_each, scene, drawn, mode))
    if scene.decoys:
        yield Attack("decoy keys", partial(_decoys, scene))


def _each(scene: Scene, compositions: list[list[str]], mode: str) -> list[Measured]:
    return [
        Measured.of(scene.ask(Composition.of(dict.fromkeys(names, 1 / len(names))), mode), ", ".join(names))
        for names in compositions
    ]


def _decoys(scene: Scene) -> list[Measured]:
    suspect = LocalSuspect("marked", scene.generator, Composition.of({MARKED: 1.0}))
    return [Measured.of(verify(scene.key.decoy(number), suspect), f"decoy {number}") for number in range(scene.decoys)]
