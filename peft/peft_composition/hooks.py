"""A composition at work in the base model: forward hooks that add each row's pair to the modules' outputs.

The base is touched by nothing but these hooks, and taking them off leaves it as it was. Knows pairs and modules; knows
nothing of adapters or of how the pairs came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_composition.errors import CompositionError
from peft_composition.pairs import Pair


class LiveComposition:
    """The pairs of one batch, attached to the base between `attach` and `detach`."""

    def __init__(self, base: nn.Module, pairs: Mapping[str, Pair], batch: int) -> None:
        self.batch = batch
        self._base = base
        self._pairs = dict(pairs)
        self._rows = batch  # rows of the forward pass under way: more than `batch` with beams or several sequences
        self._positions = 0  # rows times length of that pass
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on the base and on just the modules that have a pair."""
        self._handles.append(self._base.register_forward_pre_hook(self._note_rows, with_kwargs=True))
        for name in self._pairs:
            module = self._base.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._hook(name), with_kwargs=True))

    def detach(self) -> None:
        """Take all hooks off again."""
        while self._handles:
            self._handles.pop().remove()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone, indices int64 [rows], in this order."""
        for name, pair in self._pairs.items():
            rows = rows.to(pair.down.device)
            self._pairs[name] = Pair(pair.down[rows], pair.up[rows])
        self.batch = len(rows)

    def _note_rows(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward pass of the base: see how many rows it has, and that they fit the weights."""
        inputs = input_rows(args, kwargs)
        self._rows, self._positions = inputs.shape[0], inputs.shape[0] * inputs.shape[1]
        if self._rows % self.batch:
            raise CompositionError(
                f"the model was called with {self._rows} rows, which is no multiple of the {self.batch} rows of weights"
            )

    def _hook(self, name: str) -> Callable[..., Tensor]:
        """Return the forward hook of one module."""

        def add_to_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            x: Tensor = (*args, *kwargs.values())[0]
            if x.shape[0] != (self._rows if x.ndim > 2 else self._positions):
                # A mixture-of-experts layer, for one, gives each expert only some positions, in an order of its own.
                raise CompositionError(
                    f"module '{name}' was called on inputs of shape {list(x.shape)}, from which the {self._rows} rows "
                    "of the batch cannot be told apart; adapters on such a module cannot be composed by row"
                )
            return add_pair(x, output, self._pairs[name])

        return add_to_output


def add_pair(x: Tensor, y: Tensor, pair: Pair) -> Tensor:
    """Return y + (x A^T) B for each row's pair: the same two batched products whatever was composed.

    x [rows, ..., d_in] and y [rows, ..., d_out] may also come flattened, [rows * length, d]. `rows` is a multiple of
    the pair's batch, with the rows of one sample adjacent, as `generate` lays out beams and returned sequences, so
    they share their sample's pair without a copy. Writes into y where no gradient is asked for.
    """
    batch = pair.down.shape[0]
    x = x.reshape(batch, -1, x.shape[-1]).to(pair.down.dtype)  # [batch, n, d_in]
    inner = torch.bmm(x, pair.down.transpose(1, 2))  # [batch, n, R]
    if not torch.is_grad_enabled() and y.is_contiguous() and y.dtype == inner.dtype == pair.up.dtype:
        y.view(batch, -1, y.shape[-1]).baddbmm_(inner, pair.up)  # [batch, n, d_out]
        return y
    update = torch.bmm(inner, pair.up)  # [batch, n, d_out]
    return y + update.view(y.shape).to(y.dtype)


def input_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the tensor [rows, length, ...] that a call to a causal LM is about: token ids or their embeddings."""
    candidates = [*args[:1], *(kwargs.get(key) for key in ("input_ids", "inputs", "inputs_embeds"))]
    for candidate in candidates:
        if isinstance(candidate, Tensor):
            return candidate
    raise CompositionError("the model was called without input_ids or inputs_embeds, so its rows are unknown")
