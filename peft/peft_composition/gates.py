"""Gates, which weigh the adapters of a composition for every token: y = Wx + (g(x) ⊙ (x A)) B.

A token-level router (Arrow, SpectR, a learned mixture of experts) is a `Gate`. For each module and each set of
adapters, the gate first prepares what it needs from the adapters' tensors. Then, at every call of the module, the gate
returns the weights of the tokens. This file has the types that a gate receives, the store of what gates prepared, and
the running means of their weights. This file contains no gate, and does not deal with models or hooks.
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
"""Maximum number of pairs of a gate and a set of adapters whose prepared state is kept (the most recently used)."""
NOTED = 256
"""Maximum number of calls whose weights a tally holds before the tally sums the weights up."""
SUMMED_AT_ONCE = 2**14
"""Minimum number of weights of one call that a tally sums up at once: then the memory counts, not the operations."""


@dataclass(frozen=True)
class Offered:
    """The tensors of a composition's adapters at one module.

    `down` and `up` have the dtype in which they are multiplied: the module's own, or float32 on a CPU without 16-bit
    arithmetic. An adapter that does not target the module has zeros. An adapter of smaller rank is padded with zeros.
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

    Padding is read from an attention mask [rows, positions]. All tokens count as real, and a gate that takes means
    counts padding too, in three cases: without a mask; with a mask of other dimensions, as `generate` makes for a
    static cache; and in a module that receives another number of positions than the pass has, such as cross-attention,
    whose inputs are the encoder's. (The head may receive the last positions only; padding is known for these
    positions.)

    All tensors are on the module's device. A gate must not write to these tensors.
    """

    x: Tensor  # the module's input, [batch, n, d_in]
    inner: Tensor  # x A^T, [batch, n, P, r]
    offered: Tensor  # [batch, P] bool: the row's weight of the adapter is not 0, and the adapter targets the module
    real: Tensor  # [batch, n] bool: False where padding
    rows: Tensor  # [batch] int64: indices of these rows in the batch as it was composed
    first: bool  # True if this pass reads the prompts: the cache, if it shows its length, is empty before the pass
    memory: dict[str, Tensor]  # the gate's memory of this module while the composition lasts; empty at first
    batch: int  # number of rows of the batch as it was composed

    def remember(self, name: str, values: Tensor) -> None:
        """Keep `values` [batch, ...] of these rows in the memory under `name`. Values of other rows stay."""
        kept = self.memory.get(name)
        if kept is None:
            kept = values.new_zeros(self.batch, *values.shape[1:])  # [rows as composed, ...]
        # Not in place, because a tensor made in inference_mode cannot be written to outside of inference_mode.
        self.memory[name] = kept.index_copy(0, self.rows, values.to(kept.dtype))

    def recall(self, name: str) -> Tensor:
        """Return the remembered values of these rows, [batch, ...]. Raises `KeyError` if there are none."""
        return self.memory[name][self.rows]


class Gate(Protocol):
    """Weighs the adapters by token. A gate is hashable, and equal gates share what one of them prepared.

    If a gate's class has the default hash (by identity), its prepared state is dropped together with the gate.

    Rows can leave a batch, and prompts may be read in parts. A gate that remembers something of a prompt must therefore
    use `tokens.remember` and `tokens.recall`. The gate must remember again whenever `tokens.first` is True, because one
    composition may serve several generations.
    """

    def prepare(self, offered: Offered) -> Any:
        """Return what `weights` needs from the adapters, such as Arrow's prototypes, or None.

        The call is made without gradients, for each module and set of adapters. The call is repeated after the module
        was moved or cast, and after the result was dropped for lack of room. The result must not depend on parameters
        that are being trained.
        """
        ...

    def weights(self, prepared: Any, tokens: Tokens) -> Tensor:
        """Return the weights [batch, n, P], of any floating dtype. A token whose weights are 0 is left to the base.

        Weights of adapters that are not offered are ignored, even NaN: a row may be offered no adapter at all, and a
        softmax over no adapter is NaN. The gradient of such a softmax is NaN too, so a trained gate masks with a large
        negative number instead of infinity. Weights at padding change no answer, but must be finite.
        """
        ...


@dataclass(frozen=True)
class GateUsage:
    """Means of a gate's weights since the composition began, over a row's real tokens and the gated modules."""

    weights: Tensor  # [batch, adapters] float32, columns as given to `composed`: gate's weight times row's weight
    entropy: Tensor  # [batch] float32, in nats: of a token's weights scaled to sum 1; 0 for a row without any weight


class Tally:
    """Running sums over the tokens that modules have received, for each row of the batch as it was composed.

    All modules of a device share one tally. The weights of a pass are noted at every module, and summed for all modules
    together: every operation costs time at every module and every decoded token.
    """

    def __init__(self, sums: Tensor) -> None:
        """Begin with `sums` [batch, P + 3]: weights, entropy, number of tokens with any weight, number of tokens."""
        self.batch = len(sums)
        self._sums = sums
        self._noted: list[tuple[Tensor, Tensor, Tensor]] = []  # weights, which tokens are real, and rows

    @classmethod
    def empty(cls, batch: int, adapters: int, like: Tensor) -> Tally:
        """Return sums of 0 on the device of `like`, in its dtype or in float32 if that is wider."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return cls(torch.zeros(batch, adapters + 3, device=like.device, dtype=dtype))

    def note(self, weights: Tensor, real: Tensor, rows: Tensor) -> None:
        """Count the weights [batch, n, P] of the tokens that are real [batch, n], for `rows` [batch]."""
        if self._noted and (self._noted[0][0].shape[1] != weights.shape[1] or len(self._noted) == NOTED):
            self._sum_up()
        self._noted.append((weights, real, rows))
        if weights.numel() > SUMMED_AT_ONCE:
            self._sum_up()

    @property
    def sums(self) -> Tensor:
        """The sums so far, [batch, P + 3], as in `__init__`."""
        self._sum_up()
        return self._sums

    @torch.no_grad()
    def _sum_up(self) -> None:
        """Add the noted weights to the sums. All noted weights have the same number of tokens n."""
        if not self._noted:
            return
        # [m * batch, n, P], [m * batch, n], [m * batch] for the m calls that were noted
        weights, real, rows = (torch.cat(parts) for parts in zip(*self._noted, strict=True))
        self._noted = []
        there = real[..., None]  # [m * batch, n, 1]
        weights = weights.to(self._sums.dtype) * there
        sizes = weights.abs()  # a negative weight has the share of its absolute value
        total = sizes.sum(dim=2, keepdim=True)  # [m * batch, n, 1]
        shares = sizes / total.clamp(min=torch.finfo(total.dtype).tiny)  # [m * batch, n, P]
        entropy = torch.special.entr(shares).sum(dim=2, keepdim=True)  # [m * batch, n, 1]
        added = torch.cat([weights, entropy, total > 0, there], dim=2).sum(dim=1)  # [m * batch, P + 3]
        # Not in place, because the sums may be a tensor of an inference_mode block that has ended.
        self._sums = self._sums.index_add(0, rows, added)


def usage_of(tallies: Sequence[Tally], columns: Sequence[int]) -> GateUsage:
    """Return the means over all modules. Adapter p of the tallies is column `columns[p]` of the result."""
    sums = torch.stack([tally.sums.cpu() for tally in tallies]).sum(dim=0)  # [batch, P + 3]
    weights, (entropy, weighed, tokens) = sums[:, :-3], sums[:, -3:].unbind(dim=1)  # [batch, P], [batch] each
    ordered = torch.zeros_like(weights)  # [batch, adapters]
    ordered[:, list(columns)] = weights / tokens.clamp(min=1)[:, None]
    return GateUsage(ordered.float(), (entropy / weighed.clamp(min=1)).float())


_Known = Gate | weakref.ref[Gate]


class PreparedGates:
    """The results that gates prepared from adapters, kept from batch to batch for a few sets of adapters.

    A gate that is hashed by identity is not kept alive, because no other gate could use its prepared state.
    """

    def __init__(self) -> None:
        """Make an empty store."""
        self._sets: OrderedDict[tuple[_Known, tuple[str, ...]], dict[str, _Prepared]] = OrderedDict()

    def of(self, gate: Gate, offered: Offered) -> Any:
        """Return what `gate` prepares from `offered`, prepared again if the module was moved or cast since."""
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
        """Drop everything that was prepared from an adapter, because another adapter may take its name."""
        self._drop([key for key in self._sets if adapter in key[1]])

    def _drop(self, keys: Sequence[tuple[_Known, tuple[str, ...]]]) -> None:
        for key in keys:
            del self._sets[key]


def _identity(gate: Gate) -> _Known:
    """Return the key of a gate: the gate, or a weak reference to it if it is hashed by identity and allows one."""
    try:
        return weakref.ref(gate) if type(gate).__hash__ is object.__hash__ else gate
    except TypeError:  # a class with __slots__ that does not list __weakref__
        return gate


def _is_gone(known: _Known) -> bool:
    return isinstance(known, weakref.ref) and known() is None


@dataclass(frozen=True)
class _Prepared:
    placement: tuple[torch.device, torch.dtype]
    state: Any
