"""A causal language model that serves every row with its own composition of adapters.

`ComposableModel` keeps adapters in memory beside a base model and composes them on demand. The model weights of the
base are never changed, and outside `composed` the base computes what it computed before. The formulas are in `pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition.checkpoint import read_adapter
from peft_composition.errors import AdapterError, CompositionError
from peft_composition.gates import Gate, GateUsage, PreparedGates, Tally, usage_of
from peft_composition.hooks import LiveComposition, input_rows
from peft_composition.joining import OpenRows, of_present_rows, with_gated_rows
from peft_composition.layers import placement
from peft_composition.modes import Composer, composer_of
from peft_composition.pairs import ModuleStack, active_slots, mixture_pair
from peft_composition.residency import Residency
from peft_composition.save import base_name_for, save_pairs
from peft_composition.updates import (
    GatedAdapters,
    Pairs,
    SharedAdapters,
    Update,
    gated_updates,
    pair_updates,
    row_updates,
    shared_adapters,
)


class ComposableModel:
    """A transformers causal LM with LoRA adapters in memory, composed by row while `composed` is open.

    The base stays usable on its own. Several threads may share one `ComposableModel`: a thread has the model for itself
    while it is inside `composed` or a call. A direct call of the base does not wait for other threads.
    """

    def __init__(self, base: PreTrainedModel, adapter_memory: int | None = None) -> None:
        """Wrap `base`. `adapter_memory`: maximum memory of adapters on each device, in bytes; None sets no limit."""
        if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
            raise CompositionError("the base carries PEFT adapters already; unload them first (PeftModel.unload())")
        if any("_orig_mod" in module._modules for module in base.modules()):
            reason = "torch.compile(module) wraps the module in another, so modules lose the names that adapters use"
            raise CompositionError(f"{reason}; compile the base in place: base.compile()")
        self.base = base
        self._residency = Residency(base, adapter_memory)
        self._columns: tuple[str, ...] = ()  # the adapters of lora_mapping's columns
        self._live: LiveComposition | None = None
        self._prepared = PreparedGates()
        self._open: OpenRows | None = None  # the rows of the active composition, once rows may join
        self._gated: _GatedBatch | None = None  # the batch of the active composition, if gated
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
        """The loaded adapters that are in memory now, the least recently used first."""
        return self._residency.resident

    def load_adapter(self, path_or_repo_id: str | Path, name: str, revision: str | None = None) -> None:
        """Load a PEFT LoRA checkpoint under `name`, from a folder or from the Hub (there at `revision`).

        The adapter is kept in memory, in the dtype of the modules that it targets. If `adapter_memory` has no room, the
        adapter is read from its file again when needed, so the file must stay. Every note for the user is given as an
        `AdapterWarning`, and can be read later with `adapter_notes`. Raises `AdapterError`, and changes nothing, if the
        name is taken or the adapter cannot be composed exactly.
        """
        with self._turn:
            if name in self._residency.headers:
                reason = "an adapter of this name is loaded already; unload it first, or use another name"
                raise AdapterError(name, reason)
            adapter = read_adapter(path_or_repo_id, name, self.base, revision)
            self._residency.add(adapter)
        adapter.header.warn()

    def adapter_notes(self, name: str) -> tuple[str, ...]:
        """Return the notes for the user on a loaded adapter, one sentence each; empty for most adapters.

        The notes say that the adapter adds nothing to the base, that it names another base, that keys of its
        configuration were ignored, or that modules which it targets have no tensors. Raises `AdapterError` if the
        adapter is not loaded.
        """
        with self._turn:
            self._check_loaded([name])
            return self._residency.headers[name].notes

    def unload_adapter(self, name: str) -> None:
        """Remove an adapter and free its memory. Raises `AdapterError` if the adapter is not loaded."""
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

        `mode` is the name of a composer in `modes`, such as "mixture" or "fusion", or a composer. A `gate` needs one of
        these two modes: the weight of an adapter at a token is then the gate's weight times the row's weight, so a
        row's weight 0 masks the adapter for the gate. A row of zeros is the base model. Gradients flow to the inputs,
        to the weights that are not zero, and to the parameters of the gate. When the context is left, also by an
        exception, the base is as before.

        Raises `AdapterError` for an adapter that is not loaded. Raises `AdapterMemoryError` if the adapters in use, or
        all adapters that a gate chooses from, do not fit into memory together. Raises `CompositionError` for an unknown
        mode, a mode that cannot be gated, weights that do not fit, and a composition inside another.
        """
        with self._turn:
            if self._live is not None:
                raise CompositionError("a composition is active already; leave it before composing again")
            weights, composer = self._checked_weights(adapters, weights), composer_of(mode)
            updates: Mapping[str, Update]
            gated = None
            if gate is None:
                columns, slots = self._in_use(adapters, weights)
                updates = row_updates(composer, self._targeted(slots), slots, weights[:, columns])
            else:
                updates, gated = self._gated_batch(gate, composer, adapters, weights)
            with self._live_batch(updates, weights.shape[0], gated):
                yield self

    @contextmanager
    def open_batch(
        self,
        adapters: Sequence[str] = (),
        mode: str | Composer = "mixture",
        gate: Gate | None = None,
        expected: int = 0,
    ) -> Iterator[ComposableModel]:
        """Within this context, rows join the batch with `add_rows` and leave the batch with `keep_rows`.

        The batch begins without rows. Without a gate, every row has adapters and a mode of its own, and `adapters` and
        `mode` are not used. With a gate, `adapters` are all adapters that a row may offer, and `mode` is the mode of
        every row. `expected` is the number of rows for which memory is reserved at once: fewer copies are made while
        rows join. More rows may join.

        Raises as `composed` does.
        """
        with self._turn:
            if self._live is not None:
                raise CompositionError("a composition is active already; leave it before composing again")
            updates: Mapping[str, Update] = {}
            gated = None
            if gate is not None:
                self._check_columns(adapters)
                updates, gated = self._gated_batch(gate, composer_of(mode), adapters, torch.zeros(0, len(adapters)))
            with self._live_batch(updates, 0, gated, expected):
                yield self

    def add_rows(
        self, adapters: Sequence[str], weights: Tensor | Sequence[Sequence[float]], mode: str | Composer = "mixture"
    ) -> None:
        """Let further rows join the batch of `composed` or `open_batch`, after the rows that are in the batch.

        Row i of the new rows is composed with row i of `weights` [new rows, len(adapters)], by a mode of its own. A row
        of zeros is the base model, and `adapters` may be empty. In a batch with a gate, the adapters must be among the
        adapters of the batch, and the mode must be the mode of the batch. Nothing is computed for the rows that are
        there. No gradient flows to rows of a batch that rows have joined. If an exception is raised, no row has joined.

        Rows have pairs of their own, except for mixtures of at least half of all loaded adapters, which share the
        adapters. So the computation for a row depends on its own weights, and not on the other rows.

        Raises `CompositionError` if no composition is active, within `only_rows`, and as `composed` does;
        `AdapterError` and `AdapterMemoryError` as `composed` does.
        """
        with self._turn:
            if self._live is None:
                raise CompositionError("no batch is open; let rows join within composed(...) or open_batch(...)")
            # An open batch may be used after an inference_mode block in which rows have joined.
            with torch.inference_mode(False), torch.no_grad():
                rows = self._checked_weights(adapters, weights)
                if self._gated is not None:
                    self._add_gated_rows(self._live, self._gated, adapters, rows, composer_of(mode))
                    return
                batch = self._open_rows(self._live)
                new = self._joining(batch, adapters, rows, composer_of(mode))
                batch.join(new, len(rows))
                try:
                    self._live.become(batch.updates(), batch.rows)
                except BaseException:
                    batch.keep(range(batch.rows - len(rows)))
                    raise

    def gate_usage(self) -> GateUsage:
        """Return the mean weights of the gate since the active composition began, over passes without gradients.

        A row that has left the batch keeps the means of the passes before. But once rows have joined the batch, the
        result has the rows that are in the batch now. Raises `CompositionError` if no gated composition is active.
        """
        with self._turn:
            if self._gated is None or self._live is None:
                raise CompositionError("no composition with a gate is active; ask within composed(..., gate=...)")
            updates = [update for update in self._live.updates.values() if isinstance(update, GatedAdapters)]
            return usage_of(list(dict.fromkeys(update.tally for update in updates)), self._gated.columns)

    def keep_rows(self, rows: Tensor) -> None:
        """Continue, within `composed`, with only these rows of the batch: indices int64 [rows], in this order.

        In this way, finished rows leave a batch while the other rows are decoded. In a batch that rows have joined,
        only the rows that change their place are copied. Without a composition the call does nothing. Raises
        `CompositionError` within `only_rows`.
        """
        with self._turn:  # so that a thread without a composition does not change another thread's composition
            if self._live is None:
                return
            if self._open is None:
                self._live.keep(rows)
                return
            with torch.inference_mode(False), torch.no_grad():
                self._live.check_whole()
                if self._gated is not None:
                    self._live.keep(rows)
                    self._live.become(_of_present_rows(self._live.updates), len(rows))
                else:
                    self._open.keep(rows.tolist())
                    self._live.become(self._open.updates(), len(rows))

    def __call__(
        self, *args: Any, lora_mapping: Tensor | None = None, merging_type: str | None = None, **kwargs: Any
    ) -> Any:
        """Run the base's forward pass, with the composition of `composed`, or of a `lora_mapping` if given.

        This is the call of the original's fork of PEFT. `lora_mapping` [batch, adapters] holds weights, with columns
        in the order of `set_adapter`; `merging_type` is "mixture" (the default) or "fusion". All other arguments go to
        the base. Raises `CompositionError` if the inputs do not have one row for each row of weights.
        """
        return self._run(self.base, args, kwargs, lora_mapping, merging_type)

    def generate(
        self, *args: Any, lora_mapping: Tensor | None = None, merging_type: str | None = None, **kwargs: Any
    ) -> Any:
        """Run the base's `generate`, composed as `__call__` is. All beams and sequences of a row have its weights."""
        return self._run(cast(Any, self.base).generate, args, kwargs, lora_mapping, merging_type)

    @contextmanager
    def only_rows(self, rows: slice) -> Iterator[None]:
        """Within this context, inside `composed`, the batch consists of only these rows; afterwards of all rows again.

        In this way, a batch whose prompts differ in length can be read in parts. Without a composition the context does
        nothing. Inside, `keep_rows` is not allowed.
        """
        with self._turn, nullcontext() if self._live is None else self._live.only(rows):
            yield

    def prefetch(self, adapters: Sequence[str]) -> None:
        """Begin to read the adapters that are not in memory, in a thread beside the computation.

        An adapter that an earlier call has read and that is neither used yet nor named here is dropped. Raises
        `AdapterError` for an adapter that is not loaded.
        """
        with self._turn:
            self._check_loaded(adapters)
            self._residency.prefetch(adapters)

    def wait_for_prefetch(self) -> None:
        """Return once every adapter that `prefetch` began to read has been read."""
        with self._turn:
            self._residency.wait()

    def set_adapter(self, adapters: str | Sequence[str]) -> None:
        """Say which adapter each column of `lora_mapping` belongs to. The call itself composes nothing.

        Only one thread may use this call, as in the original. Several threads must use `composed`.
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

        `weights` holds one number for each adapter. A mixture has the sum of the adapters' ranks, a fusion the largest
        rank. Raises `CompositionError` if all weights are zero, or if `path` exists and is not an empty folder.
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
        base_name = base_name_for(self.base, first.base_model_name_or_path)
        save_pairs(self.base, pairs, Path(path), base_name, first.task_type)

    @contextmanager
    def _live_batch(
        self, updates: Mapping[str, Update], batch: int, gated: _GatedBatch | None, expected: int = 0
    ) -> Iterator[None]:
        """Within this context, the updates are part of the base's forward pass."""
        live = LiveComposition(self.base, updates, batch, gated is not None)
        try:
            live.attach()
            self._live, self._gated = live, gated
            self._open = OpenRows(expected=expected) if batch == 0 else None
            yield
        finally:
            self._live = self._open = self._gated = None
            live.detach()

    def _gated_batch(
        self, gate: Gate, composer: Composer, adapters: Sequence[str], weights: Tensor
    ) -> tuple[Mapping[str, Update], _GatedBatch]:
        """Return the updates of a batch with a gate, and everything that is needed to add rows and to report the gate's
        weights."""
        columns, slots = self._in_use(
            adapters, torch.ones_like(weights) if len(weights) else torch.ones(1, len(adapters))
        )
        names = [adapters[column] for column in columns]
        updates = gated_updates(
            gate, composer, self._targeted(slots), names, slots, weights[:, columns], self._prepared
        )
        targets = {name: self._targets_of(name, slots) for name in updates}
        return updates, _GatedBatch(composer, tuple(adapters), columns, targets)

    def _add_gated_rows(
        self, live: LiveComposition, gated: _GatedBatch, adapters: Sequence[str], weights: Tensor, composer: Composer
    ) -> None:
        """Let rows join a batch with a gate."""
        if unknown := [name for name in adapters if name not in gated.adapters]:
            raise AdapterError(unknown[0], "it is not among the adapters with which this gated batch was opened")
        if composer is not gated.composer:
            raise CompositionError("a row that joins a batch with a gate must have the mode of the batch")
        whole = weights.new_zeros(len(weights), len(gated.adapters))  # [new rows, adapters of the batch]
        whole[:, [gated.adapters.index(name) for name in adapters]] = weights
        whole = whole[:, gated.columns]  # in loading order
        live.check_whole()
        updates: dict[str, Update] = {}
        tallies: dict[Tally, Tally] = {}
        for name, update in live.updates.items():
            if isinstance(update, GatedAdapters):
                own = whole.to(update.down.device)  # [new rows, P]
                targets = torch.tensor(gated.targets[name], device=update.down.device)  # [P]
                updates[name] = with_gated_rows(update, own, (own != 0) & targets, tallies)
        live.become(updates, live.batch + len(weights))
        self._open = self._open or OpenRows()

    def _joining(
        self, batch: OpenRows, adapters: Sequence[str], weights: Tensor, composer: Composer
    ) -> list[Mapping[str, Update]]:
        """Return the updates of rows that join: of rows with pairs of their own, and of rows that share.

        If adapters were loaded or removed since rows of the batch began to share, the new rows have pairs of their own.
        """
        if not adapters:
            return []
        columns, slots = self._in_use(adapters, weights)
        weights = weights[:, columns]  # [rows, adapters in use]
        pool, loaded = self._residency.pool, tuple(self._residency.headers.values())
        if batch.shared_by and [id(one) for one in batch.shared_by] != [id(one) for one in loaded]:
            pool = None
        sharing = torch.zeros(len(weights), dtype=torch.bool)  # [rows]
        if composer is mixture_pair and pool is not None:
            k = weights.ne(0).sum(dim=1)  # [rows]
            sharing = (k > 1) & (2 * k >= len(pool))
        parts: list[Mapping[str, Update]] = [
            pair_updates(composer, self._targeted(slots), slots, weights.masked_fill(sharing[:, None], 0))
        ]
        if pool is not None and bool(sharing.any()):
            batch.shared_by = loaded
            shared = weights.new_zeros(len(weights), len(pool))  # [rows, loaded adapters]
            shared[:, [pool.index(slot) for slot in slots]] = weights.masked_fill(~sharing[:, None], 0)
            parts.append(
                {
                    stack.module: shared_adapters(stack, pool, shared.to(stack.down.device))
                    for stack in self._targeted(pool)
                }
            )
        return parts

    def _open_rows(self, live: LiveComposition) -> OpenRows:
        """Return the rows of the active composition, in the form that rows can join."""
        if self._open is None:
            live.check_whole()
            batch = OpenRows()
            updates: dict[str, Update] = {}
            for name, update in live.updates.items():
                if not isinstance(update, Pairs | SharedAdapters):
                    raise CompositionError(f"no row can join a batch with an update of type {type(update).__name__}")
                updates[name] = update
            batch.join([updates], live.batch)
            self._open = batch
        return self._open

    def _targets_of(self, module: str, slots: Sequence[int]) -> list[bool]:
        """Return which of these slots have an adapter that targets a module."""
        return [slot in self._residency.stacks[module].ranks for slot in slots]

    def _in_use(self, adapters: Sequence[str], weights: Tensor) -> tuple[list[int], list[int]]:
        """Bring the adapters with a weight that is not 0 into memory; return their columns and their slots.

        Both are in loading order, so that sums over adapters have the same bits for every order of the columns.
        """
        self._check_columns(adapters)
        order = {name: position for position, name in enumerate(self._residency.headers)}
        used = weights.ne(0).any(dim=0).tolist()  # [adapters]; an adapter that no row uses need not be in memory
        columns = sorted((c for c, is_used in enumerate(used) if is_used), key=lambda c: order[adapters[c]])
        return columns, self._residency.slots([adapters[column] for column in columns])

    def _targeted(self, slots: Sequence[int]) -> Iterator[ModuleStack]:
        """Yield the stack of each module that one of these adapters targets, on the module's present device."""
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
        """Call `function` of the base, within the active composition or the composition of `lora_mapping`."""
        with self._turn:
            if lora_mapping is not None:
                if not self._columns:
                    reason = "call set_adapter first, to name the adapters of lora_mapping's columns"
                    raise CompositionError(reason)
                with self.composed(self._columns, lora_mapping, "mixture" if merging_type is None else merging_type):
                    return self._run(function, args, kwargs, None, None)
            if merging_type is not None:
                raise CompositionError("merging_type was given without lora_mapping, so there is nothing to merge")
            if self._live is not None and self._live.batch:  # the forward pass refuses a batch without rows
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
        """Check that adapters can be the columns of weights: each is loaded, and named once."""
        if isinstance(adapters, str) or not adapters:
            raise CompositionError("name the adapters to compose in a list of at least one name")
        if len(set(adapters)) < len(adapters):
            twice = next(name for position, name in enumerate(adapters) if name in adapters[:position])
            raise AdapterError(twice, "it is named twice; give each adapter one column of weights")
        self._check_loaded(adapters)

    def _checked_weights(self, adapters: Sequence[str], weights: Tensor | Sequence[Sequence[float]]) -> Tensor:
        """Return weights as float32 [batch, adapters]. Raises `CompositionError` for any other shape and for NaN."""
        tensor = _as_floats(weights)
        if tensor.ndim != 2 or tensor.shape[0] == 0 or tensor.shape[1] != len(adapters):
            raise CompositionError(
                f"weights have shape {list(tensor.shape)}; they must have one row for each input and one column "
                f"for each of the {len(adapters)} adapters"
            )
        if not torch.isfinite(tensor).all():
            raise CompositionError("weights hold NaN or infinity")
        return tensor


@dataclass(frozen=True)
class _GatedBatch:
    """The facts about an active composition with a gate."""

    composer: Composer
    adapters: tuple[str, ...]  # as they were named
    columns: Sequence[int]  # adapter p of the updates is adapter columns[p]
    targets: Mapping[str, Sequence[bool]]  # by module: whether adapter p of the updates targets the module


def _of_present_rows(updates: Mapping[str, Update]) -> dict[str, Update]:
    tallies: dict[Tally, Tally] = {}
    return {
        name: of_present_rows(update, tallies) if isinstance(update, GatedAdapters) else update
        for name, update in updates.items()
    }


def _as_floats(weights: object) -> Tensor:
    """Return weights as a float32 tensor of the same shape. A tensor keeps its gradient."""
    try:
        return torch.as_tensor(weights).to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompositionError(f"weights are not all numbers, or their rows differ in length: {error}") from error
