"""Gates: what weighs the adapters of a composition anew for every token, y = Wx + (g(x) ⊙ (x A)) B.

A token-level router (Arrow, SpectR, a learned mixture of experts) is a `Gate`. It is asked once for each module and set
of adapters what it wants to know of their tensors, and then, at every call of the module, for the tokens' weights. Here
are what it is given, what is kept of its answers, and the running means of how it weighed. Knows nothing of how any
one gate weighs, nor of models and hooks.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

KEPT_SETS = 4
"""For so many pairs of a gate and a set of adapters is kept what the gate prepared; the least recently used goes."""


@dataclass(frozen=True)
class Offered:
    """What the adapters of a composition have at one module.

    `down` and `up` are in the dtype in which they are multiplied: the module's own, or float32 on a CPU without 16-bit
    arithmetic. An adapter that does not target the module is zero there; one of smaller rank is zero beyond its own.
    """

    module: str  # its name in the base
    adapters: tuple[str, ...]  # P names, in loading order
    down: Tensor  # A, [P, r, d_in]
    up: Tensor  # (s B)^T, [P, r, d_out]
    targets: Tensor  # [P] bool: whether the adapter targets the module


@dataclass(frozen=True)
class Tokens:
    """One call of one module: its tokens, row by row.

    With beams or several returned sequences a row has n = sequences · length tokens, one sequence after the other.
    What is padding is known of a mask [rows, positions]. Without one, with one of other dimensions (as `generate` makes
    for a static cache), and in a module that sees another number of positions than the pass has (cross-attention, whose
    inputs are an encoder's; but not the head, which may be given the last ones), all tokens count as real: a gate that
    takes means then counts padding, too. All tensors are on the module's device, and none may be written to.
    """

    x: Tensor  # the module's input, [batch, n, d_in]
    inner: Tensor  # x A^T, [batch, n, P, r]
    offered: Tensor  # [batch, P] bool: the row's own weight is not 0, and the adapter targets the module
    real: Tensor  # [batch, n] bool: False where padding
    rows: Tensor  # [batch] int64: which rows of the batch as composed these are
    first: bool  # whether this pass reads the prompts: nothing is cached before it, as far as the cache can say
    memory: dict[str, Tensor]  # the gate's own for this module while the composition lasts; empty at first
    batch: int  # rows of the batch as composed, which `rows` counts

    def remember(self, name: str, values: Tensor) -> None:
        """Keep `values` [batch, ...] in the memory under `name`, for these rows; those of other rows stay."""
        kept = self.memory.get(name)
        if kept is None:
            kept = values.new_zeros(self.batch, *values.shape[1:])  # [rows as composed, ...]
        # Not in place: memory written in inference_mode could not be written to outside it.
        self.memory[name] = kept.index_copy(0, self.rows, values.to(kept.dtype))

    def recall(self, name: str) -> Tensor:
        """Return what is remembered of these rows, [batch, ...]. Raises `KeyError` if nothing is."""
        return self.memory[name][self.rows]


class Gate(Protocol):
    """Weighs the adapters by token. Hashable: what it prepares is kept for whatever gate is equal to it.

    That of a gate which is hashed by identity, as objects are that say nothing else, is not kept longer than the gate.

    Rows leave a batch, and its prompts may be read in parts: a gate that remembers something of a prompt does so with
    `tokens.remember` and `tokens.recall`. It remembers anew whenever `tokens.first` is True, as one composition may
    serve several generations.
    """

    def prepare(self, offered: Offered) -> Any:
        """Return what `weights` needs of the adapters, Arrow's prototypes for instance; None if nothing.

        Called without gradients for each module and set of adapters, and again when the module was moved or cast, or
        what it returned had to make room: so it may depend on nothing that is learned.
        """
        ...

    def weights(self, prepared: Any, tokens: Tokens) -> Tensor:
        """Return the weights [batch, n, P], of any floating dtype. Zeros leave a token to the base.

        What it says of adapters that are not offered is dropped, even NaN: a row may be offered nothing at all, and a
        softmax over nothing is NaN. (Its gradient is NaN too: what is to be trained masks with a large negative number
        rather than infinity.) Weights at padding change no answer, but must be finite.
        """
        ...


@dataclass(frozen=True)
class GateUsage:
    """How a gate has weighed since the composition began: means over a row's real tokens and the gated modules."""

    weights: Tensor  # [batch, adapters] float32, columns as given to `composed`: the gate's times the row's own
    entropy: Tensor  # [batch] float32, nats: of the tokens' weights, scaled to sum 1; 0 where there were none


@dataclass(frozen=True)
class Tally:
    """Running sums over the tokens that one module has seen, for each row of the batch as composed."""

    sums: Tensor  # [batch, P + 3]: weights, entropy, how many tokens had any weight, how many there were

    @classmethod
    def empty(cls, batch: int, adapters: int, like: Tensor) -> Tally:
        """Sums over nothing yet, on the device of `like` and in its dtype, float32 at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return cls(torch.zeros(batch, adapters + 3, device=like.device, dtype=dtype))

    def note(self, weights: Tensor, real: Tensor, rows: Tensor) -> None:
        """Count the weights [batch, n, P] of the tokens that are real [batch, n], of rows [batch]."""
        there = real[..., None]  # [batch, n, 1]
        weights = weights.to(self.sums.dtype) * there  # [batch, n, P]
        sizes = weights.abs()  # negative weights count by their size
        total = sizes.sum(dim=2, keepdim=True)  # [batch, n, 1]
        shares = sizes / total.clamp(min=torch.finfo(total.dtype).tiny)  # [batch, n, P]
        entropy = torch.special.entr(shares).sum(dim=2, keepdim=True)  # [batch, n, 1]
        # One sum, as each call of a module while tokens are decoded pays for every operation here.
        self.sums.index_add_(0, rows, torch.cat([weights, entropy, total > 0, there], dim=2).sum(dim=1))


def usage_of(tallies: Sequence[Tally], columns: Sequence[int]) -> GateUsage:
    """The means over all modules. Adapter p of the tallies stands in column `columns[p]` of the result."""
    sums = torch.stack([tally.sums.cpu() for tally in tallies]).sum(dim=0)  # [batch, P + 3]
    weights, (entropy, weighed, tokens) = sums[:, :-3], sums[:, -3:].unbind(dim=1)  # [batch, P], [batch] each
    ordered = torch.zeros_like(weights)  # [batch, adapters]
    ordered[:, list(columns)] = weights / tokens.clamp(min=1)[:, None]
    return GateUsage(ordered.float(), (entropy / weighed.clamp(min=1)).float())


_Known = Gate | weakref.ref[Gate]


class PreparedGates:
    """What gates prepared from adapters, kept from batch to batch for a few sets of adapters.

    A gate that is hashed by identity is not kept alive: none could ask for what it prepared once it is gone.
    """

    def __init__(self) -> None:
        """Nothing prepared yet."""
        self._sets: OrderedDict[tuple[_Known, tuple[str, ...]], dict[str, _Prepared]] = OrderedDict()

    def of(self, gate: Gate, offered: Offered) -> Any:
        """Return what `gate` prepares of `offered`; anew if the module has moved or was cast since."""
        key = (_identity(gate), offered.adapters)
        if key not in self._sets:
            self._drop([(known, adapters) for known, adapters in self._sets if _is_gone(known)])
        modules = self._sets.setdefault(key, {})
        self._sets.move_to_end(key)
        if len(self._sets) > KEPT_SETS:
            self._sets.popitem(last=False)
        kept = modules.get(offered.module)
        if kept is None or kept.placement != (offered.down.device, offered.down.dtype):
            kept = _Prepared((offered.down.device, offered.down.dtype), gate.prepare(offered))
            modules[offered.module] = kept
        return kept.state

    def forget(self, adapter: str) -> None:
        """Drop all that was prepared of an adapter: another may take its name."""
        self._drop([key for key in self._sets if adapter in key[1]])

    def _drop(self, keys: Sequence[tuple[_Known, tuple[str, ...]]]) -> None:
        for key in keys:
            del self._sets[key]


def _identity(gate: Gate) -> _Known:
    """What a gate is known by: itself, or where it is hashed by identity and can be, a weak reference to it."""
    try:
        return weakref.ref(gate) if type(gate).__hash__ is object.__hash__ else gate
    except TypeError:  # a class with __slots__, and no place for such references among them
        return gate


def _is_gone(known: _Known) -> bool:
    return isinstance(known, weakref.ref) and known() is None


@dataclass(frozen=True)
class _Prepared:
    placement: tuple[torch.device, torch.dtype]
    state: Any
