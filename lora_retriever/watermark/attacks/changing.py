"""Changes of the marked adapter's numbers: pruning, rounding to few bits, and cutting the rank."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from lora_retriever.generation.composition import Composition
from lora_retriever.watermark.attacks.scene import MARKED, Attack, Measured, Scene
from peft_composition.merges import Svd

PRUNED = (0.1, 0.3, 0.5, 0.7)
"""Shares of the numbers that are set to zero, the smallest first."""
BITS = (8, 4)


def attacks(scene: Scene) -> Iterator[Attack]:
    """Pruning, rounding, and lower ranks."""
    factors = scene.factors()
    for share in PRUNED:
        yield Attack(f"pruned by {100 * share:.0f} %", partial(_changed, scene, partial(pruned, share=share)))
    for bits in BITS:
        yield Attack(f"int{bits}", partial(_changed, scene, partial(rounded, bits=bits)))
    rank = max(len(down) for down in factors.down.values())
    for lower in sorted({rank // 2, rank // 4, 1} - {0, rank}, reverse=True):
        yield Attack(f"rank {lower} of {rank}", partial(_cut, scene, lower))


def pruned(tensor: Tensor, share: float) -> Tensor:
    """A matrix whose ⌊share · numbers⌋ smallest numbers by magnitude are zero."""
    count = int(share * tensor.numel())
    if count == 0:
        return tensor.clone()
    smallest = tensor.abs().flatten().topk(count, largest=False).indices
    kept = tensor.clone().flatten()
    kept[smallest] = 0
    return kept.view_as(tensor)


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """A matrix rounded to signed integers of `bits` bits, with one scale for each row: its largest magnitude."""
    largest = 2 ** (bits - 1) - 1
    scale = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest  # [rows, 1]
    return (tensor / scale).round().clamp(-largest, largest) * scale


def _changed(scene: Scene, change: partial[Tensor]) -> list[Measured]:
    return [Measured.of(scene.ask_changed(scene.factors().changed(change)))]


def _cut(scene: Scene, rank: int) -> list[Measured]:
    return [Measured.of(scene.ask(Composition.of({MARKED: 1.0}), Svd(rank)))]
