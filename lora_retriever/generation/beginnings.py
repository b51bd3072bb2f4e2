"""`Beginnings`: the keys and values of beginnings that several prompts of one composition share, which are read once.

Prompts share the beginning of the template, and often the instruction of a task. The keys and values of a beginning
depend on its tokens and on the composition. So of the rows with one composition, the first is read whole. The other
rows take the keys and values of the tokens that these rows share with the first row. A gate may look at the whole
prompt: its rows share nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lora_retriever.generation.jobs import Kind, WaitingRow

SHORTEST = 8
"""Minimum length of a beginning that is shared, in tokens. A shorter beginning saves less than its copies cost."""


@dataclass
class _Beginning:
    """The first tokens of a prompt, and the keys and values of these tokens after the reading."""

    row: int  # the id of the row that is read whole
    ids: Sequence[int]
    layers: list[tuple[Tensor, Tensor] | None] | None = None  # [heads, n, width] of each layer that keeps any


class Beginnings:
    """The beginnings that waiting rows may share."""

    def __init__(self, config: Any, room: int) -> None:
        """Begin empty, for a model of this configuration. `room`: maximum number of tokens kept; 0: share nothing."""
        windows = (getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers)
        self._window = min((window for window in windows if window is not None), default=None)
        self._room = room
        self._kept: dict[Kind, _Beginning] = {}

    def divided(
        self, rows: Sequence[WaitingRow], waiting: Iterable[WaitingRow]
    ) -> tuple[list[WaitingRow], list[WaitingRow]]:
        """The rows that are read whole, and the rows that are read afterwards because they share a beginning.

        `waiting` are rows that are read later.
        """
        if not self._room:
            return list(rows), []
        alike: dict[Kind, list[WaitingRow]] = defaultdict(list)
        for row in (*rows, *waiting):
            if row.job.gate is None:
                alike[row.kind].append(row)
        first, following = [], []
        for row in rows:
            if row.job.gate is None and row.kind in self._kept:
                following.append(row)
            else:
                first.append(row)
                self._wish(row, alike[row.kind])
        return first, following

    def _wish(self, row: WaitingRow, alike: Sequence[WaitingRow]) -> None:
        """Mark a row's beginning, which is kept when the row is read, if other rows of its composition share it."""
        shared = max((_common(row.ids, other.ids) for other in alike if other is not row), default=0)
        held = sum(len(kept.ids) for kept in self._kept.values())
        # A window drops the first keys and values of a longer prompt.
        in_window = self._window is None or len(row.ids) < self._window
        if shared >= SHORTEST and held + shared <= self._room and in_window:
            self._kept[row.kind] = _Beginning(row.id, row.ids[:shared])

    def length(self, row: WaitingRow) -> int:
        """The number of tokens of a row that need not be read, once the rows that are read whole have been read."""
        kept = None if row.job.gate is not None else self._kept.get(row.kind)
        if kept is None:
            return 0
        # The last token, and tokens whose log-probabilities are told, are always read.
        most = len(row.ids) - 1 - (0 if row.told else row.job.scored)
        shared = min(_common(kept.ids, row.ids), most)
        return shared if shared >= SHORTEST else 0

    def fill(self, cache: DynamicCache, rows: Sequence[WaitingRow], width: int, lengths: Sequence[int]) -> None:
        """Put the beginnings of rows into an empty cache: of row i the first `lengths[i]` tokens, padded to `width`."""
        found = [self._kept.get(row.kind) for row in rows]
        layers = next(one.layers for one in found if one is not None and one.layers is not None)
        for place, like in enumerate(layers):
            if like is None:
                continue
            halves = []
            for half in (0, 1):
                filled = like[half].new_zeros(len(rows), like[half].shape[0], width, like[half].shape[2])
                for row, (one, length) in enumerate(zip(found, lengths, strict=True)):
                    if length and one is not None and one.layers is not None:
                        kept = one.layers[place]
                        assert kept is not None, "all rows have the same layers"
                        filled[row, :, width - length :] = kept[half][:, :length]
                halves.append(filled)
            cache.update(halves[0], halves[1], place)

    def keep(self, cache: DynamicCache, rows: Sequence[WaitingRow]) -> None:
        """Keep the beginnings of rows that were just read, as far as other rows share them."""
        longest = max(len(row.ids) for row in rows)
        for place, row in enumerate(rows):
            kept = self._kept.get(row.kind) if row.job.gate is None else None
            if kept is not None and kept.row == row.id:
                start = longest - len(row.ids)
                columns = slice(start, start + len(kept.ids))
                kept.layers = [_cut(layer, place, columns) for layer in cast(list[DynamicLayer], cache.layers)]

    def forget_all_but(self, waiting: Collection[WaitingRow]) -> None:
        """Free the beginnings that no waiting row can share."""
        keys = {row.kind for row in waiting}
        self._kept = {key: kept for key, kept in self._kept.items() if key in keys and kept.layers is not None}


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens with which both prompts begin."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _cut(layer: DynamicLayer, row: int, columns: slice) -> tuple[Tensor, Tensor] | None:
    """A copy of some columns of one row. None: the layer keeps nothing of its own."""
    if layer.keys is None or layer.values is None or not layer.keys.numel():
        return None
    # A sliding-window layer of a padded batch has dropped padding on the left.
    dropped = layer.get_seq_length() - layer.keys.shape[2]
    here = slice(columns.start - dropped, columns.stop - dropped)
    return layer.keys[row, :, here].clone(), layer.values[row, :, here].clone()
