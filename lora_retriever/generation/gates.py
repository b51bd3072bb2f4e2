"""How a gate weighed the adapters of the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from lora_retriever.generation.answer import GateUse
from peft_composition import ComposableModel


def gate_uses(model: ComposableModel, names: Sequence[str]) -> list[GateUse]:
    """How the gate of the current composition weighed the adapters `names`, for each row of the batch."""
    usage = model.gate_usage()  # [batch, adapters], [batch]
    return [
        GateUse({name: round(w, 6) for name, w in zip(names, row, strict=True)}, round(entropy, 6))
        for row, entropy in zip(usage.weights.tolist(), usage.entropy.tolist(), strict=True)
    ]
