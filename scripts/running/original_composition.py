"""The paper's Mixture and Fusion as its authors' code computes them, to compare with; written from the equations.

Every adapter of the batch is applied to every row, whichever rows asked for it, and the mapping matrix picks
afterwards. So a mixture holds a tensor [batch, length, adapters, width] for each module, and a fusion averages the
adapters' parameters anew in every module of every forward pass, at each decoding step too. Selection is a fusion whose
mapping has a single 1 in a row. All adapters must have one rank, one scaling and the same modules, as in the original.

Reading the adapters from disk for every batch, which the original does as well, is left out: this is its arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class StackedLoras:
    """The adapters of a batch at one module."""

    down: Tensor  # A: [adapters, r, d_in]
    up: Tensor  # B: [adapters, d_out, r]
    scaling: float


@contextmanager
def original_composition(
    base: nn.Module, stacks: Mapping[str, StackedLoras], mapping: Tensor, mode: str
) -> Iterator[nn.Module]:
    """Within this context `base` is composed, row by row, by `mapping` [batch, adapters].

    Args:
        stacks: the adapters of the batch, by the module's name in `base`.
        mode: "mixture" or "fusion".
    """
    update = {"mixture": mixture_update, "fusion": fusion_update}[mode]
    handles: list[RemovableHandle] = []
    try:
        for name, loras in stacks.items():
            weights = mapping.to(loras.down)  # the device and dtype of the adapters

            def add_update(
                module: nn.Module,
                args: tuple[Any, ...],
                output: Tensor,
                loras: StackedLoras = loras,
                weights: Tensor = weights,
            ) -> Tensor:
                return output + update(args[0], loras, weights)

            handles.append(base.get_submodule(name).register_forward_hook(add_update))
        yield base
    finally:
        for handle in handles:
            handle.remove()


def mixture_update(x: Tensor, loras: StackedLoras, mapping: Tensor) -> Tensor:
    """Σ_p M_bp · s · B_p A_p x: the outputs [batch, length, d_out] of all adapters for all rows, then their average."""
    inner = torch.einsum("bld,prd->blpr", x, loras.down)  # [batch, length, adapters, r]
    outer = torch.einsum("blpr,pdr->blpd", inner, loras.up)  # [batch, length, adapters, d_out]
    return torch.einsum("bp,blpd->bld", mapping, outer) * loras.scaling  # [batch, length, d_out]


def fusion_update(x: Tensor, loras: StackedLoras, mapping: Tensor) -> Tensor:
    """s · (Σ_p M_bp B_p)(Σ_p M_bp A_p) x: the parameters of all adapters averaged for each row, then applied."""
    down = torch.einsum("bp,prd->brd", mapping, loras.down)  # [batch, r, d_in]
    up = torch.einsum("bp,pdr->bdr", mapping, loras.up)  # [batch, d_out, r]
    inner = torch.einsum("bld,brd->blr", x, down)  # [batch, length, r]
    return torch.einsum("blr,bdr->bld", inner, up) * loras.scaling  # [batch, length, d_out]
