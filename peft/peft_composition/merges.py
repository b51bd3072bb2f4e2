"""Merges: compositions whose result is one adapter of low rank, for any number of adapters in a row.

These are four recipes of PEFT's `add_weighted_adapter`, made per row. Linear, TIES and DARE merge the factors A and the
factors B separately, as PEFT does. The result is of low rank, but differs from the papers, which merge whole updates
ΔW = s B A. The product of two merged factors has cross terms between adapters. Also, a factorisation is one of many
(B M and M⁻¹ A give the same ΔW), so the signs of entries of separately trained adapters need not correspond. Only `Svd`
approximates the mixture Σ_p w_p s_p B_p A_p itself.

An adapter that does not target a module takes no part in the merge of that module. An adapter of weight 0 takes part in
no merge, and has no vote on signs. There are three differences from PEFT: adapters of different rank, which PEFT
refuses, are padded with zeros; a single adapter, which PEFT copies unchanged, is pruned or cut like several; and an
adapter of scaling 0, which has a vote in PEFT, takes no part. All sums are computed in float32 or wider.

This file deals with stacks and pairs, not with models, files or decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peft_composition.errors import CompositionError
from peft_composition.pairs import ActiveSlots, ModuleStack, Pair, product_dtype

Majority = Literal["total", "frequency"]
_Prune = Callable[[Tensor, str, str], Tensor]  # arguments: a factor [r, d], its adapter's name, and "A" or "B"


@dataclass(frozen=True)
class Linear:
    """Task arithmetic on the factors (arXiv 2212.04089 defines it on ΔW), PEFT's "linear".

    A = Σ_p sign(w_p s_p) √|w_p s_p| A_p and B = Σ_p √|w_p s_p| B_p. A single adapter of weight w acts with w here, and
    with w² in a fusion.
    """

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        return _merged(stack, active, lambda factor, adapter, half: factor)


@dataclass(frozen=True)
class Ties:
    """TIES (trim, elect sign, merge; arXiv 2306.01708) on each factor, PEFT's "ties".

    Each A_p and B_p keeps the share `density` of its entries that are largest in magnitude. The elected sign of an
    entry is the sign of the unweighted sum over the row's adapters ("total"), or the sign that more adapters have
    ("frequency"). The entries of the elected sign, weighted as in `Linear`, are summed and divided by their number. The
    weights are therefore no shares: n adapters that agree give their mean if each has weight 1.

    Unlike in PEFT, entries equal to the smallest kept entry are kept too. Adapters in bfloat16 have equal entries, and
    a sort orders equal entries differently on different devices.
    """

    density: float = 0.5
    majority: Majority = "total"

    def __post_init__(self) -> None:
        """Raise `CompositionError` for an invalid option."""
        _check_density("TIES", self.density)
        if self.majority not in ("total", "frequency"):
            raise CompositionError(f"TIES elects signs by 'total' or 'frequency', not by {self.majority!r}")

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        return _merged(stack, active, lambda factor, adapter, half: _trimmed(factor, self.density), self.majority)


@dataclass(frozen=True)
class Dare:
    """DARE (drop at random, rescale; arXiv 2311.03099) on each factor, PEFT's "dare_linear" and "dare_ties".

    Each entry of A_p and B_p is kept with probability `density` and divided by `density`; the other entries are
    dropped. The factors are then merged as in `Linear`, or, with `ties`, as in `Ties` by "total". The masks depend on
    `seed`, `density`, the module, the name under which the adapter was loaded, and the shape of the factor. They do not
    depend on batch, order, slot or device.
    """

    density: float = 0.5
    seed: int = 0
    ties: bool = False

    def __post_init__(self) -> None:
        """Raise `CompositionError` for an invalid option."""
        _check_density("DARE", self.density)

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""

        def dropped(factor: Tensor, adapter: str, half: str) -> Tensor:
            return factor * self.mask(stack.module, adapter, half, factor).to(factor.device) / self.density

        return _merged(stack, active, dropped, "total" if self.ties else None)

    def mask(self, module: str, adapter: str, half: str, factor: Tensor) -> Tensor:
        """Return which entries of a factor are kept, bool on the CPU: [r, d_in] for "A", [r, d_out] for "B" (B^T)."""
        text = "\0".join((str(self.seed), module, adapter, half))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
        generator = torch.Generator().manual_seed(seed)
        # Not torch.bernoulli: its random stream depends on the libraries that torch was built with.
        return torch.rand(factor.shape, generator=generator, dtype=torch.float32) < self.density


@dataclass(frozen=True)
class Svd:
    """The best approximation of the mixture Σ_p w_p s_p B_p A_p with a given rank (Eckart and Young), PEFT's "svd".

    With `rank` None, the rank of each row and module is the largest rank of the row's adapters at this module (PEFT
    takes their largest rank at any module). It is computed from the factors, without a matrix of d_out × d_in. No
    gradient reaches the weights.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        """Raise `CompositionError` for an invalid option."""
        if self.rank is not None and self.rank < 1:
            raise CompositionError(f"the rank of an SVD merge must be at least 1, not {self.rank}")

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row. Raises `CompositionError` if the weights require a gradient."""
        if active.weights.requires_grad:
            # Torch's gradient divides by σ_i² − σ_j², which gives NaN among the zeros of the padding.
            reason = "an SVD merge passes no gradient to the weights"
            raise CompositionError(f"{reason}; detach them, or learn them with mode 'mixture', which it approximates")
        down, up = stack.gather(active)  # [batch, k, r, d_in], [batch, k, r, d_out]
        dtype = torch.promote_types(down.dtype, torch.float32)
        down = down.to(dtype).flatten(1, 2)  # [batch, k*r, d_in]
        up = (up.to(dtype) * active.weights[:, :, None, None]).flatten(1, 2)  # [batch, k*r, d_out]
        # B A = Q_B (R_B R_A^T) Q_A^T with orthonormal columns of Q, so R_B R_A^T has the singular values of the update.
        q_down, r_down = torch.linalg.qr(down.mT)  # [batch, d_in, m], [batch, m, k*r]
        q_up, r_up = torch.linalg.qr(up.mT)  # [batch, d_out, n], [batch, n, k*r]
        left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)  # [batch, n, q], [batch, q], ...
        if self.rank is None:
            ranks = _of_rows(active, stack.ranks, torch.int64).amax(dim=1)  # [batch]
            largest = max(stack.ranks[slot] for slot in active.used if slot in stack.ranks)
        else:
            ranks, largest = torch.full_like(active.slots[:, 0], self.rank), self.rank
        values, left, right = values[:, :largest], left[:, :, :largest], right[:, :largest]  # R = min(q, largest)
        kept = torch.arange(values.shape[1], device=values.device) < ranks[:, None]  # [batch, R]
        cut_down = right @ q_down.mT * kept[:, :, None]  # [batch, R, d_in]
        cut_up = (q_up @ left).mT * (values * kept)[:, :, None]  # [batch, R, d_out]
        dtype = product_dtype(stack.up.device, stack.up.dtype)
        return Pair(cut_down.to(dtype), cut_up.to(dtype))


def _merged(stack: ModuleStack, active: ActiveSlots, prune: _Prune, majority: Majority | None = None) -> Pair:
    """Prune each adapter's A and B, then combine those of each row. Only A takes the signs of the weights."""
    down, up = _pruned(stack, active, prune)  # [P + 1, r, d_in], [P + 1, r, d_out]
    present = _present(stack, active)
    indices = _of_rows(active, {slot: i for i, slot in enumerate(present, start=1)}, torch.int64)  # [batch, k]
    weights = active.weights * _of_rows(active, stack.scalings, torch.float32)  # w_p s_p: [batch, k]
    nonzero = weights != 0
    # The root of 0 has an infinite derivative: a row with fewer than k adapters would get NaN as its gradient.
    roots = weights.abs().where(nonzero, 1).sqrt().where(nonzero, 0)  # [batch, k]
    dtype = product_dtype(stack.up.device, stack.up.dtype)
    return Pair(
        _combined(down[indices], roots * weights.sign(), majority).to(dtype),  # [batch, r, d_in]
        _combined(up[indices], roots, majority).to(dtype),  # [batch, r, d_out]
    )


def _present(stack: ModuleStack, active: ActiveSlots) -> list[int]:
    """Return the slots in use whose adapter targets this module with a scaling that is not 0."""
    return [slot for slot in active.used if stack.scalings.get(slot)]


def _pruned(stack: ModuleStack, active: ActiveSlots, prune: _Prune) -> tuple[Tensor, Tensor]:
    """Return the pruned A [P + 1, r, d_in] and B^T [P + 1, r, d_out], unscaled, of the P adapters of `_present`.

    Index 0 holds zeros and stands for an absent adapter; the others are in the order of `active.used`. Pruning does not
    depend on the rows, so it is done once for all rows.
    """
    present = _present(stack, active)
    largest = max((stack.ranks[slot] for slot in present), default=1)
    dtype = torch.promote_types(stack.down.dtype, torch.float32)
    down, up = (
        torch.zeros(len(present) + 1, largest, half.shape[2], device=half.device, dtype=dtype)
        for half in (stack.down, stack.up)
    )
    for index, slot in enumerate(present, start=1):
        rank, adapter, scaling = stack.ranks[slot], stack.adapters[slot], stack.scalings[slot]
        down[index, :rank] = prune(stack.down[slot, :rank].to(dtype), adapter, "A")  # [r, d_in]
        up[index, :rank] = prune(stack.up[slot, :rank].to(dtype) / scaling, adapter, "B")  # [r, d_out]
    return down, up


def _combined(factors: Tensor, weights: Tensor, majority: Majority | None) -> Tensor:
    """Combine each row's factors [batch, k, r, d] with weights [batch, k] to [batch, r, d].

    Without `majority` the result is the weighted sum. With `majority` it is the mean of the weighted entries that have
    the elected sign; the zeros of padding and pruning have no sign and are not counted.
    """
    weighted = factors * weights[:, :, None, None]  # [batch, k, r, d]
    if majority is None:
        return weighted.sum(dim=1)  # [batch, r, d]
    votes = factors if majority == "total" else factors.sign()  # [batch, k, r, d]
    elected = torch.where(votes.sum(dim=1, keepdim=True) >= 0, 1.0, -1.0)  # [batch, 1, r, d]
    agree = factors.sign() == elected  # [batch, k, r, d]
    return (weighted * agree).sum(dim=1) / agree.sum(dim=1).clamp(min=1)  # [batch, r, d]


def _trimmed(factor: Tensor, density: float) -> Tensor:
    """Keep the ⌊density · r · d⌋ entries of a factor [r, d] that are largest in magnitude, and all equal to these."""
    kept = int(density * factor.numel())
    if kept == 0:
        return torch.zeros_like(factor)
    sizes = factor.abs()  # [r, d]
    smallest = sizes.flatten().kthvalue(factor.numel() - kept + 1).values  # the smallest kept size
    return factor * (sizes >= smallest)


def _of_rows(active: ActiveSlots, values: Mapping[int, float], dtype: torch.dtype) -> Tensor:
    """Return the values of each row's slots, [batch, k]; 0 for a slot without a value."""
    by_slot = [values.get(slot, 0) for slot in range(max(active.used) + 1)]
    return torch.tensor(by_slot, dtype=dtype, device=active.slots.device)[active.slots]


def _check_density(method: str, density: float) -> None:
    if not 0 < density <= 1:
        raise CompositionError(f"the density of {method} is a share of entries, above 0 and at most 1, not {density}")
