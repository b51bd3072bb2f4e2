"""The arithmetic of merges: prune the factors of adapters, elect signs, combine, and cut to a rank.

`merges` has the recipes with their options. All sums are computed in float32 or wider.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from peft_composition.errors import CompositionError
from peft_composition.merges import Majority
from peft_composition.pairs import ActiveSlots, ModuleStack, Pair, product_dtype

Prune = Callable[[Tensor, str, str], Tensor]
"""A function of a factor [r, d], the name of its adapter, and "A" or "B".

The function returns the pruned factor [r, d].
"""


def merged(stack: ModuleStack, active: ActiveSlots, prune: Prune, majority: Majority | None = None) -> Pair:
    """Prune each adapter's A and B, then combine the factors of each row. Only A takes the signs of the weights."""
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


def approximated(stack: ModuleStack, active: ActiveSlots, rank: int | None) -> Pair:
    """Return the best approximation of each row's mixture with a given rank; None: the largest rank of the row.

    Raises:
        CompositionError: the weights require a gradient.
    """
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
    if rank is None:
        ranks = _of_rows(active, stack.ranks, torch.int64).amax(dim=1)  # [batch]
        largest = max(stack.ranks[slot] for slot in active.used if slot in stack.ranks)
    else:
        ranks, largest = torch.full_like(active.slots[:, 0], rank), rank
    values, left, right = values[:, :largest], left[:, :, :largest], right[:, :largest]  # R = min(q, largest)
    kept = torch.arange(values.shape[1], device=values.device) < ranks[:, None]  # [batch, R]
    cut_down = right @ q_down.mT * kept[:, :, None]  # [batch, R, d_in]
    cut_up = (q_up @ left).mT * (values * kept)[:, :, None]  # [batch, R, d_out]
    dtype = product_dtype(stack.up.device, stack.up.dtype)
    return Pair(cut_down.to(dtype), cut_up.to(dtype))


def _present(stack: ModuleStack, active: ActiveSlots) -> list[int]:
    """Return the slots in use whose adapter targets this module with a scaling that is not 0."""
    return [slot for slot in active.used if stack.scalings.get(slot)]


def _pruned(stack: ModuleStack, active: ActiveSlots, prune: Prune) -> tuple[Tensor, Tensor]:
    """Return the pruned A [P + 1, r, d_in] and B^T [P + 1, r, d_out], unscaled, of the P adapters of `_present`.

    Index 0 holds zeros and is used where a row has no adapter; the adapters are in the order of `active.used`. Pruning
    does not depend on the rows, so it is done once for all rows.
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


def trimmed(factor: Tensor, density: float) -> Tensor:
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


def dare_mask(text: str, factor: Tensor, density: float) -> Tensor:
    """Return which entries of a factor [r, d] DARE keeps, bool on the CPU. `text` seeds the draw."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(seed)
    # Not torch.bernoulli: its random stream depends on the libraries that torch was built with.
    return torch.rand(factor.shape, generator=generator, dtype=torch.float32) < density
