"""Merges: compositions that give one adapter of low rank however many adapters a row uses.

Four recipes of PEFT's `add_weighted_adapter`, made per row. Linear, TIES and DARE act on the factors A and B one by
one, as PEFT has them do. So the result stays of low rank, but it is not what the papers describe, which merge whole
updates ΔW = s B A. The product of two merged factors has cross terms between adapters; and a factorisation is one of
many (B M and M⁻¹ A give the same ΔW), so entries of adapters trained apart are no sure ground for a vote on signs.
`Svd` alone approximates the mixture Σ_p w_p s_p B_p A_p itself.

An adapter that does not target a module is absent from that module's merge, and one of weight 0 is absent altogether:
it has no vote. Three things differ from PEFT: different ranks, which it refuses, meet zero-padded; an adapter that is
alone, which it takes over as it is whatever was asked for, is pruned or cut like any other; and one of scaling 0, which
it lets vote, is absent, too. All is computed in float32 at least.

Knows stacks and pairs; knows nothing of models, files or batches as they are decoded.
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
_Prune = Callable[[Tensor, str, str], Tensor]  # of a factor [r, d], its adapter's name, and which factor: "A" or "B"


@dataclass(frozen=True)
class Linear:
    """Task arithmetic on the factors (arXiv 2212.04089 has it on ΔW), PEFT's "linear".

    A = Σ_p sign(w_p s_p) √|w_p s_p| A_p and B = Σ_p √|w_p s_p| B_p. One adapter alone acts with its weight w, where a
    fusion has it act with w².
    """

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        return _merged(stack, active, lambda factor, adapter, half: factor)


@dataclass(frozen=True)
class Ties:
    """TIES (trim, elect sign, merge; arXiv 2306.01708) on each factor, PEFT's "ties".

    Of each A_p and B_p the share `density` of the largest entries in magnitude is kept. An entry's sign is that of the
    sum over the row's adapters ("total"; "frequency": that of more of them), before weights. The entries of that sign,
    weighted as in `Linear`, are summed and divided by how many they are. So weights are not shares: of n adapters that
    agree, each is to weigh 1 for their mean. Unlike PEFT's, entries that tie with the smallest one kept stay too
    (adapters in bfloat16 have such): which of them a sort puts first differs from device to device.
    """

    density: float = 0.5
    majority: Majority = "total"

    def __post_init__(self) -> None:
        """Raise `CompositionError` for options that mean nothing."""
        _check_density("TIES", self.density)
        if self.majority not in ("total", "frequency"):
            raise CompositionError(f"TIES elects signs by 'total' or 'frequency', not by {self.majority!r}")

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""
        return _merged(stack, active, lambda factor, adapter, half: _trimmed(factor, self.density), self.majority)


@dataclass(frozen=True)
class Dare:
    """DARE (drop at random, rescale; arXiv 2311.03099) on each factor, PEFT's "dare_linear" and "dare_ties".

    Each entry of A_p and B_p is kept with probability `density` and divided by it, the others are dropped. Then as in
    `Linear`, or with `ties` as in `Ties` by "total". The masks depend on nothing but `seed`, `density`, the module, the
    name that the adapter was loaded under, and the factor's shape: not on batch, order, slot or device.
    """

    density: float = 0.5
    seed: int = 0
    ties: bool = False

    def __post_init__(self) -> None:
        """Raise `CompositionError` for options that mean nothing."""
        _check_density("DARE", self.density)

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row."""

        def dropped(factor: Tensor, adapter: str, half: str) -> Tensor:
            return factor * self.mask(stack.module, adapter, half, factor).to(factor.device) / self.density

        return _merged(stack, active, dropped, "total" if self.ties else None)

    def mask(self, module: str, adapter: str, half: str, factor: Tensor) -> Tensor:
        """Return which entries of a factor are kept, bool on the CPU: for "A" [r, d_in], for "B" (B^T) [r, d_out]."""
        text = "\0".join((str(self.seed), module, adapter, half))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
        generator = torch.Generator().manual_seed(seed)
        # Numbers from [0, 1) rather than torch.bernoulli, whose stream depends on the libraries torch was built with.
        return torch.rand(factor.shape, generator=generator, dtype=torch.float32) < self.density


@dataclass(frozen=True)
class Svd:
    """The mixture Σ_p w_p s_p B_p A_p cut to its best approximation of some rank (Eckart and Young), PEFT's "svd".

    `rank` None takes, for each row and module, the largest rank among the row's adapters there (PEFT: the largest they
    have anywhere). Computed from the factors: no matrix of d_out × d_in is made. Passes no gradient to the weights.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        """Raise `CompositionError` for options that mean nothing."""
        if self.rank is not None and self.rank < 1:
            raise CompositionError(f"the rank of an SVD merge must be at least 1, not {self.rank}")

    def __call__(self, stack: ModuleStack, active: ActiveSlots) -> Pair:
        """Return the merged pair of each row. Raises `CompositionError` if the weights ask for a gradient."""
        if active.weights.requires_grad:
            # Torch's own has divisions by σ_i² − σ_j², and among the zeros of the padding these are NaN.
            reason = "an SVD merge passes no gradient to the weights"
            raise CompositionError(f"{reason}; detach them, or learn them with mode 'mixture', which it approximates")
        down, up = stack.gather(active)  # [batch, k, r, d_in], [batch, k, r, d_out]
        dtype = torch.promote_types(down.dtype, torch.float32)
        down = down.to(dtype).flatten(1, 2)  # [batch, k*r, d_in]
        up = (up.to(dtype) * active.weights[:, :, None, None]).flatten(1, 2)  # [batch, k*r, d_out]
        # B A = Q_B (R_B R_A^T) Q_A^T, and the Q's columns are orthonormal: the core has the update's singular values.
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
    """Prune each adapter's A and B, and combine those of each row: A with the signs of the weights, B without."""
    down, up = _pruned(stack, active, prune)  # [P + 1, r, d_in], [P + 1, r, d_out]
    present = _present(stack, active)
    places = _of_rows(active, {slot: place for place, slot in enumerate(present, start=1)}, torch.int64)  # [batch, k]
    weights = active.weights * _of_rows(active, stack.scalings, torch.float32)  # w_p s_p: [batch, k]
    there = weights != 0
    # The root of 0 has an infinite derivative, and would give NaN for the gradient of a row that uses fewer than k.
    roots = weights.abs().where(there, 1).sqrt().where(there, 0)  # [batch, k]
    dtype = product_dtype(stack.up.device, stack.up.dtype)
    return Pair(
        _combined(down[places], roots * weights.sign(), majority).to(dtype),  # [batch, r, d_in]
        _combined(up[places], roots, majority).to(dtype),  # [batch, r, d_out]
    )


def _present(stack: ModuleStack, active: ActiveSlots) -> list[int]:
    """The slots in use that do something in this module: those that target it with a scaling that is not 0."""
    return [slot for slot in active.used if stack.scalings.get(slot)]


def _pruned(stack: ModuleStack, active: ActiveSlots, prune: _Prune) -> tuple[Tensor, Tensor]:
    """Return A and B^T, without scalings, of the P adapters that `_present` names, each pruned by itself.

    It does not depend on the rows, so it is done once for all of them: [P + 1, r, d_in] and [P + 1, r, d_out] in the
    order of `active.used`, after a first that is zero and stands for an adapter that is not there.
    """
    present = _present(stack, active)
    largest = max((stack.ranks[slot] for slot in present), default=1)
    dtype = torch.promote_types(stack.down.dtype, torch.float32)
    down, up = (
        torch.zeros(len(present) + 1, largest, half.shape[2], device=half.device, dtype=dtype)
        for half in (stack.down, stack.up)
    )
    for place, slot in enumerate(present, start=1):
        rank, adapter, scaling = stack.ranks[slot], stack.adapters[slot], stack.scalings[slot]
        down[place, :rank] = prune(stack.down[slot, :rank].to(dtype), adapter, "A")  # [r, d_in]
        up[place, :rank] = prune(stack.up[slot, :rank].to(dtype) / scaling, adapter, "B")  # [r, d_out]
    return down, up


def _combined(factors: Tensor, weights: Tensor, majority: Majority | None) -> Tensor:
    """Combine each row's factors [batch, k, r, d] with weights [batch, k] to [batch, r, d].

    Without `majority` it is their sum; with it, the mean of those entries that have the elected sign. The zeros of
    padding, as of pruning, have no sign and are not counted.
    """
    weighted = factors * weights[:, :, None, None]  # [batch, k, r, d]
    if majority is None:
        return weighted.sum(dim=1)  # [batch, r, d]
    votes = factors if majority == "total" else factors.sign()  # [batch, k, r, d]
    elected = torch.where(votes.sum(dim=1, keepdim=True) >= 0, 1.0, -1.0)  # [batch, 1, r, d]
    agree = factors.sign() == elected  # [batch, k, r, d]
    return (weighted * agree).sum(dim=1) / agree.sum(dim=1).clamp(min=1)  # [batch, r, d]


def _trimmed(factor: Tensor, density: float) -> Tensor:
    """Zero all of a factor [r, d] but the ⌊density · r · d⌋ entries largest in magnitude, and what ties with these."""
    kept = int(density * factor.numel())
    if kept == 0:
        return torch.zeros_like(factor)
    sizes = factor.abs()  # [r, d]
    smallest = sizes.flatten().kthvalue(factor.numel() - kept + 1).values  # of those kept
    return factor * (sizes >= smallest)


def _of_rows(active: ActiveSlots, values: Mapping[int, float], dtype: torch.dtype) -> Tensor:
    """Return each row's values [batch, k], given by slot; 0 for a slot that has none."""
    by_slot = [values.get(slot, 0) for slot in range(max(active.used) + 1)]
    return torch.tensor(by_slot, dtype=dtype, device=active.slots.device)[active.slots]


def _check_density(method: str, density: float) -> None:
    if not 0 < density <= 1:
        raise CompositionError(f"the density of {method} is a share of entries, above 0 and at most 1, not {density}")
