"""The paper's Mixture and Fusion as the authors' code computes them, for comparison; written from the equations.

Every adapter of the batch is applied to every row, and the mapping matrix then selects the adapters of each row. So a
mixture holds a tensor [batch, length, adapters, width] for each module, and a fusion averages the adapters' parameters
anew in every module of every forward pass, at each decoding step too. Selection is a fusion whose mapping has a single
1 in a row. All adapters must have one rank and the same modules, as in the original.

Without an option these are the paper's equations. `Faults` adds the faults of the original's arithmetic, each alone or
several together. The original also reads the adapters from disk for every batch; this is left out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class StackedLoras:
    """The adapters of a batch at one module."""

    down: Tensor  # A: [adapters, r, d_in]
    up: Tensor  # B: [adapters, d_out, r]
    scalings: Tensor  # s = alpha / r: [adapters]


@dataclass(frozen=True)
class Faults:
    """Faults of the original's arithmetic. None is set: the paper's equations.

    Attributes:
        scale_left_out: every s is 1, as in the original before 29 April 2025.
        last_scaling: every s is the s of the last adapter of the batch, as in the original since then.
        first_adapter_only: the first adapter of the batch alone acts, on every row, with the sum of the row's weights:
            from the second batch on, the original loads no adapter but the first.
    """

    scale_left_out: bool = False
    last_scaling: bool = False
    first_adapter_only: bool = False

    def applied(self, loras: StackedLoras, mapping: Tensor) -> tuple[StackedLoras, Tensor]:
        """The adapters of a module, and the mapping [batch, adapters], after the changes that these faults make."""
        if self.first_adapter_only:
            loras = StackedLoras(loras.down[:1], loras.up[:1], loras.scalings[:1])
            mapping = mapping.sum(dim=1, keepdim=True)
        if self.last_scaling:
            loras = replace(loras, scalings=loras.scalings[-1:].expand_as(loras.scalings))
        if self.scale_left_out:
            loras = replace(loras, scalings=torch.ones_like(loras.scalings))
        return loras, mapping


NO_FAULTS = Faults()


@contextmanager
def original_composition(
    base: nn.Module, stacks: Mapping[str, StackedLoras], mapping: Tensor, mode: str, faults: Faults = NO_FAULTS
) -> Iterator[nn.Module]:
    """Within this context `base` is composed, row by row, by `mapping` [batch, adapters].

    Args:
        stacks: the adapters of the batch, by the module's name in `base`.
        mode: "mixture" or "fusion".
        faults: the faults of the original to compute with.
    """
    update = {"mixture": mixture_update, "fusion": fusion_update}[mode]
    handles: list[RemovableHandle] = []
    try:
        for name, stacked in stacks.items():
            loras, weights = faults.applied(stacked, mapping.to(stacked.down))  # the adapters' device and dtype

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
    """Σ_p M_bp s_p B_p A_p x: the outputs [batch, length, d_out] of all adapters for all rows, then their average."""
    inner = torch.einsum("bld,prd->blpr", x, loras.down)  # [batch, length, adapters, r]
    outer = torch.einsum("blpr,pdr->blpd", inner, loras.up)  # [batch, length, adapters, d_out]
    return torch.einsum("bp,blpd->bld", mapping * loras.scalings, outer)  # [batch, length, d_out]


def fusion_update(x: Tensor, loras: StackedLoras, mapping: Tensor) -> Tensor:
    """(Σ_p M_bp s_p B_p)(Σ_p M_bp A_p) x: the parameters of all adapters averaged for each row, then applied."""
    down = torch.einsum("bp,prd->brd", mapping, loras.down)  # [batch, r, d_in]
    up = torch.einsum("bp,pdr->bdr", mapping * loras.scalings, loras.up)  # [batch, d_out, r]
    inner = torch.einsum("bld,brd->blr", x, down)  # [batch, length, r]
    return torch.einsum("blr,bdr->bld", inner, up)  # [batch, length, d_out]
