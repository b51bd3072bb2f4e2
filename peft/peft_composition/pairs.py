"""The resident adapters as stacked tensors, and the making of one low-rank pair per row from them.

Every composition of LoRA adapters is itself one low-rank update y = Wx + B A x. For a batch and one module that is a
`Pair`: A as `down` [batch, R, d_in] and B, transposed, as `up` [batch, R, d_out]. A pair is made once per batch, costs
the same however many adapters are resident, and does not change while tokens are decoded.

Pure tensor code on any device: knows nothing of files or models, and names only to tell tensors apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Zero in every stack and never given to an adapter: rows with fewer adapters than others are padded with it. Padding
# with a real slot at weight 0 would not do, as its A could overflow in float16, and 0 · inf is NaN.
EMPTY_SLOT = 0

_WITHOUT_16_BIT = ("DEFAULT", "NO AVX", "AVX2")  # torch's names for what a CPU can do


@dataclass(frozen=True)
class Pair:
    """The composed update of one module for each row of a batch: y = Wx + up^T (down x)."""

    down: Tensor  # [batch, R, d_in]
    up: Tensor  # [batch, R, d_out], like `down` in the dtype in which the two are multiplied


@dataclass(frozen=True)
class ActiveSlots:
    """Which adapters each row uses, by slot, and with which weights; k is the most that any row uses."""

    slots: Tensor  # [batch, k] int64, EMPTY_SLOT where a row uses fewer than k
    weights: Tensor  # [batch, k] float32, 0 there
    used: tuple[int, ...]  # every slot that some row uses: P of them
    by_adapter: Tensor  # the weights again, [batch, P] float32, 0 where a row does not use the adapter

    def to(self, device: torch.device) -> ActiveSlots:
        """Return the same on another device."""
        slots, weights, by_adapter = (tensor.to(device) for tensor in (self.slots, self.weights, self.by_adapter))
        return ActiveSlots(slots, weights, self.used, by_adapter)

    def first_row(self) -> ActiveSlots:
        """Return the first row alone, as a batch of one."""
        return ActiveSlots(self.slots[:1], self.weights[:1], self.used, self.by_adapter[:1])


class ModuleStack:
    """All resident adapters' tensors for one module. An adapter that does not target it leaves its slot zero."""

    def __init__(
        self,
        module: str,
        d_in: int,
        d_out: int,
        device: torch.device,
        dtype: torch.dtype,
        most_slots: int | None = None,
    ) -> None:
        """An empty stack for `module`, which grows as adapters are written, up to `most_slots` if that is given."""
        self.module = module
        self.down = torch.zeros(0, 0, d_in, device=device, dtype=dtype)  # A: [slots, r_max, d_in]
        self.up = torch.zeros(0, 0, d_out, device=device, dtype=dtype)  # (s B)^T: [slots, r_max, d_out]
        self.ranks: dict[int, int] = {}  # rank of each slot that is not zero
        self.scalings: dict[int, float] = {}  # s of each such slot
        self.adapters: dict[int, str] = {}  # and the name of its adapter
        self._most_slots = most_slots

    def write(self, slot: int, down: Tensor, up: Tensor, scaling: float, adapter: str) -> None:
        """Put an adapter's A [r, d_in] and (s B)^T [r, d_out], in which s = `scaling` is already, into a free slot."""
        rank = down.shape[0]
        slots, r_max, _ = self.down.shape
        if slot >= slots or rank > r_max:
            # Doubling the slots makes loading n adapters cost n copies in all, not n².
            new_slots = slots if slot < slots else max(slot + 1, 2 * slots)
            if self._most_slots is not None:
                new_slots = min(new_slots, self._most_slots)
            # Both or neither, should memory run out here.
            self.down, self.up = (_enlarged(half, new_slots, max(rank, r_max)) for half in (self.down, self.up))
        # Before the copies: a slot that is half written must not pass for empty.
        self.ranks[slot], self.scalings[slot], self.adapters[slot] = rank, scaling, adapter
        self.down[slot, :rank] = down
        self.up[slot, :rank] = up

    def clear(self, slot: int) -> None:
        """Zero a slot, so that it can be given to another adapter. Clearing an empty slot does nothing."""
        if self.ranks.pop(slot, None) is not None:
            del self.scalings[slot], self.adapters[slot]
            self.down[slot] = 0
            self.up[slot] = 0

    def follow(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to where the module's weight is now, should the base have been moved or cast."""
        with torch.inference_mode(False):  # a stack made within inference_mode could never be written to again
            self.down = self.down.to(device, dtype)
            self.up = self.up.to(device, dtype)

    def gather(self, active: ActiveSlots) -> tuple[Tensor, Tensor]:
        """Return A and (s B)^T of each row's adapters, [batch, k, r, d_in] and [batch, k, r, d_out].

        r is the largest rank that this batch uses, whatever larger ones are resident.
        """
        rank = max(self.ranks[slot] for slot in active.used if slot in self.ranks)
        slots = active.slots.clamp(max=self.down.shape[0] - 1)
        # A slot beyond this stack's end belongs to an adapter that does not target the module: it reads as empty.
        slots = slots.where(slots == active.slots, EMPTY_SLOT)  # [batch, k]
        return self.down[slots, :rank], self.up[slots, :rank]

    def take(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return A and (s B)^T of some adapters, [P, r, d_in] and [P, r, d_out], in the dtype of their products.

        r is the largest rank among them; an adapter that does not target the module is zero.
        """
        rank = max(self.ranks.get(slot, 0) for slot in slots)
        present = [slot if slot in self.ranks else EMPTY_SLOT for slot in slots]
        index = torch.tensor(present, device=self.down.device)  # [P]
        dtype = product_dtype(self.down.device, self.down.dtype)
        return self.down[index, :rank].to(dtype), self.up[index, :rank].to(dtype)


def active_slots(slots: Sequence[int], weights: Tensor) -> ActiveSlots | None:
    """Drop the zeros from a batch's weights [batch, adapters], whose columns stand for `slots`.

    Returns None if every weight is zero. A row's adapters keep the order of the columns, in which they are summed.
    """
    columns = torch.tensor(slots, device=weights.device)  # [adapters]
    nonzero = weights != 0  # [batch, adapters]
    k = int(nonzero.sum(dim=1).max())
    if k == 0:
        return None
    first = nonzero.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :k]  # [batch, k]
    row_weights = weights.gather(1, first)  # [batch, k]
    row_slots = columns[first].where(row_weights != 0, EMPTY_SLOT)  # [batch, k]
    used = nonzero.any(dim=0)  # [adapters]
    by_adapter = weights.where(nonzero, 0)[:, used]  # [batch, P]; the zeros get no gradient, as above
    return ActiveSlots(row_slots, row_weights, tuple(columns[used].tolist()), by_adapter)


def mixture_pair(stack: ModuleStack, active: ActiveSlots) -> Pair:
    """The average of the adapters' outputs, y = Wx + Σ_p w_p s_p B_p A_p x (the paper's Mixture).

    The sum of k updates of rank r is one of rank k·r: the A's stacked, the weighted and scaled B's side by side.
    The weights are float32, so torch takes the product in float32 at least.
    """
    down, up = stack.gather(active)  # [batch, k, r, d_in], [batch, k, r, d_out]
    weights = active.weights[:, :, None, None]  # [batch, k, 1, 1]
    dtype = product_dtype(up.device, up.dtype)
    weighted = (up * weights).to(dtype)  # [batch, k, r, d_out]
    return Pair(down.to(dtype).flatten(1, 2), weighted.flatten(1, 2))  # [batch, k*r, d_in], [batch, k*r, d_out]


def fusion_pair(stack: ModuleStack, active: ActiveSlots) -> Pair:
    """The average of the adapters' parameters, y = Wx + (Σ_p w_p s_p B_p)(Σ_p w_p A_p) x (the paper's Fusion).

    The product has cross terms between adapters, and the weights enter twice: one adapter of weight w acts as w².
    Different ranks meet zero-padded. The sums are taken in float32 at least, as one product of the rows' weights with
    all adapters in use: these are not copied for every row.
    """
    down, up = stack.take(active.used)  # [P, r, d_in], [P, r, d_out]
    wide = torch.promote_types(down.dtype, active.by_adapter.dtype)
    weights = active.by_adapter.to(wide)  # [batch, P]
    fused = [torch.tensordot(weights, half.to(wide), dims=1).to(half.dtype) for half in (down, up)]  # [batch, r, d]
    return Pair(*fused)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the pairs of a stack are kept and multiplied: the stack's own, if the device computes in it.

    A CPU without 16-bit arithmetic emulates it: on 8 × 128 positions of a module of 1024 × 1024, pairs of rank 24 took
    48 ms in bfloat16 and 5 ms in float32, conversions included, and are less rounded so. Their bytes double.
    """
    emulated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _WITHOUT_16_BIT
    return torch.float32 if emulated and dtype in (torch.bfloat16, torch.float16) else dtype


def _enlarged(tensor: Tensor, slots: int, rank: int) -> Tensor:
    """Return `tensor` [slots', r', d] zero-padded to [slots, rank, d]."""
    larger = tensor.new_zeros(slots, rank, tensor.shape[2])  # [slots, rank, d]
    larger[: tensor.shape[0], : tensor.shape[1]] = tensor
    return larger
