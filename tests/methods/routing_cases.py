"""A tiny model with adapters that differ, and token-level routing computed by loops, which the gates' tests share.

The reference uses no gates: an adapter's update is multiplied out into a full matrix, and each row runs alone,
without padding, through a copy of the base whose modules add the updates token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from composition_cases import Parts, parts_of, tiny_llama, write_adapter
from torch import Tensor, nn

from peft_composition import ComposableModel, Gate

POOL: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha32": {"lora_alpha": 32},
    "rank2": {"r": 2},
    "rank6": {"r": 6, "lora_alpha": 6},
    "other_targets": {"target_modules": ["k_proj", "v_proj", "down_proj"]},
}
ROWS = [[7, 3, 9, 21, 4, 40, 2], [5, 6], [11, 30, 8, 8]]
"""Token ids of three prompts that differ in length."""

# From the updates of the offered adapters and a token's input x [d_in] to the weights of these adapters.
Weigh = Callable[[Mapping[str, Tensor], Tensor], Mapping[str, float]]


def model_with_pool(
    folder: Path, pool: Mapping[str, dict[str, Any]] = POOL
) -> tuple[ComposableModel, dict[str, Parts]]:
    """A random Llama in float64 with a pool of adapters, and the same adapters read by upstream PEFT."""
    base = tiny_llama().double()
    folders = {name: write_adapter(folder / name, base, 10 + i, **pool[name]) for i, name in enumerate(pool)}
    model = ComposableModel(base)
    for name, path in folders.items():
        model.load_adapter(path, name=name)
    return model, {name: parts_of(path, base) for name, path in folders.items()}


def gated_logits(model: ComposableModel, names: Sequence[str], offered: Tensor, gate: Gate) -> Tensor:
    """The last token's logits [rows, vocabulary] of `ROWS` in one batch, padded on the left."""
    longest = max(map(len, ROWS))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in ROWS])  # [rows, longest]
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ROWS])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad(), model.composed(names, offered, gate=gate):
        return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]


def looped_logits(
    base: nn.Module, parts: Mapping[str, Parts], offered: Collection[str], weigh: Weigh, row: list[int]
) -> Tensor:
    """The last token's logits [vocabulary] of one row, each token at each module weighing the adapters offered."""
    copy: Any = deepcopy(base)
    for name in sorted({module for adapter in offered for module in parts[adapter]}):
        candidates = {adapter: updates_of(parts[adapter])[name] for adapter in offered if name in parts[adapter]}
        copy.get_submodule(name).register_forward_hook(_adding(candidates, weigh))
    with torch.no_grad():
        return copy(input_ids=torch.tensor([row])).logits[0, -1]


def updates_of(adapter: Parts) -> dict[str, Tensor]:
    """The full matrices s B A [d_out, d_in] of an adapter, by module."""
    return {module: scaling * up @ down for module, (down, up, scaling) in adapter.items()}


def softmax_over_best(scores: Mapping[str, float], top_k: int, temperature: float) -> dict[str, float]:
    """The softmax of the best scores, by name."""
    best = sorted(scores, key=lambda name: -scores[name])[:top_k]
    weights = torch.softmax(torch.tensor([scores[name] for name in best], dtype=torch.float64) / temperature, dim=0)
    return dict(zip(best, weights.tolist(), strict=True))


def _adding(candidates: Mapping[str, Tensor], weigh: Weigh) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, y = args[0], output.clone()  # [1, length, d_in], [1, length, d_out]
        for place in range(x.shape[1]):
            for adapter, weight in weigh(candidates, x[0, place]).items():
                y[0, place] += weight * candidates[adapter] @ x[0, place]
        return y

    return hook
