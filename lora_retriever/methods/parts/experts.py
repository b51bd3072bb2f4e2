"""Experts, and the options of the training that learns to weigh them: shared by the MoE baselines and SMEAR.

The learned baselines of the LoraRetriever paper (arXiv 2402.09997) take one adapter at random from every cluster of
tasks (a pool's `domain`) as an *expert*. At every module a linear layer G [experts, d_in] scores the experts by the
module's input; each method turns these scores into weights in its own way. `gate_training` trains the layers.

The papers call such a layer a router. In this project a router gives whole rows their adapters, and a gate weighs the
adapters by token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lora_retriever.data.rows import PoolEntry
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.options import Count, Positive

if TYPE_CHECKING:
    from lora_retriever.methods.context import Context


@dataclass(frozen=True)
class Experts:
    """One adapter of every domain, drawn with the seed and offered to every row. A gate weighs these experts."""

    def route(self, context: Context) -> list[Composition]:
        """The experts, each with weight 1. A row whose own adapter is masked does not get this expert."""
        experts = experts_of(context.pool, context.seed)
        return [Composition.of({name: 1.0 for name in experts if name != own}) for own in context.masked_adapters]


def experts_of(pool: Sequence[PoolEntry], seed: int) -> tuple[str, ...]:
    """One adapter of every domain, drawn with the seed, in the pool's order (the order of loading)."""
    draw = random.Random(seed)
    domains: dict[str, list[str]] = {}
    for entry in pool:
        domains.setdefault(entry.domain, []).append(entry.model_name)
    drawn = {draw.choice(names) for names in domains.values()}
    return tuple(entry.model_name for entry in pool if entry.model_name in drawn)


@dataclass(frozen=True)
class Training:
    """How the matrices are trained: the options that all learned gates share.

    Attributes:
        samples: maximum number of samples of each task. 20 is the paper's number.
        epochs: number of times that each sample is seen.
        learning_rate: AdamW's rate is this number divided by the module's d_in, and falls linearly to 0. Adam moves
            every parameter by about its rate, and so a score G x by about the rate times d_in: one value suits all
            widths.
        batch_size: number of samples in a step. The number is small, because the backward pass needs all activations of
            the base.
        max_tokens: maximum length of a prompt, in tokens, to bound the memory; longer prompts are cut as at evaluation.
            None: the profile's `max_prompt_tokens`.
    """

    samples: Count = 20
    epochs: Count = 2
    learning_rate: Positive = 0.5
    batch_size: Count = 4
    max_tokens: Count | None = None

    @property
    def options(self) -> Training:
        """The options of the training alone, without the options of the gate."""
        return Training(**{option.name: getattr(self, option.name) for option in fields(Training)})
