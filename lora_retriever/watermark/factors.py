"""The A's and B's of one adapter as tensors, and a base that computes with these tensors, for marking and attacks.

Gradients flow to the tensors. `peft_composition` composes adapters that lie on disk; here adapters change at each step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_retriever.errors import UserError
from peft_composition import AdapterError, inspect_adapter

Mode = Literal["mixture", "fusion"]
Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""The update of each module as A [R, d_in] and (s B)ᵀ [R, d_out]."""


@dataclass(frozen=True)
class Factors:
    """One adapter: A [r, d_in] and B [d_out, r] of each module, float32, its scaling, and the names in its file."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    scalings: dict[str, float]
    keys: dict[str, tuple[str, str]]

    @classmethod
    def read(cls, folder: Path, name: str, base: PreTrainedModel) -> Factors:
        """The adapter in a folder, verified against the base.

        Raises:
            UserError: the adapter cannot be composed exactly.
        """
        try:
            header = inspect_adapter(folder, name, base)
        except AdapterError as error:
            raise UserError(str(error)) from error
        tensors = load_file(header.folder / SAFETENSORS_WEIGHTS_NAME)
        halves = [{m: tensors[part.keys[half]].float() for m, part in header.modules.items()} for half in (0, 1)]
        scalings = {module: part.scaling for module, part in header.modules.items()}
        return cls(halves[0], halves[1], scalings, {module: part.keys for module, part in header.modules.items()})

    def to(self, device: torch.device) -> Factors:
        """The adapter on another device."""
        down, up = ({m: tensor.to(device) for m, tensor in half.items()} for half in (self.down, self.up))
        return Factors(down, up, self.scalings, self.keys)

    def trainable(self) -> Factors:
        """A copy whose tensors collect gradients."""
        down, up = ({m: nn.Parameter(tensor.clone()) for m, tensor in half.items()} for half in (self.down, self.up))
        return Factors(dict(down), dict(up), self.scalings, self.keys)

    def parameters(self) -> list[Tensor]:
        """All tensors."""
        return [*self.down.values(), *self.up.values()]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Factors:
        """The adapter with every A and every B changed."""
        down, up = ({m: change(tensor) for m, tensor in half.items()} for half in (self.down, self.up))
        return Factors(down, up, self.scalings, self.keys)

    def write(self, original: Path, folder: Path) -> None:
        """Write the adapter into a new folder, float32, with the configuration of its original adapter."""
        folder.mkdir(parents=True)
        tensors = {}
        for module, (down_key, up_key) in self.keys.items():
            tensors[down_key] = self.down[module].detach().cpu().contiguous()
            tensors[up_key] = self.up[module].detach().cpu().contiguous()
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        shutil.copyfile(original / CONFIG_NAME, folder / CONFIG_NAME)


def composed(parts: Sequence[tuple[Factors, float]], mode: Mode) -> Pairs:
    """The pairs of a composition, the same for all rows.

    Mixture: A's stacked, w_p (s_p B_p)ᵀ stacked. Fusion: Σ w_p A_p and Σ w_p (s_p B_p)ᵀ, padded to the largest rank.

    Args:
        parts: the adapters with their weights.
    """
    pairs = {}
    for module in dict.fromkeys(module for factors, _ in parts for module in factors.down):
        present = [(factors, weight) for factors, weight in parts if module in factors.down]
        downs = [factors.down[module] for factors, _ in present]  # [r, d_in]
        ups = [(factors.scalings[module] * factors.up[module]).T for factors, _ in present]  # [r, d_out]
        weights = [weight for _, weight in present]
        if mode == "mixture":
            pairs[module] = torch.cat(downs), torch.cat([w * up for w, up in zip(weights, ups, strict=True)])
        else:
            rank = max(len(down) for down in downs)
            pairs[module] = _summed(downs, weights, rank), _summed(ups, weights, rank)
    return pairs


@contextmanager
def applied(base: nn.Module, pairs: Pairs) -> Iterator[None]:
    """Within this context every module with a pair computes y = W x + (x Aᵀ) (s B)ᵀ, for every row of the batch."""
    handles = [
        base.get_submodule(module).register_forward_hook(partial(_add, pair=pair)) for module, pair in pairs.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    down, up = pair
    return output + ((inputs[0].to(down.dtype) @ down.T) @ up).to(output.dtype)


def _summed(halves: Sequence[Tensor], weights: Sequence[float], rank: int) -> Tensor:
    """Σ w h of halves [r, d], padded with zeros to [rank, d]."""
    padded = [nn.functional.pad(half, (0, 0, 0, rank - len(half))) for half in halves]
    return torch.stack([weight * half for weight, half in zip(weights, padded, strict=True)]).sum(dim=0)
