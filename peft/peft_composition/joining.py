"""The updates of an open batch, which rows join and leave while tokens are decoded.

The pairs of all rows lie in one piece of memory for each module, with room for the rows that are expected. A row that
joins is written after the last row. When rows leave, only the rows that change their place are copied. So a row that
comes or goes costs what its own pair costs, and not what the batch costs.

This file deals with tensors and gates, not with models, files or hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from peft_composition.gates import Tally
from peft_composition.pairs import Pair
from peft_composition.updates import GatedAdapters, Pairs, Pass, SharedAdapters, Update


@dataclass(frozen=True)
class PairsAndShared:
    """Both forms in one batch: a row has a pair, or it weighs the shared adapters; the other form adds zero to it."""

    pairs: Pairs
    shared: SharedAdapters

    @property
    def down(self) -> Tensor:
        """The A's of the pairs, [batch, R, d_in]."""
        return self.pairs.down

    def add(self, x: Tensor, y: Tensor, reading: Pass) -> Tensor:
        """Return y with both updates added."""
        return self.shared.add(x, self.pairs.add(x, y, reading), reading)

    def at(self, rows: Tensor | slice) -> PairsAndShared:
        """Return the update of these rows."""
        return PairsAndShared(self.pairs.at(rows), self.shared.at(rows))


class RowPairs:
    """The pairs of one module for the rows of an open batch. A row without an update has rank 0."""

    def __init__(self, rows: int, expected: int = 0) -> None:
        """Begin with `rows` rows of rank 0. `expected`: number of rows for which memory is reserved at once."""
        self.ranks = [0] * rows  # the rank of each row
        self._expected = expected
        self._down: Tensor | None = None  # A: [places, rank, d_in]; behind a row's rank there are zeros
        self._up: Tensor | None = None  # [places, rank, d_out]

    @property
    def pairs(self) -> Pairs | None:
        """The pairs of the present rows, as views. None: no row has an update."""
        rows, rank = len(self.ranks), max(self.ranks, default=0)
        if rank == 0 or self._down is None or self._up is None:
            return None
        return Pairs(Pair(self._down[:rows, :rank], self._up[:rows, :rank]))

    def join(self, pair: Pair | None, rows: int) -> None:
        """Add `rows` rows. `pair` has one pair for each of the rows, or one pair for all. None: rows of rank 0."""
        before, rank = len(self.ranks), 0 if pair is None else pair.down.shape[1]
        if pair is not None and before == 0 and len(pair.down) == rows >= self._expected:
            self._down, self._up = pair.down, pair.up  # nothing to copy
        elif pair is not None or self._down is not None:
            halves = (self._down, self._up) if pair is None else (pair.down, pair.up)
            kept = (self._down, self._up)
            wanted = max(rank, max(self.ranks, default=0))
            places = max(before + rows, self._expected)
            self._down, self._up = (
                _with_room(half, like, before, places, wanted)  # type: ignore[arg-type]
                for half, like in zip(kept, halves, strict=True)
            )
            for half, new in zip((self._down, self._up), (None, None) if pair is None else halves, strict=True):
                if new is not None:
                    half[before : before + rows, :rank] = new
                if rank < half.shape[1]:
                    half[before : before + rows, rank:] = 0
        self.ranks += [rank] * rows

    def keep(self, moves: Moves) -> None:
        """Continue with some of the rows."""
        self.ranks = [self.ranks[row] for row in moves.rows]
        if not any(self.ranks):
            self._down = self._up = None
        if self._down is not None and self._up is not None:
            self._down, self._up = moves.of(self._down), moves.of(self._up)


def _with_room(held: Tensor | None, like: Tensor, used: int, rows: int, rank: int) -> Tensor:
    """Return `held` [places, r, d] with at least `rows` places of at least `rank`; the first `used` places are kept.

    The memory of the other places is not set.
    """
    places, held_rank = (0, 0) if held is None else held.shape[:2]
    if held is not None and rows <= places and rank <= held_rank:
        return held
    # Because the number of places grows by a share, n rows that join one by one copy about 5 n rows in all, not n².
    places = places if rows <= places else max(rows, places + places // 4)
    larger = like.new_empty(places, rank, like.shape[2])  # [places, rank, d]
    if held is not None:
        kept_rank = min(held_rank, rank)  # the rows in use have no larger rank
        larger[:used, :kept_rank] = held[:used, :kept_rank]
        larger[:used, kept_rank:] = 0
    elif used:
        larger[:used] = 0
    return larger


class Moves:
    """How rows move when a batch continues with some of its rows. The indices are made once, for all tensors.

    Attributes:
        rows: the rows with which the batch continues, as indices, in the order in which they are wanted.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        """Find which rows change their place."""
        self.rows = list(rows)
        self._changes = [(to, row) for to, row in enumerate(self.rows) if to != row]
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}  # the places and sources, [changes] each

    def of(self, held: Tensor) -> Tensor:
        """Return a tensor [places, ...] whose first places hold the rows.

        Only rows whose place changes are copied, within `held`.
        """
        if len(self.rows) > len(held):
            return held[torch.tensor(self.rows, device=held.device)]
        if self._changes:
            if held.device not in self._indices:
                places, sources = torch.tensor(self._changes, device=held.device).T.contiguous()
                self._indices[held.device] = places, sources
            places, sources = self._indices[held.device]
            held.index_copy_(0, places, held.index_select(0, sources))
        return held


class RowWeights:
    """The adapters of one module that the rows of an open batch share, with the weights of each row."""

    def __init__(self, rows: int, shared: SharedAdapters) -> None:
        """Begin with `rows` rows of weight 0 and the adapters of `shared`."""
        self._shared = replace(shared, weights=shared.weights.new_zeros(rows, *shared.weights.shape[1:]))

    @property
    def shared(self) -> SharedAdapters:
        """The shared adapters with the weights of the present rows."""
        return self._shared

    def join(self, weights: Tensor | None, rows: int) -> None:
        """Add `rows` rows with these weights [rows, 1, R]. None: rows of weight 0."""
        held = self._shared.weights
        new = held.new_zeros(rows, *held.shape[1:]) if weights is None else weights
        self._shared = replace(self._shared, weights=torch.cat([held, new]))

    def keep(self, moves: Moves) -> None:
        """Continue with some of the rows."""
        self._shared = replace(self._shared, weights=self._shared.weights[moves.rows])


@dataclass
class OpenRows:
    """The updates of an open batch without a gate.

    Attributes:
        rows: the number of rows in the batch.
        shared_by: the adapters that rows share, as objects that only these adapters have. Empty: no row shares any.
        expected: number of rows for which memory is reserved as soon as the first row has an update.
    """

    rows: int = 0
    expected: int = 0
    shared_by: tuple[object, ...] = ()
    _pairs: dict[str, RowPairs] = field(default_factory=dict)
    _weights: dict[str, RowWeights] = field(default_factory=dict)

    def join(self, updates: Sequence[Mapping[str, Update]], rows: int) -> None:
        """Add `rows` rows. Each part of `updates` has the updates of some modules for all of these rows.

        An update is a `Pairs` or a `SharedAdapters`. If memory runs out, no row has joined.
        """
        pairs = {name: one for part in updates for name, one in part.items() if isinstance(one, Pairs)}
        shared = {name: one for part in updates for name, one in part.items() if isinstance(one, SharedAdapters)}
        try:
            for name in {**self._pairs, **pairs}:
                new = pairs.get(name)
                if name not in self._pairs:
                    self._pairs[name] = RowPairs(self.rows, self.expected)
                self._pairs[name].join(None if new is None else new.pair, rows)
            for name in {**self._weights, **shared}:
                if name not in self._weights:
                    self._weights[name] = RowWeights(self.rows, shared[name])
                joining = shared.get(name)
                self._weights[name].join(None if joining is None else joining.weights, rows)
        except BaseException:
            self._keep(range(self.rows))
            raise
        self.rows += rows

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these rows, in this order."""
        self._keep(rows)
        self.rows = len(rows)
        self._pairs = {name: held for name, held in self._pairs.items() if any(held.ranks)}
        if not self.rows:
            self._weights, self.shared_by = {}, ()

    def _keep(self, rows: Sequence[int]) -> None:
        moves = Moves(rows)
        for pairs in self._pairs.values():
            pairs.keep(moves)
        for weights in self._weights.values():
            weights.keep(moves)

    def updates(self) -> dict[str, Update]:
        """The updates of the present rows, by module."""
        result: dict[str, Update] = {}
        for name, held in self._pairs.items():
            if (pairs := held.pairs) is not None:
                result[name] = pairs
        for name, weighed in self._weights.items():
            here = result.get(name)
            result[name] = PairsAndShared(here, weighed.shared) if isinstance(here, Pairs) else weighed.shared
        return result


def with_gated_rows(
    update: GatedAdapters, weights: Tensor, offered: Tensor, tallies: dict[Tally, Tally]
) -> GatedAdapters:
    """Return a gated update with further rows. The memory and the tally then have the rows of the batch, in order.

    Args:
        weights: [new rows, P] float32, of the adapters of the update.
        offered: [new rows, P] bool.
        tallies: the tally of the whole batch for each tally of the batch before, which modules share. Is filled.
    """
    new, rows = len(weights), len(update.weights) + len(weights)
    present = update.rows
    if update.tally not in tallies:
        tallies[update.tally] = Tally(pad(update.tally.sums[present], (0, 0, 0, new)))  # [rows, P + 3]
    memory = {
        name: pad(values[present], (0, 0) * (values.ndim - 1) + (0, new)) for name, values in update.memory.items()
    }
    return replace(
        update,
        weights=torch.cat([update.weights, weights]),
        offered=torch.cat([update.offered, offered]),
        rows=torch.arange(rows, device=update.rows.device),
        tally=tallies[update.tally],
        memory=memory,
    )


def of_present_rows(update: GatedAdapters, tallies: dict[Tally, Tally]) -> GatedAdapters:
    """Return the same update with memory and tally of its present rows only. `tallies` as for `with_gated_rows`."""
    present = update.rows
    if update.tally not in tallies:
        tallies[update.tally] = Tally(update.tally.sums[present])
    memory: dict[str, Any] = {name: values[present] for name, values in update.memory.items()}
    rows = torch.arange(len(present), device=present.device)
    return replace(update, rows=rows, tally=tallies[update.tally], memory=memory)
