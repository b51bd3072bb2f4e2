"""`Answer`: the answer to one prompt, and how a gate weighed the adapters for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GateUse:
    """How a gate weighed the adapters of one row.

    Attributes:
        weights: the mean weight of each adapter over the row's tokens (prompt and answer) and over modules.
        entropy: the mean entropy of a token's weights, scaled to sum 1, in nats.
    """

    weights: dict[str, float]
    entropy: float


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        text: the answer itself.
        generated_tokens: how many tokens the model made for the answer, the EOS token included.
        gate: how the gate weighed the adapters. None: the composition has no gate.
    """

    text: str
    generated_tokens: int
    gate: GateUse | None = None
