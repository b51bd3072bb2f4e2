"""What a composition adds to a module's output, in the three ways in which it is computed.

`Pairs` is a low-rank pair for each row, made once per batch, or one that all rows share. `SharedAdapters` has the
adapters of a batch's mixtures once, and weighs their inner products x A^T by row: only these grow with the batch. And
`GatedAdapters` weighs them by token, as a gate says. All three are exact. Knows tensors and gates; knows nothing of
models, files or hooks.
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
    """What is known of the forward pass under way."""

    rows: int  # more than the batch has with beams or several sequences: then a multiple, a sample's rows adjacent
    length: int  # new positions of each row
    mask: Tensor | None = None  # [rows, positions] bool: the attention mask, for gates
    first: bool = True  # whether nothing is cached before it
    cut: bool = False  # whether it is seen by a module that may be given the last positions alone: the head
    _real: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def real(self, batch: int, n: int, device: torch.device) -> Tensor:
        """Return which of n tokens of each row of the batch are not padding, [batch, n] bool.

        The mask speaks of a module that sees the pass's new positions, and of the head, which may see the last of
        these. One that sees another number of positions (cross-attention, an encoder's) has all as real.
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
    """What is added to one module's output for the rows of a batch."""

    @property
    def down(self) -> Tensor:
        """The A's in use, the last dimension d_in; wherever they are, the update is computed."""
        ...

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return the output y with the update at the input x added.

        x [rows, ..., d_in] and y [rows, ..., d_out] may also come flattened, [rows * length, d]. `rows` is a multiple
        of the batch, with the rows of one sample adjacent, as `generate` lays out beams and returned sequences.
        Writes into y where no gradient is asked for.
        """
        ...

    def at(self, rows: Tensor | slice) -> Update:
        """Return the update of these rows of the batch alone: int64 [rows] on its device, or a slice, not copied."""
        ...


@dataclass(frozen=True)
class Pairs:
    """A pair for each row of the batch, or one that all its rows share."""

    pair: Pair

    @property
    def down(self) -> Tensor:
        """[batch or 1, R, d_in]."""
        return self.pair.down

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y + (x A^T) B for each row's pair: the same two batched products whatever was composed."""
        return add_pair(x, y, self.pair)

    def at(self, rows: Tensor | slice) -> Pairs:
        """Return the pairs of these rows."""
        return self if len(self.down) == 1 else Pairs(Pair(self.pair.down[rows], self.pair.up[rows]))


@dataclass(frozen=True)
class SharedAdapters:
    """The adapters of a batch's mixtures, once, and what each row weighs them with."""

    down: Tensor  # A, the adapters' one below the other, [R, d_in]
    up: Tensor  # (s B)^T, [R, d_out]
    weights: Tensor  # float32, each adapter's as often as it has a place among the R, [batch, 1, R]

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y + (w ⊙ (x A^T)) B: two plain products, and the weighing of the few numbers between them."""
        x, inner = inner_products(x, self.down, len(self.weights))  # [batch, n, d_in], [batch, n, R]
        inner = inner * self.weights if torch.is_grad_enabled() else inner.mul_(self.weights)
        if x.dtype == torch.float16:
            # What an adapter makes of a row that has nothing to do with it may overflow, and 0 · inf is NaN.
            inner = inner.masked_fill(self.weights == 0, 0)
        return add_outer(y, inner, self.up)

    def at(self, rows: Tensor | slice) -> SharedAdapters:
        """Return the weights of these rows, with the adapters as they are."""
        return replace(self, weights=self.weights[rows])


@dataclass(frozen=True)
class GatedAdapters:
    """The adapters that a gate may choose from, once, and what each row of the batch offers of them."""

    down: Tensor  # A, the P adapters' one below the other, each of r rows, [P * r, d_in]
    up: Tensor  # (s B)^T, [P * r, d_out]
    weights: Tensor  # the row's own, [batch, P] float32
    offered: Tensor  # [batch, P] bool
    rows: Tensor  # [batch] int64, of the batch as composed
    mode: Literal["mixture", "fusion"]
    gate: Gate
    prepared: Any  # what the gate prepared of these adapters
    tally: Tally  # of all rows of the batch as composed
    memory: dict[str, Tensor] = field(default_factory=dict)

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y + (g(x) ⊙ w ⊙ (x A^T)) B, with the gate's weights g of every token."""
        batch, adapters = self.weights.shape
        x, inner = inner_products(x, self.down, batch)  # [batch, n, d_in], [batch, n, P * r]
        inner = inner.unflatten(2, (adapters, -1))  # [batch, n, P, r]
        real = reading.real(batch, x.shape[1], x.device)  # [batch, n]
        tokens = Tokens(x, inner, self.offered, real, self.rows, reading.first, self.memory, len(self.tally.sums))
        by_token = self.gate.weights(self.prepared, tokens)
        if by_token.shape != inner.shape[:3]:
            # Others might be broadcast, and so weigh one row as another.
            raise CompositionError(
                f"the gate {self.gate!r} returned weights of shape {list(by_token.shape)}; needed is one for each row, "
                f"token and adapter: {list(inner.shape[:3])}"
            )
        weights = (by_token * self.weights[:, None]).where(self.offered[:, None], 0)  # [batch, n, P]
        if not torch.is_grad_enabled():
            self.tally.note(weights, real, self.rows)
        return add_outer(y, weighted(inner, weights, self.mode).flatten(2), self.up)

    def at(self, rows: Tensor | slice) -> GatedAdapters:
        """Return what these rows offer; memory and tally stay those of the batch as composed."""
        return replace(self, weights=self.weights[rows], offered=self.offered[rows], rows=self.rows[rows])


def row_updates(
    composer: Composer, stacks: Iterable[ModuleStack], slots: Sequence[int], weights: Tensor
) -> dict[str, Update]:
    """The update of each module whose stack is given: rows weigh the adapters in `slots` by `weights` [batch, P].

    Rows that are all alike share one pair. The rows of a mixture share the adapters, where these are at most twice as
    many as a row uses: that is at most twice the arithmetic of a pair for each row, and a batch's worth of memory less.
    Adapters are counted, not their ranks: all are padded to the largest, shared or not. A fusion's pairs are of an
    adapter's own rank, so that nothing is cheaper; and what other composers do cannot be done to inner products.
    """
    active = active_slots(slots, weights)
    if active is None:
        return {}
    # A pair that several rows share would give all their gradient to the first one's weights.
    if len(weights) > 1 and not weights.requires_grad and bool((weights == weights[0]).all()):
        active = active.first_row()
    rows, k = active.slots.shape
    shared = composer is mixture_pair and rows > 1 and len(active.used) <= 2 * k
    on_device: dict[torch.device, ActiveSlots] = {}  # a base may be spread over several devices
    updates: dict[str, Update] = {}
    for stack in stacks:
        device = stack.down.device
        if device not in on_device:
            on_device[device] = active.to(device)
        here = on_device[device]
        updates[stack.module] = shared_adapters(stack, here) if shared else Pairs(composer(stack, here))
    return updates


def shared_adapters(stack: ModuleStack, active: ActiveSlots) -> SharedAdapters:
    """The update of one module by mixtures that share the adapters; those that do not target it are left out."""
    places = [place for place, slot in enumerate(active.used) if slot in stack.ranks]
    down, up = stack.take([active.used[place] for place in places])  # [P, r, d_in], [P, r, d_out]
    weights = active.by_adapter[:, places].repeat_interleave(down.shape[1], dim=1)  # [batch, P * r]
    return SharedAdapters(down.flatten(0, 1), up.flatten(0, 1), weights[:, None])


def gated_updates(
    gate: Gate,
    composer: Composer,
    stacks: Iterable[ModuleStack],
    adapters: Sequence[str],
    slots: Sequence[int],
    weights: Tensor,
    prepared: PreparedGates,
) -> dict[str, GatedAdapters]:
    """The update of each module whose stack is given, for rows that offer a gate `adapters` with `weights` [batch, P].

    `adapters` and `slots` are in loading order. Raises `CompositionError` for a composer that cannot be gated.
    """
    mode = weighing_of(composer)
    if mode is None:
        raise CompositionError(f"a gate weighs a mixture or a fusion by token, and nothing else; not {composer!r}")
    updates = {}
    for stack in stacks:
        # What is prepared outlives an inference_mode block in which it may be made.
        with torch.inference_mode(False), torch.no_grad():
            down, up = stack.take(slots)  # [P, r, d_in], [P, r, d_out]
            targets = torch.tensor([slot in stack.ranks for slot in slots], device=down.device)  # [P]
            state = prepared.of(gate, Offered(stack.module, tuple(adapters), down, up, targets))
        own = weights.to(down.device)  # [batch, P]
        rows = torch.arange(len(own), device=down.device)  # [batch]
        tally = Tally.empty(len(own), len(slots), down)
        updates[stack.module] = GatedAdapters(
            down.flatten(0, 1), up.flatten(0, 1), own, (own != 0) & targets, rows, mode, gate, state, tally
        )
    return updates


def weighing_of(composer: Composer) -> Literal["mixture", "fusion"] | None:
    """Which weighing of the inner products x A^T does what a composer does; None if none does."""
    return "mixture" if composer is mixture_pair else "fusion" if composer is fusion_pair else None


def add_pair(x: Tensor, y: Tensor, pair: Pair) -> Tensor:
    """Return y + (x A^T) B for each row's pair; rows of one sample share their sample's without a copy.

    `x` and `y` as in `Update.add`, their rows a multiple of the pair's batch.
    """
    down, up = pair.down, pair.up
    batch = down.shape[0]
    # While tokens are decoded the products take a few microseconds, and every view or check that is not needed shows.
    if x.dtype != down.dtype or x.device != down.device:
        # On a base spread over devices, x may be on the last module's: accelerate moves it inside the module's forward.
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
    """Return the input by row [batch, n, d_in] and its products with all A's [R, d_in], [batch, n, R]."""
    if x.dtype != down.dtype or x.device != down.device:
        x = x.to(down)
    x = x.reshape(batch, -1, x.shape[-1])  # [batch, n, d_in]
    return x, x @ down.T


def weighted(inner: Tensor, weights: Tensor, mode: Literal["mixture", "fusion"]) -> Tensor:
    """Weigh inner products [batch, n, P, r] by their tokens' weights [batch, n, P], as the mode says.

    Mixture: w_p inner_p. Fusion: w_p Σ_q w_q inner_q, which B takes to (Σ_p w_p s_p B_p)(Σ_q w_q A_q) x. Products of
    16-bit numbers are taken and summed in float32, if the weights are that, and rounded once.
    """
    weights = weights[..., None]  # [batch, n, P, 1]
    product = inner * weights  # [batch, n, P, r]
    if inner.dtype == torch.float16:
        product = product.where(weights != 0, 0)  # as in SharedAdapters
    if mode == "fusion":
        product = product.sum(dim=2, keepdim=True) * weights  # [batch, n, P, r]
    return product.to(inner.dtype)


def add_outer(y: Tensor, inner: Tensor, up: Tensor) -> Tensor:
    """Return y + inner B, of weighted inner products [batch, n, R] and (s B)^T [R, d_out].

    Writes into y where no gradient is asked for.
    """
    inner = inner.flatten(0, 1).to(up.dtype)  # [batch * n, R]
    if torch.is_grad_enabled():
        return y + (inner @ up).view(y.shape).to(y.dtype)
    if y.dtype != up.dtype or not y.is_contiguous():
        return y.add_((inner @ up).view(y.shape))
    y.view(-1, y.shape[-1]).addmm_(inner, up)
    return y
