"""Compositions written as PEFT checkpoints without the base's model weights, for an engine that serves LoRA by itself.

Only the names and shapes of the base's modules are read, so the base may lie on torch's meta device and take no memory.
The tensors are the same as in `ComposableModel`, rounded to the base's dtype: the formulas and the order of sums are
equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from peft_composition.checkpoint import LoraAdapter, read_adapter
from peft_composition.errors import AdapterError, CompositionError
from peft_composition.modes import Composer, composer_of
from peft_composition.pairs import EMPTY_SLOT, ModuleStack, Pair, active_slots
from peft_composition.save import base_name_for, save_pairs

CPU = torch.device("cpu")


class CompositionWriter:
    """Verified adapters without a base, composed into checkpoints."""

    def __init__(self, base: PreTrainedModel, dtype: torch.dtype) -> None:
        """Write for `base`, which may be on the meta device, served in `dtype`."""
        self.base = base
        self.dtype = dtype
        self._adapters: dict[str, LoraAdapter] = {}  # mapped from their files, so no memory is copied

    @property
    def ranks(self) -> dict[str, int]:
        """The largest rank of every adapter, in loading order."""
        return {
            name: max(module.rank for module in adapter.header.modules.values())
            for name, adapter in self._adapters.items()
        }

    def size(self, rank: int) -> int:
        """Return the maximum size of a composition of this rank, in bytes."""
        return rank * sum(d_in + d_out for d_in, d_out in self._shapes.values()) * self.dtype.itemsize

    def load_adapter(self, path_or_repo_id: str | Path, name: str, revision: str | None = None) -> None:
        """Load a PEFT LoRA checkpoint under `name`, from a folder, or from the Hub at `revision`.

        Raises `AdapterError` if the name is taken or the adapter cannot be composed exactly.
        """
        if name in self._adapters:
            raise AdapterError(name, "an adapter of this name is loaded already; use another name")
        adapter = read_adapter(path_or_repo_id, name, self.base, revision)
        for module in adapter.modules:
            adapter.folded(module, CPU, self.dtype)
        self._adapters[name] = adapter
        adapter.header.warn()

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises `AdapterError` if the adapter is not loaded."""
        self._check_loaded([name])
        del self._adapters[name]

    def adapter_notes(self, name: str) -> tuple[str, ...]:
        """Return the notes for the user on a loaded adapter, as `ComposableModel.adapter_notes` does."""
        self._check_loaded([name])
        return self._adapters[name].header.notes

    def write(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        mode: str | Composer = "mixture",
        *,
        path: str | Path,
        ranks: Sequence[int] = (),
    ) -> int:
        """Write one composition into a new folder at `path`, in the writer's dtype. Returns the checkpoint's rank.

        `ranks` are the ranks that the reader allows: the composition is padded with zeros to the smallest allowed rank
        that is large enough. Without `ranks` the composition keeps its own rank. Raises `AdapterError` for an adapter
        that is not loaded, and `CompositionError` if all weights are zero, no allowed rank is large enough, or `path`
        exists and is no empty folder.
        """
        composer = composer_of(mode)
        given = dict(zip(adapters, weights, strict=True))
        self._check_loaded(adapters)
        # In loading order, as in `ComposableModel`, because another order of summing gives other last bits.
        used = {name: adapter for name, adapter in self._adapters.items() if given.get(name)}
        if not used:
            raise CompositionError("all weights are zero: such a composition is the base model itself")
        pairs = self._pairs(list(used.values()), [given[name] for name in used], composer)
        return self._save(pairs, self._adapters[adapters[0]], path, ranks)

    def write_zeros(self, *, path: str | Path, ranks: Sequence[int] = ()) -> int:
        """Write a composition that adds zero at every module that a loaded adapter targets. Returns its rank.

        `path`, `ranks` and the errors are the same as for `write`; without a loaded adapter, `CompositionError` is
        raised.
        """
        if not self._adapters:
            raise CompositionError("no adapter is loaded, so there is no module to write")
        pairs = {
            name: Pair(torch.zeros(1, 1, d_in), torch.zeros(1, 1, d_out))
            for name, (d_in, d_out) in self._shapes.items()
        }
        return self._save(pairs, next(iter(self._adapters.values())), path, ranks)

    @property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        """The dimensions d_in and d_out of every module that a loaded adapter targets."""
        return {
            name: (module.d_in, module.d_out)
            for adapter in self._adapters.values()
            for name, module in adapter.header.modules.items()
        }

    def _save(self, pairs: Mapping[str, Pair], first: LoraAdapter, path: str | Path, ranks: Sequence[int]) -> int:
        """Write pairs of batch 1. The checkpoint names the base and the task of its `first` adapter."""
        base_name = base_name_for(self.base, first.header.base_model_name_or_path)
        task = first.header.task_type
        return save_pairs(self.base, pairs, Path(path), base_name, task, ranks=ranks, dtype=self.dtype)

    def _check_loaded(self, adapters: Sequence[str]) -> None:
        for name in adapters:
            if name not in self._adapters:
                raise AdapterError(name, f"it is not loaded (loaded: {', '.join(self._adapters) or 'none'})")

    @torch.no_grad()
    def _pairs(self, used: Sequence[LoraAdapter], weights: Sequence[float], composer: Composer) -> dict[str, Pair]:
        """Return the pair of batch 1 of each module that an adapter in use targets."""
        slots = range(EMPTY_SLOT + 1, EMPTY_SLOT + 1 + len(used))
        active = active_slots(slots, torch.tensor([weights], dtype=torch.float32))
        assert active is not None, "adapters of weight 0 were left out"
        pairs = {}
        headers = {name: header for adapter in used for name, header in adapter.header.modules.items()}
        for name, header in headers.items():
            stack = ModuleStack(name, header.d_in, header.d_out, CPU, self.dtype)
            for slot, adapter in zip(slots, used, strict=True):
                if name in adapter.modules:
                    scaling = adapter.header.modules[name].scaling
                    stack.write(slot, *adapter.folded(name, CPU, self.dtype), scaling, adapter.header.name)
            pairs[name] = composer(stack, active)
        return pairs
