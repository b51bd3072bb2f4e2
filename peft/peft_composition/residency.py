"""Which of the loaded adapters are in memory: all adapters, or as many adapters as fit into a given memory.

Every loaded adapter was verified, and can be read from its files again. An adapter in memory has a slot in the stacks.
With a memory limit, the least recently used adapters are removed for the adapters that a composition needs. safetensors
maps the files, so an adapter that the system still has in its cache is read without the disk. A thread reads ahead the
adapters of the next composition. This file deals with adapters and stacks, not with weights, compositions or hooks.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition.checkpoint import AdapterHeader, LoraAdapter, read_again
from peft_composition.errors import AdapterError, AdapterMemoryError
from peft_composition.layers import linear_shape, placement
from peft_composition.pairs import EMPTY_SLOT, ModuleStack


class Residency:
    """The adapters of one base model, and the stacks of the adapters in memory.

    Only one thread may use this object at a time.
    Attributes:
        headers: the loaded adapters by name, in loading order.
        stacks: the tensors of the adapters in memory, by module name, for the modules that any adapter targets.
    """

    def __init__(self, base: PreTrainedModel, memory: int | None) -> None:
        """Begin without adapters. `memory`: maximum memory of adapters on each device, in bytes; None sets no limit."""
        self.headers: dict[str, AdapterHeader] = {}
        self.stacks: dict[str, ModuleStack] = {}
        self._base = base
        self._memory = memory
        self._slots: OrderedDict[str, int] = OrderedDict()  # of adapters in memory, the least recently used first
        self._ranks: dict[str, int] = {}  # the largest rank of any loaded adapter, by module
        self._room = 0  # maximum number of adapters in memory
        self._laid_out_for: object = None  # dtype, device and ranks for which the room was computed
        self._ahead: dict[str, Future[LoraAdapter]] = {}
        self._reader: ThreadPoolExecutor | None = None

    @property
    def resident(self) -> list[str]:
        """The adapters in memory, the least recently used first."""
        return list(self._slots)

    @property
    def pool(self) -> list[int] | None:
        """The slots of all loaded adapters, in loading order. None: a memory limit may keep some out of memory."""
        return None if self._memory is not None else [self._slots[name] for name in self.headers]

    def add(self, adapter: LoraAdapter) -> None:
        """Add a verified adapter, in memory if there is room.

        Raises `AdapterError` if the adapter cannot be added. Other adapters may then have to be read again; nothing
        else has changed.
        """
        name = adapter.header.name
        self.headers[name] = adapter.header
        self._note_ranks(adapter.header)
        try:
            self._lay_out()
            if self._room == 0:
                reason = f"it does not fit into the {self._memory} bytes that adapters may take; raise adapter_memory"
                raise AdapterError(name, reason)
            if len(self._slots) < self._room:
                self._write(adapter)
            else:
                for module in adapter.modules:
                    self._folded(adapter, module)
        except BaseException:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Remove an adapter and free its slot."""
        self._evict(name)
        if (ahead := self._ahead.pop(name, None)) is not None:
            ahead.cancel()
        del self.headers[name]
        self._ranks = {}
        for header in self.headers.values():
            self._note_ranks(header)
        self.stacks = {module: stack for module, stack in self.stacks.items() if module in self._ranks}

    def slots(self, names: Sequence[str]) -> list[int]:
        """Return the slots of adapters. An adapter that is not in memory is read first.

        Raises `AdapterMemoryError` if these adapters do not fit into memory together, and `AdapterError` if an adapter
        can no longer be read.
        """
        self._lay_out()
        if len(names) > self._room:
            raise AdapterMemoryError(
                f"{len(names)} adapters are to be composed in one batch, and the {self._memory} bytes that adapters "
                f"may take hold {self._room}; raise adapter_memory, or compose fewer adapters at once"
            )
        for name in names:
            if name not in self._slots:
                self._make_room(keep=names)
                self._write(self._read(name))
            self._slots.move_to_end(name)
        return [self._slots[name] for name in names]

    def prefetch(self, names: Sequence[str]) -> None:
        """Begin to read the adapters that are not in memory. Other adapters that were read ahead are dropped."""
        wanted = [name for name in names if name not in self._slots]
        for name in self._ahead.keys() - wanted:
            self._ahead.pop(name).cancel()
        for name in wanted:
            if name not in self._ahead:
                if self._reader is None:
                    self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapters")
                self._ahead[name] = self._reader.submit(read_again, self.headers[name])

    def wait(self) -> None:
        """Return once all adapters that are being read ahead have been read."""
        wait(self._ahead.values())

    def _note_ranks(self, header: AdapterHeader) -> None:
        for name, module in header.modules.items():
            self._ranks[name] = max(self._ranks.get(name, 0), module.rank)

    def _read(self, name: str) -> LoraAdapter:
        ahead = self._ahead.pop(name, None)
        return read_again(self.headers[name]) if ahead is None else ahead.result()

    def _make_room(self, keep: Collection[str]) -> None:
        """Free a slot if none is free, by removing adapters that are not in `keep`."""
        while len(self._slots) >= self._room:
            self._evict(next(name for name in self._slots if name not in keep))

    def _evict(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is not None:
            with torch.inference_mode(False), torch.no_grad():
                for stack in self.stacks.values():
                    stack.clear(slot)

    def _lay_out(self) -> None:
        """Compute how many adapters have room, if ranks, targets, dtype or device have changed.

        With a memory limit the stacks are then emptied, because every slot is as large as the largest adapter.
        """
        if self._memory is None:
            self._room = len(self.headers)
            return
        layout = (self._base.dtype, self._base.device, self._ranks)
        if layout == self._laid_out_for:
            return
        self._laid_out_for = (self._base.dtype, self._base.device, dict(self._ranks))
        self._slots.clear()
        self.stacks = {}
        slot_bytes: dict[torch.device, int] = defaultdict(int)
        for name, rank in self._ranks.items():
            module = self._base.get_submodule(name)
            device, dtype = placement(module, self._base.dtype)
            slot_bytes[device] += rank * sum(linear_shape(module) or ()) * dtype.itemsize
        self._room = max(0, self._memory // max(slot_bytes.values(), default=1) - 1)  # one slot is the empty one

    def _write(self, adapter: LoraAdapter) -> None:
        """Write an adapter into a free slot. Raises `AdapterError`, and changes nothing, if its values overflow."""
        taken = {*self._slots.values(), EMPTY_SLOT}
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        try:
            # Stacks are used after an inference_mode block in which they may be written, so the stacks must not belong
            # to this block.
            with torch.inference_mode(False), torch.no_grad():
                for module in adapter.modules:
                    self._write_module(adapter, module, slot)
        except BaseException:
            for stack in self.stacks.values():
                stack.clear(slot)
            raise
        self._slots[adapter.header.name] = slot

    def _folded(self, adapter: LoraAdapter, module: str) -> tuple[Tensor, Tensor]:
        """Return A and (s B)^T of one module, on the module's device and in the dtype of its pairs."""
        device, dtype = placement(self._base.get_submodule(module), self._base.dtype)
        if device.type == "meta":
            reason = "the base's weight is offloaded; load the base wholly into memory"
            raise AdapterError(adapter.header.name, reason, module)
        return adapter.folded(module, device, dtype)

    def _write_module(self, adapter: LoraAdapter, name: str, slot: int) -> None:
        down, up = self._folded(adapter, name)
        header = adapter.header.modules[name]
        if name not in self.stacks:
            most = None if self._memory is None else self._room + 1
            self.stacks[name] = ModuleStack(name, header.d_in, header.d_out, down.device, down.dtype, most)
        self.stacks[name].write(slot, down, up, header.scaling, adapter.header.name)
