"""A composition at work in the base model: its linear modules' forwards, each with the rows' pairs added.

The base is touched by nothing but this, and `detach` leaves it as it was. Knows pairs and modules; knows nothing of
adapters or of how the pairs came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_composition.errors import CompositionError
from peft_composition.pairs import Pair

# What the argument of a forward pass is called that has one row for each row of the batch. An encoder-decoder that
# generates has encoded its inputs before: then only the decoder's are there.
_INPUTS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")


class LiveComposition:
    """The pairs of one batch, attached to the base between `attach` and `detach`.

    A module's `forward` is replaced on the instance rather than hooked: code made by torch.compile before would not
    notice a new hook (and so compose nothing), but it is checked to have found the forward that is there; and a call
    costs less.
    """

    def __init__(self, base: nn.Module, pairs: Mapping[str, Pair], batch: int) -> None:
        self.batch = batch
        self._base = base
        self._pairs = dict(pairs)
        self._rows = batch  # rows of the forward pass under way: more than `batch` with beams or several sequences
        self._positions = 0  # rows times length of that pass
        self._handles: list[RemovableHandle] = []
        self._replaced: list[tuple[nn.Module, Any]] = []  # with the forward that the instance itself had, if any

    def attach(self) -> None:
        """Make just the modules that have a pair add it to their outputs."""
        for stack in _stacks(self._base):
            self._handles.append(stack.register_forward_pre_hook(self._note_rows, with_kwargs=True))
        for name in self._pairs:
            if self.batch > 1 and "experts" in name.split("."):
                # An expert that happens to be given every position still gets them in an order of its own.
                raise CompositionError(_out_of_order(name, "is one of several experts, which see positions, not rows"))
            module = self._base.get_submodule(name)
            composed = self._composed(name, module.forward)
            self._replaced.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = composed

    def detach(self) -> None:
        """Leave the base as it was before `attach`."""
        while self._handles:
            self._handles.pop().remove()
        while self._replaced:
            module, own = self._replaced.pop()
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone, indices int64 [rows], in this order."""
        for name, pair in self._pairs.items():
            rows = rows.to(pair.down.device)
            self._pairs[name] = Pair(pair.down[rows], pair.up[rows])
        self.batch = len(rows)

    @contextmanager
    def only(self, rows: slice) -> Iterator[None]:
        """Within this context the batch is these rows alone; their pairs are views, so nothing is copied."""
        pairs, batch = self._pairs, self.batch
        self._pairs = {name: Pair(pair.down[rows], pair.up[rows]) for name, pair in pairs.items()}
        self.batch = len(range(*rows.indices(batch)))
        try:
            yield
        finally:
            self._pairs, self.batch = pairs, batch

    def _note_rows(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward pass of a stack: see how many rows it has, and that they fit the weights."""
        inputs = input_rows(args, kwargs)
        self._rows, self._positions = inputs.shape[0], inputs.shape[0] * inputs.shape[1]
        if self._rows % self.batch:
            raise CompositionError(
                f"the model was called with {self._rows} rows, which is no multiple of the {self.batch} rows of weights"
            )

    def _composed(self, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a module's forward with its pairs added."""

        def composed_forward(*args: Any, **kwargs: Any) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            y = forward(*args, **kwargs)
            if self.batch > 1 and x.shape[0] != (self._rows if x.ndim > 2 else self._positions):
                # A mixture-of-experts layer, for one, gives each expert only some positions, in an order of its own.
                raise CompositionError(_out_of_order(name, f"was called on inputs of shape {list(x.shape)}"))
            return add_pair(x, y, self._pairs[name])

        return composed_forward


def add_pair(x: Tensor, y: Tensor, pair: Pair) -> Tensor:
    """Return y + (x A^T) B for each row's pair: the same two batched products whatever was composed.

    x [rows, ..., d_in] and y [rows, ..., d_out] may also come flattened, [rows * length, d]. `rows` is a multiple of
    the pair's batch, with the rows of one sample adjacent, as `generate` lays out beams and returned sequences, so
    they share their sample's pair without a copy. Writes into y where no gradient is asked for.
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


def input_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the tensor [rows, length, ...] that a call to a language model is about: token ids or their embeddings."""
    candidates = [*args[:1], *(kwargs.get(key) for key in _INPUTS)]
    for candidate in candidates:
        if isinstance(candidate, Tensor):
            return candidate
    raise CompositionError("the model was called without input_ids or inputs_embeds, so its rows are unknown")


def _stacks(base: nn.Module) -> list[nn.Module]:
    """The base, and its encoder and decoder where it has both: these see inputs of two lengths.

    And `generate` calls the encoder on its own, before any forward pass of the base.
    """
    config: Any = getattr(base, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return [base]
    halves: Any = base
    return [base, halves.get_encoder(), halves.get_decoder()]


def _out_of_order(name: str, what: str) -> str:
    return (
        f"module '{name}' {what}, from which the rows of the batch cannot be told apart; adapters on such a module "
        "cannot be composed by row"
    )
