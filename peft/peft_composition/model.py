"""A causal language model whose every row can be served by its own composition of adapters.

`ComposableModel` keeps adapters resident beside a base model and composes them on demand. The base's weights are never
touched, and outside `composed` it computes what it always did. The formulas are in `pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition.checkpoint import read_adapter
from peft_composition.errors import AdapterError, CompositionError
from peft_composition.gates import Gate, GateUsage, PreparedGates, usage_of
from peft_composition.hooks import LiveComposition, input_rows
from peft_composition.layers import placement
from peft_composition.modes import Composer, composer_of
from peft_composition.pairs import ModuleStack, active_slots
from peft_composition.residency import Residency
from peft_composition.save import save_pairs
from peft_composition.updates import Update, gated_updates, row_updates


class ComposableModel:
    """A transformers causal LM with resident LoRA adapters, composed by row while `composed` is open.

    The base stays usable on its own. Several threads may share one `ComposableModel`: they take turns, each having the
    model for itself while it is inside `composed` or a call. The base itself, called past this object, knows no turns.
    """

    def __init__(self, base: PreTrainedModel, adapter_memory: int | None = None) -> None:
        """Wrap `base`. `adapter_memory` is how many bytes adapters may take on a device; None keeps all there."""
        if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
            raise CompositionError("the base carries PEFT adapters already; unload them first (PeftModel.unload())")
        if any("_orig_mod" in module._modules for module in base.modules()):
            reason = "torch.compile(module) wraps it in another, so its modules have not the names that adapters know"
            raise CompositionError(f"{reason}; compile the base in place: base.compile()")
        self.base = base
        self._residency = Residency(base, adapter_memory)
        self._columns: tuple[str, ...] = ()  # the adapters that lora_mapping's columns stand for
        self._live: LiveComposition | None = None
        self._prepared = PreparedGates()
        self._usage: Callable[[], GateUsage] | None = None  # of the gated composition that is active
        self._turn = RLock()

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """The base's device, where inputs are expected."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The base's dtype."""
        return self.base.dtype

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded adapters, in loading order."""
        return list(self._residency.headers)

    @property
    def resident_adapters(self) -> list[str]:
        """Those of the loaded adapters that are in memory now, the least recently used first."""
        return self._residency.resident

    def load_adapter(self, path_or_repo_id: str | Path, name: str, revision: str | None = None) -> None:
        """Load a PEFT LoRA checkpoint under `name`, from a folder or from the Hub (there at `revision`).

        The adapter is kept in the dtype of the modules it targets: in memory, or where `adapter_memory` has no room
        for it in its file, which must then stay. Raises `AdapterError`, and changes nothing, if the name is taken or
        the adapter cannot be composed exactly.
        """
        with self._turn:
            if name in self._residency.headers:
                reason = "an adapter of this name is loaded already; unload it first, or use another name"
                raise AdapterError(name, reason)
            self._residency.add(read_adapter(path_or_repo_id, name, self.base, revision))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter and free its place. Raises `AdapterError` if it is not loaded."""
        with self._turn:
            self._check_loaded([name])
            self._residency.remove(name)
            self._prepared.forget(name)

    @contextmanager
    def composed(
        self,
        adapters: Sequence[str],
        weights: Tensor | Sequence[Sequence[float]],
        mode: str | Composer = "mixture",
        gate: Gate | None = None,
    ) -> Iterator[ComposableModel]:
        """Within this context, row i of every batch is composed with row i of `weights` [batch, len(adapters)].

        `mode` is the name of a composer in `modes`, "mixture" or "fusion" for instance, or a composer itself. With a
        `gate`, which needs one of these two, an adapter's weight is the gate's, by token, times the row's own: 1 where
        it may choose the adapter and 0 where not. A row of zeros is the base model. Gradients flow to the inputs, to
        the weights that are not zero, and to what the gate computes with. Whatever happens inside, the base is as
        before once the context is left.

        Raises `AdapterError` for an adapter that is not loaded, `AdapterMemoryError` if those in use, or all that a
        gate chooses from, do not fit in memory together; `CompositionError` for an unknown mode, one that cannot be
        gated, weights that do not fit, and a composition inside another.
        """
        with self._turn:
            if self._live is not None:
                raise CompositionError("a composition is active already; leave it before composing again")
            weights, composer = self._checked_weights(adapters, weights), composer_of(mode)
            updates: Mapping[str, Update]
            usage: Callable[[], GateUsage] | None = None
            if gate is None:
                columns, slots = self._in_use(adapters, weights)
                updates = row_updates(composer, self._targeted(slots), slots, weights[:, columns])
            else:
                columns, slots = self._in_use(adapters, torch.ones_like(weights))
                names = [adapters[column] for column in columns]
                gated = gated_updates(
                    gate, composer, self._targeted(slots), names, slots, weights[:, columns], self._prepared
                )
                updates, usage = gated, partial(usage_of, [update.tally for update in gated.values()], columns)
            live = LiveComposition(self.base, updates, batch=weights.shape[0])
            try:
                live.attach()
                self._live, self._usage = live, usage
                yield self
            finally:
                self._live = self._usage = None
                live.detach()

    def gate_usage(self) -> GateUsage:
        """How the gate of the active composition has weighed, in passes without gradients, since it began.

        Rows that have left keep what they had. Raises `CompositionError` if no gated composition is active.
        """
        with self._turn:
            if self._usage is None:
                raise CompositionError("no composition with a gate is active; ask within composed(..., gate=...)")
            return self._usage()

    def keep_rows(self, rows: Tensor) -> None:
        """Go on, within `composed`, with these rows of the batch alone: indices int64 [rows], in this order.

        So rows that have ended can leave a batch while the others are decoded. Without a composition nothing is to do.
        Raises `CompositionError` within `only_rows`, after which the batch is whole again.
        """
        with self._turn:  # who composes has it already; who does not must not reach into another thread's composition
            if self._live is not None:
                self._live.keep(rows)

    def __call__(
        self, *args: Any, lora_mapping: Tensor | None = None, merging_type: str | None = None, **kwargs: Any
    ) -> Any:
        """Run the base's forward pass, composed if inside `composed` or if a `lora_mapping` is given.

        `lora_mapping` [batch, adapters] are weights whose columns follow `set_adapter`; `merging_type` is
        "mixture" (if not given) or "fusion": the call of the original's fork. All else is passed to the base.
        Raises `CompositionError` if the inputs do not have one row for each row of weights.
        """
        return self._run(self.base, args, kwargs, lora_mapping, merging_type)

    def generate(
        self, *args: Any, lora_mapping: Tensor | None = None, merging_type: str | None = None, **kwargs: Any
    ) -> Any:
        """Run the base's `generate`, composed as `__call__` is. Beams share their row's weights, as do sequences."""
        return self._run(cast(Any, self.base).generate, args, kwargs, lora_mapping, merging_type)

    @contextmanager
    def only_rows(self, rows: slice) -> Iterator[None]:
        """Within this context, inside `composed`, the batch is these of its rows alone; then it is whole again.

        So a batch whose prompts differ in length can be read in parts. Without a composition nothing is to do. No row
        can leave the batch meanwhile.
        """
        with self._turn, nullcontext() if self._live is None else self._live.only(rows):
            yield

    def prefetch(self, adapters: Sequence[str]) -> None:
        """Begin to read those adapters that are not in memory, beside whatever is computed meanwhile.

        What was read ahead for an earlier call and not yet used is forgotten. Raises `AdapterError` for an adapter that
        is not loaded.
        """
        with self._turn:
            self._check_loaded(adapters)
            self._residency.prefetch(adapters)

    def wait_for_prefetch(self) -> None:
        """Return once all that `prefetch` began has been read."""
        with self._turn:
            self._residency.wait()

    def set_adapter(self, adapters: str | Sequence[str]) -> None:
        """Say which adapters the columns of `lora_mapping` stand for. By itself it composes nothing.

        Meant for one thread, as the original's call is; several use `composed`.
        """
        names = (adapters,) if isinstance(adapters, str) else tuple(adapters)
        self._check_columns(names)
        self._columns = names

    def save_composition(
        self,
        adapters: Sequence[str],
        weights: Sequence[float] | Tensor,
        mode: str | Composer = "mixture",
        *,
        path: str | Path,
    ) -> None:
        """Write one composition as an ordinary PEFT checkpoint into a new folder at `path`.

        `weights` holds one number for each adapter. Mixtures have the sum of the adapters' ranks, fusions the
        largest rank. Raises `CompositionError` if nothing is left to save, or `path` holds something.
        """
        row = _as_floats(weights)
        if row.ndim != 1:
            raise CompositionError(f"weights must be one number for each adapter, not of shape {list(row.shape)}")
        with self._turn, torch.no_grad():
            composer, row = composer_of(mode), self._checked_weights(adapters, row[None])
            columns, slots = self._in_use(adapters, row)
            active = active_slots(slots, row[:, columns])
            if active is None:
                raise CompositionError("all weights are zero: such a composition is the base model itself")
            pairs = {stack.module: composer(stack, active.to(stack.down.device)) for stack in self._targeted(slots)}
            first = self._residency.headers[adapters[0]]
        base_name = first.base_model_name_or_path or getattr(self.base, "name_or_path", None)
        save_pairs(self.base, pairs, Path(path), base_name, first.task_type)

    def _in_use(self, adapters: Sequence[str], weights: Tensor) -> tuple[list[int], list[int]]:
        """Bring the adapters with a weight that is not 0 into memory; return their columns, and the slots of these.

        In loading order: sums over adapters have the same bits however these are named and wherever they lie.
        """
        self._check_columns(adapters)
        order = {name: place for place, name in enumerate(self._residency.headers)}
        used = weights.ne(0).any(dim=0).tolist()  # [adapters]; the others need not be in memory
        columns = sorted((c for c, is_used in enumerate(used) if is_used), key=lambda c: order[adapters[c]])
        return columns, self._residency.slots([adapters[column] for column in columns])

    def _targeted(self, slots: Sequence[int]) -> Iterator[ModuleStack]:
        """The stacks of the modules that one of these adapters targets, where the modules are now."""
        for name, stack in self._residency.stacks.items():
            if not stack.ranks.keys().isdisjoint(slots):
                stack.follow(*placement(self.base.get_submodule(name), self.dtype))
                yield stack

    def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        lora_mapping: Tensor | None,
        merging_type: str | None,
    ) -> Any:
        """Call `function` of the base, under the composition that is active or that `lora_mapping` asks for."""
        with self._turn:
            if lora_mapping is not None:
                if not self._columns:
                    reason = "call set_adapter first, to say which adapters lora_mapping's columns stand for"
                    raise CompositionError(reason)
                with self.composed(self._columns, lora_mapping, "mixture" if merging_type is None else merging_type):
                    return self._run(function, args, kwargs, None, None)
            if merging_type is not None:
                raise CompositionError("merging_type was given without lora_mapping, so there is nothing to merge")
            if self._live is not None:
                rows = input_rows(args, kwargs).shape[0]
                if rows != self._live.batch:
                    raise CompositionError(
                        f"the inputs have {rows} rows and the weights {self._live.batch}; give each row its weights"
                    )
            return function(*args, **kwargs)

    def _check_loaded(self, adapters: Sequence[str]) -> None:
        for name in adapters:
            if name not in self._residency.headers:
                loaded = ", ".join(self.adapters) or "none"
                raise AdapterError(name, f"it is not loaded; load_adapter it first (loaded: {loaded})")

    def _check_columns(self, adapters: Sequence[str]) -> None:
        """See that adapters can be the columns of weights: each loaded, and named once."""
        if isinstance(adapters, str) or not adapters:
            raise CompositionError("name the adapters to compose in a list of at least one name")
        if len(set(adapters)) < len(adapters):
            twice = next(name for place, name in enumerate(adapters) if name in adapters[:place])
            raise AdapterError(twice, "it is named twice; give each adapter one column of weights")
        self._check_loaded(adapters)

    def _checked_weights(self, adapters: Sequence[str], weights: Tensor | Sequence[Sequence[float]]) -> Tensor:
        """Return weights as float32 [batch, adapters], or raise `CompositionError` if they are not that."""
        tensor = _as_floats(weights)
        if tensor.ndim != 2 or tensor.shape[0] == 0 or tensor.shape[1] != len(adapters):
            raise CompositionError(
                f"weights have shape {list(tensor.shape)}; needed is one row for each input and one column "
                f"for each of the {len(adapters)} adapters"
            )
        if not torch.isfinite(tensor).all():
            raise CompositionError("weights hold NaN or infinity")
        return tensor


def _as_floats(weights: object) -> Tensor:
    """Return weights as a float32 tensor of whatever shape; a tensor keeps its gradient."""
    try:
        return torch.as_tensor(weights).to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompositionError(f"weights are not all numbers, or its rows not of one length: {error}") from error
