"""Helpers of the tests of MoE and SMEAR: tiny experts, random matrices, and a dense reference in float64.

The reference uses nothing of the package under test: every row is read alone and without padding by a copy of the base.
Each module of the copy adds an update, which a plain function computes from the module's input, with full matrices A
and B read by upstream PEFT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from composition_cases import Parts, parts_of, tiny_llama, write_adapter
from torch import Tensor

from lora_retriever.methods.parts.gate_training import Matrices
from peft_composition import ComposableModel

EXPERTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank2": {"r": 2, "lora_alpha": 12},
    "other_targets": {"target_modules": ["v_proj", "down_proj"]},
    "patterns": {"rank_pattern": {"q_proj": 6}, "lora_alpha": 4},
}
Adapter = tuple[Tensor, Tensor, float]  # A [r, d_in], B [d_out, r], scaling
Added = Callable[
    [Tensor, Tensor, list[Adapter | None]], Tensor
]  # x [n, d_in], G, experts (None: not offered) -> [n, d]


class Case:
    """A tiny Llama in float64 with experts that differ in rank, scaling and targets, and random matrices."""

    def __init__(self, folder: Path) -> None:
        self.base = tiny_llama().double()
        self.model = ComposableModel(deepcopy(self.base))
        self.parts: dict[str, Parts] = {}
        for seed, (name, settings) in enumerate(EXPERTS.items()):
            write_adapter(folder / name, self.base, seed, **settings)
            self.model.load_adapter(folder / name, name=name)
            self.parts[name] = parts_of(folder / name, self.base)
        draw = torch.Generator().manual_seed(7)
        modules = sorted({module for parts in self.parts.values() for module in parts})
        self.by_module = {
            module: torch.randn(
                len(EXPERTS), self.base.get_submodule(module).in_features, generator=draw, dtype=torch.float64
            )
            for module in modules
        }
        self.matrices = Matrices("of the test", tuple(EXPERTS), self.by_module)

    def dense(self, offered: Sequence[float], added: Added) -> Any:
        """A copy of the base whose modules add the result of `added`; `offered` are one row's weights, 0 or 1."""
        model = deepcopy(self.base)
        for name, matrix in self.by_module.items():
            experts = [
                self.parts[expert].get(name) if weight else None
                for expert, weight in zip(EXPERTS, offered, strict=True)
            ]
            module = model.get_submodule(name)
            module.forward = _added_to(module.forward, matrix, experts, added)
        return model


def _added_to(forward: Any, matrix: Tensor, experts: list[Adapter | None], added: Added) -> Callable[[Tensor], Tensor]:
    def dense_forward(x: Tensor) -> Tensor:
        return forward(x) + added(x[0], matrix, experts)[None]  # one row: [1, n, d_out]

    return dense_forward


def softmax(scores: dict[int, float]) -> dict[int, float]:
    """The softmax of a few numbers, by name."""
    powers = {name: torch.tensor(score, dtype=torch.float64).exp().item() for name, score in scores.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows as a batch, padded on the left: ids, mask and positions."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def greedy(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """The continuation, every token from a full pass over all before it."""
    sequence = list(prompt)
    for _ in range(tokens):
        sequence.append(int(model(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
    return sequence[len(prompt) :]


def until(tokens: list[int], end: int) -> list[int]:
    """The tokens up to the first EOS token, included."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
