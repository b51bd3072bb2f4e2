"""`Held`: the keys and values of rows that join and leave while tokens are decoded, in one piece of memory per layer.

All rows end at the same column of the memory, so a row with fewer tokens begins further to the right:

                     start        end
    row 0     . . . . 7 3 9 4 1 5 | . . .
    row 1     . . . . . . . 8 2 6 | . . .

A decoded token is written at column `end` of every row. Nothing grows by concatenation: only when the columns are used
up, or when a longer prompt joins, are all rows copied to other columns. A row that leaves is replaced by the last row.
The model sees a usual cache of prompts that are padded on the left.

The module knows tensors only: no token, no text, no adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peft_composition.joining import Moves

SEPARABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers that hold keys and values only, one row for each row of the batch."""
ROOM = 128
"""Maximum number of free columns that are reserved for decoded tokens, in tokens."""


def is_separable(config: Any) -> bool:
    """Whether rows can join and leave the cache of a model: not the rows of hybrids and of encoder-decoder models.

    The states of a hybrid's other layers, such as Mamba's, cannot be padded, so rows of different lengths cannot be put
    together. An encoder-decoder model has the keys and values of two texts for each row.
    """
    return not config.is_encoder_decoder and all(
        type(layer) in SEPARABLE for layer in DynamicCache(config=config).layers
    )


class Held:
    """The keys and values of the rows of a batch.

    Attributes:
        cache: the model's argument `past_key_values` when a token is decoded.
        lengths: the number of tokens that are held of each row.
    """

    def __init__(self, config: Any) -> None:
        """Begin without rows, for a model of this configuration."""
        self.lengths: list[int] = []
        self.start = self.end = 0  # the columns of the longest row
        self._places = self._columns = 0  # size of the memory
        self.cache = DynamicCache(config=config)
        self._layers = [HeldLayer(self, getattr(layer, "sliding_window", None)) for layer in self.cache.layers]
        self.cache.layers[:] = self._layers
        if not self._layers:
            raise ValueError("the configuration does not tell the layers of the model")

    @property
    def width(self) -> int:
        """The number of tokens that are held of the longest row."""
        return self.end - self.start

    def mask(self, device: torch.device) -> Tensor | None:
        """The attention mask of the next token, int64 [rows, width + 1]. None: no row has padding."""
        return _mask_of(self.lengths, self.width, device)

    def join(self, read: DynamicCache, lengths: Sequence[int], still: int, expected: int, most: int) -> None:
        """Add rows that were just read, after the rows that are held.

        Args:
            read: their keys and values, padded on the left. The keys and values are freed, layer by layer.
            lengths: number of tokens of each row.
            still: maximum number of tokens that any row of the batch may get from now on.
            expected: number of rows that the batch will soon have. Memory for these rows is reserved at once.
            most: maximum number of rows for which memory may be reserved.
        """
        before, rows, longest = len(self.lengths), len(self.lengths) + len(lengths), max(lengths)
        self._make_room(rows, longest, still, expected, most)
        for mine, theirs in zip(self._layers, cast(Sequence[DynamicLayer], read.layers), strict=True):
            if theirs.keys is not None and theirs.values is not None and theirs.keys.numel():
                mine.write(slice(before, rows), theirs.keys, theirs.values)
            theirs.keys = theirs.values = None  # two copies of all layers would need twice the memory
        self.lengths += lengths
        self.start = min(self.start, self.end - longest)

    def prepare_step(self, still: int) -> None:
        """Make a column free for the next token of every row. `still`: as for `join`."""
        rows = len(self.lengths)
        self._make_room(rows, 0, still, rows, rows)

    def finish_step(self) -> None:
        """Count the token that every layer has written."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        for layer in self._layers:
            layer.written = 0

    def abandon_step(self) -> None:
        """After a forward pass that failed, forget the columns that some layers have written."""
        for layer in self._layers:
            layer.written = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these rows, in this order. Only rows whose place changes are copied."""
        self.lengths = [self.lengths[row] for row in rows]
        moves = Moves(rows)
        for layer in self._layers:
            layer.keep(moves, slice(self.start, self.end))
        self.start = self.end - max(self.lengths, default=0)

    def clear(self) -> None:
        """Free the memory. No row is held afterwards."""
        self.lengths = []
        self.start = self.end = self._places = self._columns = 0
        for layer in self._layers:
            layer.free()

    def _make_room(self, rows: int, longest: int, still: int, expected: int, most: int) -> None:
        """Have `rows` places, `longest` columns before `end`, and a column after `end`."""
        if rows <= self._places and longest <= self.end < self._columns:
            return
        end = max(self.width, longest)
        columns = end + max(1, min(still, ROOM))
        places = self._places if rows <= self._places else max(rows, min(max(expected, 2 * self._places), most))
        if places == self._places and columns <= self._columns:
            columns = self._columns  # the memory is large enough: the rows are moved within it
        for layer in self._layers:
            layer.move(len(self.lengths), slice(self.start, self.end), end, places, columns)
        self.start, self.end = end - self.width, end
        self._places, self._columns = places, columns


class HeldLayer(DynamicLayer):
    """The keys and values of one layer: the model's view of `Held`."""

    def __init__(self, held: Held, window: int | None) -> None:
        """Begin empty. `window`: the number of tokens that the layer attends to, with the new token; None: all."""
        super().__init__()
        self.is_sliding = window is not None
        self.written = 0  # number of new tokens that the present forward pass has written
        self._held = held
        self._window = window
        self._shape = (0, 0)  # places and columns, for the memory that is made when the first rows come

    def write(self, rows: slice, keys: Tensor, values: Tensor) -> None:
        """Write the last tokens of new rows [new rows, heads, n, width] into the columns before `end`."""
        if self.keys is None or self.values is None:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.keys, self.values = (
                half.new_zeros(self._shape[0], half.shape[1], self._shape[1], half.shape[3]) for half in (keys, values)
            )
        columns = slice(self._held.end - keys.shape[2], self._held.end)
        self.keys[rows, :, columns] = keys
        self.values[rows, :, columns] = values

    def move(self, rows: int, present: slice, end: int, places: int, columns: int) -> None:
        """Move the columns `present` of the first rows, so that the columns end at `end`, if needed in new memory."""
        if self.keys is not None and self.values is not None:
            target = slice(end - (present.stop - present.start), end)
            if self._shape == (places, columns):
                for half in (self.keys, self.values):
                    half[:rows, :, target] = half[:rows, :, present].clone()
            else:
                self.keys = _elsewhere(self.keys, rows, present, target, places, columns)
                self.values = _elsewhere(self.values, rows, present, target, places, columns)
        self._shape = (places, columns)

    def keep(self, moves: Moves, present: slice) -> None:
        """Continue with some of the rows, which have the columns `present`."""
        if self.keys is not None and self.values is not None:
            moves.of(self.keys[:, :, present])
            moves.of(self.values[:, :, present])

    def free(self) -> None:
        """Free the memory."""
        self.keys = self.values = None
        self.is_initialized = False
        self._shape = (0, 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new token of every row [rows, heads, 1, width].

        Return all columns that the layer attends to, as views.
        """
        assert self.keys is not None and self.values is not None, "rows are read before a token is decoded"
        rows, new, held = key_states.shape[0], key_states.shape[2], self._held
        self.keys[:rows, :, held.end : held.end + new] = key_states
        self.values[:rows, :, held.end : held.end + new] = value_states
        self.written = new
        first = held.start if self._window is None else max(held.start, held.end - self._window + 1)
        seen = slice(first, held.end + new)
        return self.keys[:rows, :, seen], self.values[:rows, :, seen]

    def get_seq_length(self) -> int:
        """The number of tokens so far, as if every row were as long as the longest."""
        return self._held.width + self.written

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of columns that the layer attends to, and the first of these columns."""
        length = self.get_seq_length()
        first = 0 if self._window is None else max(0, length - self._window + 1)
        return length - first + query_length, first


class HeldWhole:
    """The state of a batch of a hybrid, which no row joins or leaves. The class has the interface of `Held`."""

    def __init__(self) -> None:
        """Begin without rows."""
        self.lengths: list[int] = []
        self.cache: DynamicCache | None = None

    def join(self, read: DynamicCache, lengths: Sequence[int], still: int, expected: int, most: int) -> None:
        """Begin with the rows that were just read."""
        self.cache, self.lengths = read, list(lengths)

    def mask(self, device: torch.device) -> Tensor | None:
        """As for `Held`."""
        return _mask_of(self.lengths, max(self.lengths), device)

    def prepare_step(self, still: int) -> None:
        """Nothing to do: the model's own cache grows."""

    def finish_step(self) -> None:
        """Count the token of every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def abandon_step(self) -> None:
        """Nothing to do: after an error the batch is read again."""

    def keep(self, rows: Sequence[int]) -> None:
        """Free the memory. `rows` is empty, because only all rows leave together."""
        self.clear()

    def clear(self) -> None:
        """Free the memory."""
        self.cache, self.lengths = None, []


def _mask_of(lengths: Sequence[int], width: int, device: torch.device) -> Tensor | None:
    """The attention mask of the next token of rows that are padded to `width`, int64 [rows, width + 1], or None."""
    if min(lengths) == width:
        return None
    columns = torch.arange(width + 1, device=device)  # [width + 1]
    first = width - torch.tensor(lengths, device=device)[:, None]  # [rows, 1]
    return (columns >= first).to(torch.int64)


def _elsewhere(held: Tensor, rows: int, present: slice, target: slice, places: int, columns: int) -> Tensor:
    """A copy of `held` in memory of another shape, with the columns `present` of the first rows at `target`."""
    larger = held.new_zeros(places, held.shape[1], columns, held.shape[3])
    larger[:rows, :, target] = held[:rows, :, present]
    return larger
