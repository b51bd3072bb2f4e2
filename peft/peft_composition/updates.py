"""The update that a composition adds to a module's output, in three forms of computation. All three are exact.

- `Pairs`: a low-rank pair for each row, made once per batch, or one pair for all rows.
- `SharedAdapters`: the adapters of a batch of mixtures are kept once, and the inner products x A^T are weighed by row.
  Only the inner products grow with the batch.
- `GatedAdapters`: the inner products are weighed by token, with the weights of a gate.

This file deals with tensors and gates, not with models, files or hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from peft_composition.errors import CompositionError
from peft_composition.gates import Gate, Offered, PreparedGates, Tally, Tokens
from peft_composition.modes import Composer
from peft_composition.pairs import ActiveSlots, ModuleStack, Pair, active_slots, fusion_pair, mixture_pair


@dataclass(frozen=True)
class Pass:
    """The current forward pass."""

    rows: int  # a multiple of the batch with beams or several sequences; rows of one sample are adjacent
    length: int  # number of new positions of each row
    mask: Tensor | None = None  # [rows, positions] bool: the attention mask, for gates
    first: bool = True  # True if the cache is empty before the pass
    cut: bool = False  # True for the head, which may receive the last positions only
    _real: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def real(self, batch: int, n: int, device: torch.device) -> Tensor:
        """Return which of n tokens of each row of the batch are not padding, [batch, n] bool.

        The mask applies to a module that receives the new positions of the pass, and to the head, which may receive the
        last of them. In a module that receives another number of positions (cross-attention), all count as real.
        """
        if (n, device) not in self._real:
            each, left_over = divmod(n * batch, self.rows)
            fits = not left_over and (each == self.length or (self.cut and each < self.length))
            if self.mask is None or not fits or each == 0:
                real = torch.ones(batch, n, dtype=torch.bool, device=device)  # [batch, n]
            else:
                real = self.mask[:, -each:].reshape(batch, n).to(device)  # [batch, n]
            self._real[n, device] = real
        return self._real[n, device]


class Update(Protocol):
    """The update that is added to one module's output for the rows of a batch."""

    @property
    def down(self) -> Tensor:
        """The A's in use, with last dimension d_in. The update is computed on their device."""
        ...

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return the output y with the update at the input x added.

        x [rows, ..., d_in] and y [rows, ..., d_out] may also come flattened, [rows * length, d]. `rows` is a multiple
        of the batch, with the rows of one sample adjacent, as `generate` lays out beams and returned sequences.
        Writes into y if gradients are disabled.
        """
        ...

    def at(self, rows: Tensor | slice) -> Update:
        """Return the update of these rows of the batch only: int64 [rows] on its device, or a slice as a view."""
        ...


@dataclass(frozen=True)
class Pairs:
    """A pair for each row of the batch, or one pair for all rows."""

    pair: Pair

    @property
    def down(self) -> Tensor:
        """[batch or 1, R, d_in]."""
        return self.pair.down

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y + (x A^T) B for each row's pair: two batched products, whatever was composed."""
        return add_pair(x, y, self.pair)

    def at(self, rows: Tensor | slice) -> Pairs:
        """Return the pairs of these rows."""
        return self if len(self.down) == 1 else Pairs(Pair(self.pair.down[rows], self.pair.up[rows]))


@dataclass(frozen=True)
class SharedAdapters:
    """The adapters of a batch of mixtures, kept once, and the weights of each row."""

    down: Tensor  # the A's of all adapters, stacked, [R, d_in]
    up: Tensor  # (s B)^T, [R, d_out]
    weights: Tensor  # float32, [batch, 1, R]: the weight of an adapter is repeated over the adapter's rank

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y + (w ⊙ (x A^T)) B: two plain products, with the inner products weighed between them."""
        x, inner = inner_products(x, self.down, len(self.weights))  # [batch, n, d_in], [batch, n, R]
        inner = inner * self.weights if torch.is_grad_enabled() else inner.mul_(self.weights)
        if x.dtype == torch.float16:
            # The inner product of a row with an adapter that it does not use may overflow, and 0 · inf is NaN.
            inner = inner.masked_fill(self.weights == 0, 0)
        return add_outer(y, inner, self.up)

    def at(self, rows: Tensor | slice) -> SharedAdapters:
        """Return the weights of these rows, with the adapters as they are."""
        return replace(self, weights=self.weights[rows])


@dataclass(frozen=True)
class GatedAdapters:
    """The adapters that a gate may choose from, kept once, and the adapters that each row offers."""

    down: Tensor  # the A's of the P adapters, stacked, each of rank r, [P * r, d_in]
    up: Tensor  # (s B)^T, [P * r, d_out]
    weights: Tensor  # the weights of the rows, [batch, P] float32
    offered: Tensor  # [batch, P] bool
    rows: Tensor  # [batch] int64, indices in the batch as it was composed
    mode: Literal["mixture", "fusion"]
    gate: Gate
    prepared: Any  # the state that the gate prepared from these adapters
    tally: Tally  # of all rows of the batch as it was composed; the modules of a device share it
    memory: dict[str, Tensor] = field(default_factory=dict)

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y + (g(x) ⊙ w ⊙ (x A^T)) B, with the gate's weights g of every token."""
        batch, adapters = self.weights.shape
        x, inner = inner_products(x, self.down, batch)  # [batch, n, d_in], [batch, n, P * r]
        inner = inner.unflatten(2, (adapters, -1))  # [batch, n, P, r]
        real = reading.real(batch, x.shape[1], x.device)  # [batch, n]
        tokens = Tokens(x, inner, self.offered, real, self.rows, reading.first, self.memory, self.tally.batch)
        by_token = self.gate.weights(self.prepared, tokens)
        if by_token.shape != inner.shape[:3]:
            # Weights of another shape could be broadcast, and one row would get the weights of another.
            raise CompositionError(
                f"the gate {self.gate!r} returned weights of shape {list(by_token.shape)}; it must return one weight "
                f"for each row, token and adapter: {list(inner.shape[:3])}"
            )
        weights = (by_token * self.weights[:, None]).where(self.offered[:, None], 0)  # [batch, n, P]
        if not torch.is_grad_enabled():
            self.tally.note(weights, real, self.rows)
        return add_outer(y, weighted(inner, weights, self.mode).flatten(2), self.up)

    def at(self, rows: Tensor | slice) -> GatedAdapters:
        """Return the update of these rows. Memory and tally still have all rows of the batch as it was composed."""
        return replace(self, weights=self.weights[rows], offered=self.offered[rows], rows=self.rows[rows])


def row_updates(
    composer: Composer, stacks: Iterable[ModuleStack], slots: Sequence[int], weights: Tensor
) -> dict[str, Update]:
    """Return the update of each module in `stacks`. Rows weigh the adapters in `slots` by `weights` [batch, P].

    If all rows are equal, they share one pair. The rows of a mixture share the adapters if the batch uses at most twice
    as many adapters as a row: this needs at most twice the arithmetic of a pair for each row, and no memory per row.
    Adapters are counted, not ranks, because all are padded to the largest rank in both forms. The rows of a fusion do
    not share the adapters: a pair of a fusion has the rank of one adapter, and nothing is cheaper. Other composers
    cannot share the adapters, because their pairs are not sums of weighed adapters.
    """
    active = active_slots(slots, weights)
    if active is None:
        return {}
    # With a shared pair, the gradients of all rows would go to the weights of the first row.
    if len(weights) > 1 and not weights.requires_grad and bool((weights == weights[0]).all()):
        active = active.first_row()
    rows, k = active.slots.shape
    if composer is mixture_pair and rows > 1 and len(active.used) <= 2 * k:
        here = _OnDevices(active)
        return {
            stack.module: shared_adapters(stack, active.used, here.on(stack.down.device).by_adapter) for stack in stacks
        }
    return _pairs_of(composer, stacks, active)


def pair_updates(
    composer: Composer, stacks: Iterable[ModuleStack], slots: Sequence[int], weights: Tensor
) -> dict[str, Update]:
    """Return a pair for each row and module in `stacks`, or one pair for all rows if all rows are equal.

    Rows weigh the adapters in `slots` by `weights` [batch, P].
    """
    active = active_slots(slots, weights)
    if active is None:
        return {}
    return _pairs_of(composer, stacks, active.first_row() if bool((weights == weights[0]).all()) else active)


def _pairs_of(composer: Composer, stacks: Iterable[ModuleStack], active: ActiveSlots) -> dict[str, Update]:
    here = _OnDevices(active)
    return {
        stack.module: Pairs(composer(stack, here.on(stack.down.device)))
        for stack in stacks
        if not stack.ranks.keys().isdisjoint(active.used)
    }


class _OnDevices:
    """The active slots of a batch on each device: a base may be spread over several devices."""

    def __init__(self, active: ActiveSlots) -> None:
        self._active = active
        self._copies: dict[torch.device, ActiveSlots] = {}

    def on(self, device: torch.device) -> ActiveSlots:
        if device not in self._copies:
            self._copies[device] = self._active.to(device)
        return self._copies[device]


def shared_adapters(stack: ModuleStack, slots: Sequence[int], weights: Tensor) -> SharedAdapters:
    """Return the update of one module for mixtures that share the adapters which target this module.

    `weights` is [batch, P]; column i holds the weights of `slots[i]`.
    """
    indices = [index for index, slot in enumerate(slots) if slot in stack.ranks]
    down, up = stack.take([slots[index] for index in indices])  # [P, r, d_in], [P, r, d_out]
    by_rank = weights[:, indices].repeat_interleave(down.shape[1], dim=1)  # [batch, P * r]
    return SharedAdapters(down.flatten(0, 1), up.flatten(0, 1), by_rank[:, None])


def gated_updates(
    gate: Gate,
    composer: Composer,
    stacks: Iterable[ModuleStack],
    adapters: Sequence[str],
    slots: Sequence[int],
    weights: Tensor,
    prepared: PreparedGates,
) -> dict[str, GatedAdapters]:
    """Return the update of each module in `stacks`. Rows offer `adapters` to a gate, with `weights` [batch, P].

    `adapters` and `slots` are in loading order. Raises `CompositionError` for a composer that cannot be gated.
    """
    mode = weighing_of(composer)
    if mode is None:
        raise CompositionError(f"a gate weighs a mixture or a fusion by token, and nothing else; not {composer!r}")
    updates = {}
    tallies: dict[torch.device, Tally] = {}
    for stack in stacks:
        # The state may be made inside an inference_mode block and used after the block: so make ordinary tensors.
        with torch.inference_mode(False), torch.no_grad():
            down, up = stack.take(slots)  # [P, r, d_in], [P, r, d_out]
            targets = torch.tensor([slot in stack.ranks for slot in slots], device=down.device)  # [P]
            state = prepared.of(gate, Offered(stack.module, tuple(adapters), down, up, targets))
        own = weights.to(down.device)  # [batch, P]
        rows = torch.arange(len(own), device=down.device)  # [batch]
        tally = tallies.setdefault(down.device, Tally.empty(len(own), len(slots), down))
        updates[stack.module] = GatedAdapters(
            down.flatten(0, 1), up.flatten(0, 1), own, (own != 0) & targets, rows, mode, gate, state, tally
        )
    return updates


def weighing_of(composer: Composer) -> Literal["mixture", "fusion"] | None:
    """Return the mode by which weighed inner products x A^T give the same result as a composer, or None."""
    return "mixture" if composer is mixture_pair else "fusion" if composer is fusion_pair else None


def add_pair(x: Tensor, y: Tensor, pair: Pair) -> Tensor:
    """Return y + (x A^T) B for each row's pair. The rows of one sample share the sample's pair without a copy.

    `x` and `y` are as in `Update.add`; their number of rows is a multiple of the pair's batch.
    """
    down, up = pair.down, pair.up
    batch = down.shape[0]
    # While tokens are decoded the products take a few microseconds, so needless views and checks would cost time.
    if x.dtype != down.dtype or x.device != down.device:
        # On a base spread over devices, x may be on another device: accelerate moves it inside the module's `forward`.
        x = x.to(down)
    if x.ndim != 3 or x.shape[0] != batch:
        x = x.reshape(batch, -1, x.shape[-1])  # [batch, n, d_in]
    inner = torch.bmm(x, down.mT)  # [batch, n, R]
    if torch.is_grad_enabled():
        return y + torch.bmm(inner, up).view(y.shape).to(y.dtype)
    if y.dtype != up.dtype or not y.is_contiguous():
        return y.add_(torch.bmm(inner, up).view(y.shape))
    rows = y if y.ndim == 3 and y.shape[0] == batch else y.view(batch, -1, y.shape[-1])  # [batch, n, d_out]
    rows.baddbmm_(inner, up)
    return y


def inner_products(x: Tensor, down: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return the input by row, [batch, n, d_in], and its products with all A's [R, d_in]: [batch, n, R]."""
    if x.dtype != down.dtype or x.device != down.device:
        x = x.to(down)
    x = x.reshape(batch, -1, x.shape[-1])  # [batch, n, d_in]
    return x, x @ down.T


def weighted(inner: Tensor, weights: Tensor, mode: Literal["mixture", "fusion"]) -> Tensor:
    """Weigh inner products [batch, n, P, r] by the weights of their tokens [batch, n, P], for one of two modes.

    Mixture: w_p inner_p. Fusion: w_p Σ_q w_q inner_q, from which B makes (Σ_p w_p s_p B_p)(Σ_q w_q A_q) x. With float32
    weights, products of 16-bit numbers are computed and summed in float32, and rounded once.
    """
    weights = weights[..., None]  # [batch, n, P, 1]
    product = inner * weights  # [batch, n, P, r]
    if inner.dtype == torch.float16:
        product = product.where(weights != 0, 0)  # as in SharedAdapters
    if mode == "fusion":
        product = product.sum(dim=2, keepdim=True) * weights  # [batch, n, P, r]
    return product.to(inner.dtype)


def add_outer(y: Tensor, inner: Tensor, up: Tensor) -> Tensor:
    """Return y + inner B for weighted inner products [batch, n, R] and (s B)^T [R, d_out].

    Writes into y if gradients are disabled.
    """
    inner = inner.flatten(0, 1).to(up.dtype)  # [batch * n, R]
    if torch.is_grad_enabled():
        return y + (inner @ up).view(y.shape).to(y.dtype)
    if y.dtype != up.dtype or not y.is_contiguous():
        return y.add_((inner @ up).view(y.shape))
    y.view(-1, y.shape[-1]).addmm_(inner, up)
    return y
