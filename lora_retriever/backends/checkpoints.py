"""`Checkpoints`: compositions as LoRA checkpoints in a folder in memory, for an engine that serves checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lora_retriever.backends.memory_folder import MemoryFolder
from lora_retriever.generation.composition import Composition
from peft_composition import Composer, CompositionWriter

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for `max_lora_rank`."""


@dataclass(frozen=True)
class Served:
    """A composition on disk, with the number by which vLLM knows the composition.

    Attributes:
        number: the number by which vLLM knows the checkpoint. No number is used twice.
    """

    number: int
    path: Path
    rank: int


class Checkpoints:
    """The compositions in the folder, each written once and found again by its key.

    Attributes:
        path: the folder.
        writer: holds the adapters, and writes their compositions.
    """

    def __init__(self, writer: CompositionWriter, most: int, rank: int) -> None:
        """Make the folder, with room for `most` compositions of a rank."""
        self.writer = writer
        self._folder = MemoryFolder(room=most * writer.size(rank))
        self.path = self._folder.path
        self._numbers = count(1)
        self._served: dict[Hashable, Served] = {}

    @property
    def keys(self) -> Collection[Hashable]:
        """The keys of the compositions in the folder."""
        return self._served.keys()

    def written(
        self, key: Hashable, composition: Composition, mode: str | Composer, ranks: Sequence[int] = RANKS
    ) -> Served:
        """The checkpoint of a composition, written now if the folder has no such checkpoint.

        The checkpoint of no adapters adds zero.
        Args:
            ranks: the ranks that the engine takes. The checkpoint is padded with zeros to one of these ranks.

        Raises:
            AdapterError: an adapter is not loaded.
            CompositionError: the adapters cannot be composed, or the rank is above the highest of `ranks`.
            OSError, SafetensorError: the checkpoint cannot be written.
            Exception: a user's own composer may raise anything.
        """
        if key not in self._served:
            number = next(self._numbers)
            path = self.path / str(number)
            if composition.weights:
                weights = list(composition.weights.values())
                rank = self.writer.write(composition.adapters, weights, mode, path=path, ranks=ranks)
            else:
                rank = self.writer.write_zeros(path=path, ranks=ranks)
            self._served[key] = Served(number, path, rank)
        return self._served[key]

    def drop(self, keys: Collection[Hashable]) -> None:
        """Remove compositions from the folder."""
        for key in list(keys):
            shutil.rmtree(self._served.pop(key).path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.close()


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM allows and that is at least `rank`, or else the highest rank that vLLM allows."""
    return next((allowed for allowed in RANKS if allowed >= rank), RANKS[-1])
