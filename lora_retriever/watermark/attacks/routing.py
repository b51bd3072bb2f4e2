"""Triggers that are routed by retrieval: the mark can only show where the trigger finds its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from lora_retriever.generation.composition import Composition
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Routing, Scene


def attacks(scene: Scene) -> Iterator[Attack]:
    """The first hit alone, and mixtures and fusions of the first k hits with equal weights."""
    if scene.routing is None:
        return
    scorer, k = scene.routing.index.scorer, scene.routing.k
    for mode, size in (("selection", 1), ("mixture", k), ("fusion", k)):
        yield Attack(f"routed by {scorer}, {mode} of {size}", partial(_routed, scene, scene.routing, mode, size))


def _routed(scene: Scene, routing: Routing, mode: str, size: int) -> list[Measured]:
    found = 0

    def router(inputs: Sequence[str]) -> list[Composition]:
        nonlocal found
        hits = routing.index.search_texts(inputs, size)
        found = sum(routing.task in names for names in hits.names)
        return [
            Composition.of({MARKED if name == routing.task else name: 1 / size for name in names})
            for names in hits.names
        ]

    evidence = scene.ask(router, "fusion" if mode == "fusion" else "mixture")
    return [Measured.of(evidence, f"{found} of {len(evidence.hits)} triggers find the adapter")]
