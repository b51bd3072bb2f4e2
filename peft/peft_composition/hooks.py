"""A composition attached to the base model: each adapted linear module adds the update of the rows to its output.

Only this file changes the base, and `detach` restores it. This file deals with modules and with the arguments of a
forward pass, not with adapters or the making of updates.
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
from peft_composition.updates import Pass, Update

# Names of the arguments of a forward pass that have one row for each row of the batch. While an encoder-decoder model
# generates, its encoder has run before, and only the decoder's arguments are given.
_INPUTS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
# Names of the arguments that hold the cache of earlier passes: attention, Mamba, RWKV, XLNet, Reformer.
_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class LiveComposition:
    """The updates of one batch, attached to the base between `attach` and `detach`.

    The `forward` of a module is replaced on the instance instead of hooked. Code that torch.compile made before does
    not notice a new hook, and would compose nothing. But torch.compile checks that `forward` is unchanged. A replaced
    `forward` also costs less per call than a hook.
    """

    def __init__(self, base: nn.Module, updates: Mapping[str, Update], batch: int, gated: bool) -> None:
        """Compose the modules named in `updates`, for a batch of `batch` rows. `gated`: a gate weighs the adapters."""
        self.batch = batch
        self._base = base
        self._updates: dict[str, Update] = dict(updates)
        self._gated = gated
        self._pass = Pass(batch, 0)  # the current forward pass
        self._head_pass = self._pass  # the same pass for the head, which may receive the last positions only
        self._begun = False  # True after the first pass has begun
        self._in_part = False  # True while `only` is open
        self._handles: list[RemovableHandle] = []
        self._replaced: dict[str, tuple[nn.Module, Any]] = {}  # modules, with the forward of the instance or None

    def attach(self) -> None:
        """Make the modules that have an update add this update to their outputs."""
        for stack in _stacks(self._base):
            # Found once here, because a signature takes longer to read than a pass takes to use it.
            names = tuple(signature(type(stack).forward).parameters) if self._gated else ()
            self._handles.append(stack.register_forward_pre_hook(partial(self._note_pass, names), with_kwargs=True))
        self._replace_forwards()

    def detach(self) -> None:
        """Restore the base to its state before `attach`."""
        while self._handles:
            self._handles.pop().remove()
        while self._replaced:
            _, (module, own) = self._replaced.popitem()
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own

    def keep(self, rows: Tensor) -> None:
        """Continue with only these rows of the batch: indices int64 [rows], in this order.

        Raises `CompositionError` within `only`.
        """
        self.check_whole()
        for name, update in self._updates.items():
            self._updates[name] = update.at(rows.to(update.down.device))
        self.batch = len(rows)

    def check_whole(self) -> None:
        """Raise `CompositionError` within `only`: rows can neither join nor leave there."""
        if self._in_part:
            raise CompositionError("rows cannot join or leave the batch within only_rows; change the batch afterwards")

    @property
    def updates(self) -> Mapping[str, Update]:
        """The update of each module for the present rows."""
        return self._updates

    def become(self, updates: Mapping[str, Update], batch: int) -> None:
        """Continue with these updates, for a batch of `batch` rows.

        Raises `CompositionError`, and changes nothing, within `only` or for a module that cannot be composed.
        """
        self.check_whole()
        before = self._updates, self.batch
        self._updates, self.batch = dict(updates), batch
        try:
            self._replace_forwards()
        except BaseException:
            self._updates, self.batch = before
            raise

    @contextmanager
    def only(self, rows: slice) -> Iterator[None]:
        """Within this context the batch consists of these rows only. Their updates are views; nothing is copied."""
        whole = self._updates, self.batch, self._in_part
        self._updates = {name: update.at(rows) for name, update in self._updates.items()}
        self.batch = len(range(*rows.indices(self.batch)))
        self._in_part = True
        try:
            yield
        finally:
            self._updates, self.batch, self._in_part = whole

    def _replace_forwards(self) -> None:
        """Replace the `forward` of the modules that have an update and whose `forward` was not replaced before."""
        head = cast(Any, self._base).get_output_embeddings() if self._gated else None
        for name in self._updates:
            if self.batch > 1 and "experts" in name.split("."):
                # An expert may receive every position, but in an order of its own.
                reason = "is one of several experts, which receive positions and not rows"
                raise CompositionError(_out_of_order(name, reason))
            if name not in self._replaced:
                module = self._base.get_submodule(name)
                composed = self._composed(name, module.forward, module is head)
                self._replaced[name] = (module, module.__dict__.get("forward"))
                module.__dict__["forward"] = composed

    def _note_pass(self, names: Sequence[str], stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward pass of a stack: read its number of rows, and check that the rows fit the weights.

        For gates, the attention mask and the cache are read too; `names` are the names of the forward's arguments.
        """
        inputs = input_rows(args, kwargs)
        rows, length = inputs.shape[:2]
        if self.batch == 0:
            raise CompositionError("the batch has no row; let rows join with add_rows before the model is called")
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
            # logits_to_keep may also list positions one by one, and then these need not be the last.
            cut = not isinstance(given.get("logits_to_keep"), Tensor)
            self._head_pass = Pass(rows, length, read, first, cut)
        else:
            self._pass = self._head_pass = Pass(rows, length)

    def _reads_prompts(self, given: Mapping[str, Any], length: int) -> bool:
        """Return whether the cache is empty before a pass of `length` new positions, by the pass's arguments.

        Some caches, such as Mamba's, do not show their length. Then the answer is True for the first pass since the
        composition began, and for a pass of more than one position.
        """
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        if cache is None:
            return True
        try:
            return bool(cache.get_seq_length() == 0)
        except (AttributeError, ValueError):  # the cache has no such method, or none of its layers counts positions
            return not self._begun or length > 1

    def _composed(self, name: str, forward: Callable[..., Tensor], is_head: bool) -> Callable[..., Tensor]:
        """Return a forward that adds the module's update to the output of `forward`."""

        def composed_forward(*args: Any, **kwargs: Any) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            y = forward(*args, **kwargs)
            update = self._updates.get(name)
            if update is None:  # no row of an open batch has an adapter that targets the module
                return y
            reading = self._head_pass if is_head else self._pass
            if self.batch > 1 and x.shape[0] != (reading.rows if x.ndim > 2 else reading.rows * reading.length):
                # For example, a mixture-of-experts layer gives each expert some positions, in an order of its own.
                raise CompositionError(_out_of_order(name, f"was called on inputs of shape {list(x.shape)}"))
            return update.add(x, y, reading)

        return composed_forward


def input_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the input tensor [rows, length, ...] of a call to a language model: token ids or their embeddings."""
    candidates = [*args[:1], *(kwargs.get(key) for key in _INPUTS)]
    for candidate in candidates:
        if isinstance(candidate, Tensor):
            return candidate
    raise CompositionError("the model was called without input_ids or inputs_embeds, so its rows are unknown")


def _stacks(base: nn.Module) -> list[nn.Module]:
    """Return the base, and also the encoder and the decoder of an encoder-decoder model.

    The two have inputs of different lengths, and `generate` calls the encoder before any forward pass of the base.
    """
    config: Any = getattr(base, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return [base]
    halves: Any = base
    return [base, halves.get_encoder(), halves.get_decoder()]


def _out_of_order(name: str, what: str) -> str:
    return (
        f"module '{name}' {what}, so the rows of the batch cannot be told apart there; compose one row at a time, or "
        "use adapters that do not target this module"
    )
