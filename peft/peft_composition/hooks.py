"""A composition at work in the base model: its linear modules' forwards, each with the rows' update added.

The base is touched by nothing but this, and `detach` leaves it as it was. Knows modules, and what a forward pass is
given; knows nothing of adapters, or of how the updates came to be and are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_composition.errors import CompositionError
from peft_composition.updates import GatedAdapters, Pass, Update

# What the argument of a forward pass is called that has one row for each row of the batch. An encoder-decoder that
# generates has encoded its inputs before: then only the decoder's are there.
_INPUTS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
# And what is called that holds what earlier passes have left: in models with attention, Mamba, RWKV, XLNet, Reformer.
_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class LiveComposition:
    """The updates of one batch, attached to the base between `attach` and `detach`.

    A module's `forward` is replaced on the instance rather than hooked: code made by torch.compile before would not
    notice a new hook (and so compose nothing), but it is checked to have found the forward that is there; and a call
    costs less.
    """

    def __init__(self, base: nn.Module, updates: Mapping[str, Update], batch: int) -> None:
        """Compose the modules that `updates` names, for a batch of so many rows."""
        self.batch = batch
        self._base = base
        self._updates = dict(updates)
        self._gated = any(isinstance(update, GatedAdapters) for update in updates.values())
        self._pass = Pass(batch, 0)  # the forward pass under way
        self._head_pass = self._pass  # and as the head sees it
        self._begun = False  # whether there was one before
        self._in_part = False  # whether `only` is open
        self._handles: list[RemovableHandle] = []
        self._replaced: list[tuple[nn.Module, Any]] = []  # with the forward that the instance itself had, if any

    def attach(self) -> None:
        """Make just the modules that have an update add it to their outputs."""
        for stack in _stacks(self._base):
            # Asked here, as it takes longer than all that a pass does with it.
            names = tuple(signature(type(stack).forward).parameters) if self._gated else ()
            self._handles.append(stack.register_forward_pre_hook(partial(self._note_pass, names), with_kwargs=True))
        head = cast(Any, self._base).get_output_embeddings() if self._gated else None
        for name in self._updates:
            if self.batch > 1 and "experts" in name.split("."):
                # An expert that happens to be given every position still gets them in an order of its own.
                raise CompositionError(_out_of_order(name, "is one of several experts, which see positions, not rows"))
            module = self._base.get_submodule(name)
            composed = self._composed(name, module.forward, module is head)
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
        """Go on with these rows of the batch alone, indices int64 [rows], in this order.

        Raises `CompositionError` within `only`, at whose end the batch is whole again.
        """
        if self._in_part:
            raise CompositionError("rows cannot leave the batch within only_rows; call keep_rows once that is left")
        for name, update in self._updates.items():
            rows = rows.to(update.down.device)
            self._updates[name] = update.at(rows)
        self.batch = len(rows)

    @contextmanager
    def only(self, rows: slice) -> Iterator[None]:
        """Within this context the batch is these rows alone; their updates are views, so nothing is copied."""
        whole = self._updates, self.batch, self._in_part
        self._updates = {name: update.at(rows) for name, update in self._updates.items()}
        self.batch = len(range(*rows.indices(self.batch)))
        self._in_part = True
        try:
            yield
        finally:
            self._updates, self.batch, self._in_part = whole

    def _note_pass(self, names: Sequence[str], stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward pass of a stack: see how many rows it has, and that they fit the weights.

        `names` are those of its forward's arguments, for gates, who want to know more.
        """
        inputs = input_rows(args, kwargs)
        rows, length = inputs.shape[:2]
        if rows % self.batch:
            raise CompositionError(
                f"the model was called with {rows} rows, which is no multiple of the {self.batch} rows of weights"
            )
        if self._gated:
            given = {**dict(zip(names, (stack, *args), strict=False)), **kwargs}
            mask = given.get("attention_mask")
            read = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None  # [rows, positions]
            first = self._reads_prompts(given, length)
            self._begun = True
            self._pass = Pass(rows, length, read, first)
            # Positions given one by one may be any.
            cut = not isinstance(given.get("logits_to_keep"), Tensor)
            self._head_pass = Pass(rows, length, read, first, cut)
        else:
            self._pass = self._head_pass = Pass(rows, length)

    def _reads_prompts(self, given: Mapping[str, Any], length: int) -> bool:
        """Whether nothing is cached before a pass of so many new positions, by the arguments that it is given.

        Some states, Mamba's for instance, cannot say. Then it is the first pass since the composition began, or one of
        more than one position.
        """
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        if cache is None:
            return True
        try:
            return bool(cache.get_seq_length() == 0)
        except (AttributeError, ValueError):  # it has no such method; it has, and no layer that counts
            return not self._begun or length > 1

    def _composed(self, name: str, forward: Callable[..., Tensor], is_head: bool) -> Callable[..., Tensor]:
        """Return a module's forward with its update added."""

        def composed_forward(*args: Any, **kwargs: Any) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            y = forward(*args, **kwargs)
            reading = self._head_pass if is_head else self._pass
            if self.batch > 1 and x.shape[0] != (reading.rows if x.ndim > 2 else reading.rows * reading.length):
                # A mixture-of-experts layer, for one, gives each expert only some positions, in an order of its own.
                raise CompositionError(_out_of_order(name, f"was called on inputs of shape {list(x.shape)}"))
            return self._updates[name].add(x, y, reading)

        return composed_forward


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
