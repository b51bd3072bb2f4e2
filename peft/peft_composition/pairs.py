"""The adapters in memory as stacked tensors, and one low-rank pair per row made from them.

Every composition of LoRA adapters is itself one low-rank update y = Wx + B A x. For a batch and one module this is a
`Pair`: A as `down` [batch, R, d_in] and B, transposed, as `up` [batch, R, d_out]. A pair is made once per batch. The
cost of a pair does not grow with the number of adapters in memory, and the pair does not change while tokens are
decoded.

This file is tensor code for any device. This file does not deal with files or models, and uses names as labels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The slot that is zero in every stack and that no adapter gets. This slot pads the rows that have fewer adapters than
# other rows. A real slot of weight 0 could not serve as padding: its A could overflow in float16, and 0 · inf is NaN.
EMPTY_SLOT = 0

_WITHOUT_16_BIT = ("DEFAULT", "NO AVX", "AVX2")  # torch's names of CPU capabilities without 16-bit arithmetic


@dataclass(frozen=True)
class Pair:
    """The composed update of one module for each row of a batch: y = Wx + up^T (down x)."""

    down: Tensor  # [batch, R, d_in]
    up: Tensor  # [batch, R, d_out]; both tensors have the dtype in which they are multiplied


@dataclass(frozen=True)
class ActiveSlots:
    """The slots and weights of the adapters of each row; k is the maximum number of adapters of a row."""

    slots: Tensor  # [batch, k] int64, EMPTY_SLOT where a row uses fewer than k adapters
    weights: Tensor  # [batch, k] float32, 0 at EMPTY_SLOT
    used: tuple[int, ...]  # the P slots that any row uses
    by_adapter: Tensor  # the same weights by adapter, [batch, P] float32, 0 where a row does not use the adapter

    def to(self, device: torch.device) -> ActiveSlots:
        """Return the same pair on another device."""
        slots, weights, by_adapter = (tensor.to(device) for tensor in (self.slots, self.weights, self.by_adapter))
        return ActiveSlots(slots, weights, self.used, by_adapter)

    def first_row(self) -> ActiveSlots:
        """Return the first row alone, as a batch of one."""
        return ActiveSlots(self.slots[:1], self.weights[:1], self.used, self.by_adapter[:1])


class ModuleStack:
    """The tensors of all adapters in memory at one module.

    The slot of an adapter that does not target the module is zero.
    """

    def __init__(
        self,
        module: str,
        d_in: int,
        d_out: int,
        device: torch.device,
        dtype: torch.dtype,
        most_slots: int | None = None,
    ) -> None:
        """Make an empty stack for `module`.

        The stack grows as adapters are written, to at most `most_slots` if given.
        """
        self.module = module
        self.down = torch.zeros(0, 0, d_in, device=device, dtype=dtype)  # A: [slots, r_max, d_in]
        self.up = torch.zeros(0, 0, d_out, device=device, dtype=dtype)  # (s B)^T: [slots, r_max, d_out]
        self.ranks: dict[int, int] = {}  # rank, by slot that is not zero
        self.scalings: dict[int, float] = {}  # scaling s, by the same slots
        self.adapters: dict[int, str] = {}  # name of the adapter, by the same slots
        self._most_slots = most_slots

    def write(self, slot: int, down: Tensor, up: Tensor, scaling: float, adapter: str) -> None:
        """Write an adapter's A [r, d_in] and (s B)^T [r, d_out], in which s = `scaling`, into a free slot."""
        rank = down.shape[0]
        slots, r_max, _ = self.down.shape
        if slot >= slots or rank > r_max:
            # Because the number of slots doubles, loading n adapters copies about n slots in all, not n².
            new_slots = slots if slot < slots else max(slot + 1, 2 * slots)
            if self._most_slots is not None:
                new_slots = min(new_slots, self._most_slots)
            # Assigned together, so that either both tensors have grown or, if memory runs out, no tensor.
            self.down, self.up = (_enlarged(half, new_slots, max(rank, r_max)) for half in (self.down, self.up))
        # Set before the copies, so that a half-written slot does not count as empty.
        self.ranks[slot], self.scalings[slot], self.adapters[slot] = rank, scaling, adapter
        self.down[slot, :rank] = down
        self.up[slot, :rank] = up

    def clear(self, slot: int) -> None:
        """Set a slot to zero, so that another adapter can get it. Clearing an empty slot does nothing."""
        if self.ranks.pop(slot, None) is not None:
            del self.scalings[slot], self.adapters[slot]
            self.down[slot] = 0
            self.up[slot] = 0

    def follow(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the stack to the device and dtype of the module, if the base has been moved or cast."""
        if self.down.device == device and self.down.dtype == dtype:
            return
        with torch.inference_mode(False):  # a tensor made in inference_mode cannot be written to outside of it
            self.down = self.down.to(device, dtype)
            self.up = self.up.to(device, dtype)

    def gather(self, active: ActiveSlots) -> tuple[Tensor, Tensor]:
        """Return A and (s B)^T of each row's adapters, [batch, k, r, d_in] and [batch, k, r, d_out].

        r is the largest rank of the adapters that this batch uses.
        """
        rank = max(self.ranks[slot] for slot in active.used if slot in self.ranks)
        slots = active.slots  # [batch, k]
        if max(active.used) >= self.down.shape[0]:
            # A slot beyond the end of this stack is of an adapter that does not target the module: it counts as empty.
            slots = slots.where(slots < self.down.shape[0], EMPTY_SLOT)
        # On a CPU, index_select takes a fifth of the time of an index in brackets.
        down, up = (half.index_select(0, slots.flatten()).unflatten(0, slots.shape) for half in (self.down, self.up))
        return down[:, :, :rank], up[:, :, :rank]

    def take(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return A and (s B)^T of some adapters, [P, r, d_in] and [P, r, d_out], in the dtype of their products.

        r is the largest rank of these adapters. An adapter that does not target the module has zeros.
        """
        rank = max(self.ranks.get(slot, 0) for slot in slots)
        present = [slot if slot in self.ranks else EMPTY_SLOT for slot in slots]
        index = torch.tensor(present, device=self.down.device)  # [P]
        dtype = product_dtype(self.down.device, self.down.dtype)
        down, up = (half.index_select(0, index)[:, :rank].to(dtype) for half in (self.down, self.up))
        return down, up


def active_slots(slots: Sequence[int], weights: Tensor) -> ActiveSlots | None:
    """Return, for each row of a batch, only the slots whose weight is not 0, with these weights.

    `weights` is [batch, adapters]; column i holds the weights of `slots[i]`.

    Returns None if every weight is zero. The adapters of a row keep the order of the columns, and are summed in this
    order.
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
    by_adapter = weights.where(nonzero, 0)[:, used]  # [batch, P]; weights of 0 get no gradient
    return ActiveSlots(row_slots, row_weights, tuple(columns[used].tolist()), by_adapter)


def mixture_pair(stack: ModuleStack, active: ActiveSlots) -> Pair:
    """Return the average of the adapters' outputs, y = Wx + Σ_p w_p s_p B_p A_p x (the paper's Mixture).

    The sum of k updates of rank r is one update of rank k·r: the A's stacked, the weighted and scaled B's side by side.
    The weights are float32, so torch computes the product in float32 or wider.
    """
    down, up = stack.gather(active)  # [batch, k, r, d_in], [batch, k, r, d_out]
    weights = active.weights[:, :, None, None]  # [batch, k, 1, 1]
    dtype = product_dtype(up.device, up.dtype)
    weighted = (up * weights).to(dtype)  # [batch, k, r, d_out]
    return Pair(down.to(dtype).flatten(1, 2), weighted.flatten(1, 2))  # [batch, k*r, d_in], [batch, k*r, d_out]


def fusion_pair(stack: ModuleStack, active: ActiveSlots) -> Pair:
    """Return the average of the adapters' parameters, y = Wx + (Σ_p w_p s_p B_p)(Σ_p w_p A_p) x (the paper's Fusion).

    The product has cross terms between adapters, and the weights enter twice: a single adapter of weight w acts with
    w². Smaller ranks are padded with zeros. The sums are computed in float32 or wider, as one product of the rows'
    weights with all adapters in use, so adapters are not copied for every row. Rows with one adapter each need no sums.
    """
    if active.slots.shape[1] == 1:
        dtype = product_dtype(stack.down.device, stack.down.dtype)
        weight = active.weights[:, :, None]  # [batch, 1, 1]
        down, up = ((half[:, 0] * weight).to(dtype) for half in stack.gather(active))  # [batch, r, d]
        return Pair(down, up)
    down, up = stack.take(active.used)  # [P, r, d_in], [P, r, d_out]
    wide = torch.promote_types(down.dtype, active.by_adapter.dtype)
    weights = active.by_adapter.to(wide)  # [batch, P]
    # [batch, r, d]
    fused = [(weights @ half.to(wide).flatten(1)).unflatten(1, half.shape[1:]).to(half.dtype) for half in (down, up)]
    return Pair(*fused)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the pairs of a stack: the stack's own dtype if the device computes in it.

    A CPU without 16-bit arithmetic emulates such arithmetic. On 8 × 128 positions of a module of 1024 × 1024, pairs of
    rank 24 took 48 ms in bfloat16, and 5 ms in float32 with the conversions. float32 also rounds less, and takes twice
    the memory.
    """
    emulated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _WITHOUT_16_BIT
    return torch.float32 if emulated and dtype in (torch.bfloat16, torch.float16) else dtype


def _enlarged(tensor: Tensor, slots: int, rank: int) -> Tensor:
    """Return `tensor` [slots', r', d] zero-padded to [slots, rank, d]."""
    larger = tensor.new_zeros(slots, rank, tensor.shape[2])  # [slots, rank, d]
    larger[: tensor.shape[0], : tensor.shape[1]] = tensor
    return larger
