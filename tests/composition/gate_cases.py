"""Toy gates, and the plain way of gating: the modules of a copy of the base loop over rows, tokens and adapters.

The reference uses nothing of the package under test: upstream PEFT reads the adapters, and each row is run alone,
without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from composition_cases import Parts, parts_of, write_adapter
from model_families import DECODERS, InDouble, left_padded, prompts_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_composition import ComposableModel, Offered, Tokens

NAMES = ["wide", "narrow", "elsewhere"]
OWN = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, -1.0, 0.0]])
PROMPTS = prompts_of([9, 5, 7, 1])

# Each gate of these tests stands beside a plain function that computes the same weights for one row. The function gets
# the row's inputs [n, d_in], the A's of the adapters offered and the length of the prompt, and gives the weights [n,
# offered].
Plain = Callable[[Tensor, Sequence[Tensor], int], Tensor]


@dataclass(frozen=True)
class ByContent:
    """A softmax over the inner products of a token with the sum of the rows of each adapter's A."""

    def prepare(self, offered: Offered) -> Tensor:
        return offered.down.sum(dim=1)  # [P, d_in]

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        scores = tokens.x @ prepared.T  # [batch, n, P]
        return scores.masked_fill(~tokens.offered[:, None], -torch.inf).softmax(dim=2)


def by_content(x: Tensor, downs: Sequence[Tensor], prompt: int) -> Tensor:
    return torch.stack([torch.stack([a.sum(dim=0) @ token for a in downs]).softmax(dim=0) for token in x])


@dataclass(frozen=True)
class ByPrompt(ByContent):
    """The weights of `ByContent` for the mean of the prompt, at all tokens of the prompt and of the answer."""

    def weights(self, prepared: Tensor, tokens: Tokens) -> Tensor:
        if tokens.first:
            real = tokens.real[..., None]  # [batch, n, 1]
            tokens.remember("mean", (tokens.x * real).sum(dim=1) / real.sum(dim=1))
        scores = tokens.recall("mean") @ prepared.T  # [batch, P]
        weights = scores.masked_fill(~tokens.offered, -torch.inf).softmax(dim=1)
        return weights[:, None].expand(*tokens.x.shape[:2], -1)


def by_prompt(x: Tensor, downs: Sequence[Tensor], prompt: int) -> Tensor:
    return by_content(x[:prompt].mean(dim=0, keepdim=True), downs, prompt).expand(len(x), -1)


GATES: dict[str, tuple[ByContent, Plain]] = {"content": (ByContent(), by_content), "prompt": (ByPrompt(), by_prompt)}


@dataclass(eq=False)
class Seeing:
    """Gives every adapter weight 0, and notes its arguments."""

    seen: list[Tokens] = field(default_factory=list)
    offers: list[Offered] = field(default_factory=list)

    def prepare(self, offered: Offered) -> None:
        self.offers.append(offered)

    def weights(self, prepared: None, tokens: Tokens) -> Tensor:
        self.seen.append(tokens)
        return torch.zeros(*tokens.inner.shape[:3])


@dataclass
class Adapted:
    """A tiny model, its adapters, and the plain way of gating them."""

    base: PreTrainedModel
    model: ComposableModel
    parts: list[Parts]

    def plain(
        self, own: Tensor, mode: str, gate: Plain, prompt: int = 0, seen: list[Tensor] | None = None
    ) -> PreTrainedModel:
        """A copy of the base for one row, whose modules loop over tokens and adapters."""
        model = deepcopy(self.base)
        for name in {name for part in self.parts for name in part}:
            chosen = [
                (place, *part[name], float(weight))
                for place, (part, weight) in enumerate(zip(self.parts, own, strict=True))
                if name in part and weight != 0
            ]
            model.get_submodule(name).register_forward_hook(gated_module(chosen, mode, gate, prompt, seen))
        return model

    def alone(self, row: int, ids: Sequence[int], mode: str, gate: Plain, prompt: int = 0, **more: Any) -> Tensor:
        """The logits of one row without neighbours, padding or cache, [length, vocabulary]."""
        with torch.no_grad(), InDouble():
            logits: Tensor = self.plain(OWN[row], mode, gate, prompt, **more)(input_ids=torch.tensor([ids])).logits[0]
        return logits


def gated_module(
    chosen: Sequence[tuple[int, Tensor, Tensor, float, float]],
    mode: str,
    gate: Plain,
    prompt: int,
    seen: list[Tensor] | None,
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that adds the update of one row:

    `chosen` has column, A, B, scaling and the row's weight of each adapter.
    """

    def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x = args[0].reshape(-1, args[0].shape[-1])
        added, noted = [], torch.zeros(len(x), len(NAMES), dtype=x.dtype)
        weights = gate(x, [a for _, a, *_ in chosen], prompt) if chosen else torch.zeros(len(x), 0)
        for t, token in enumerate(x):
            down = [weight * own * a for weight, (_, a, _, _, own) in zip(weights[t], chosen, strict=True)]
            up = [weight * own * s * b for weight, (_, _, b, s, own) in zip(weights[t], chosen, strict=True)]
            update = torch.zeros(y.shape[-1], dtype=x.dtype)
            for p, (column, a, _, _, own) in enumerate(chosen):
                noted[t, column] = float(weights[t, p].detach()) * own
                if mode == "mixture":
                    update = update + up[p] @ (a @ token)
                else:
                    for q, (_, other, *_) in enumerate(chosen):
                        rank = min(a.shape[0], other.shape[0])  # ranks beyond meet zeros
                        update = update + up[p][:, :rank] @ (down[q][:rank] @ token)
            added.append(update)
        if seen is not None:
            seen.append(noted)
        return y + torch.stack(added).view(y.shape)

    return hook


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": (
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "down_proj"], "r": 2, "use_rslora": True},
        {"target_modules": ["v_proj", "lm_head"], "r": 3},
    ),
    "gpt2": (
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 2},
        {"target_modules": ["c_fc"], "fan_in_fan_out": True, "r": 3},
    ),
}


def adapted_by(family: str, root: Path) -> Adapted:
    base = DECODERS[family].build()
    model, parts = ComposableModel(base), []
    for seed, (name, settings) in enumerate(zip(NAMES, SETTINGS[family], strict=True)):
        folder = write_adapter(root / name, base, seed, **settings)
        model.load_adapter(folder, name)
        parts.append(parts_of(folder, base))
    return Adapted(base, model, parts)


def prompt_inputs(rows: slice = slice(None)) -> dict[str, Tensor]:
    """The prompts padded on the left, with their mask and positions."""
    ids, mask = left_padded(PROMPTS[rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
