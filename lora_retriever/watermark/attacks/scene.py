"""`Scene`: the adapters, the key and the data that attacks work with; and `Attack`, one line of the matrix."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_retriever.data.rows import Row, Sample
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.watermark.factors import Factors
from lora_retriever.watermark.key import Key
from lora_retriever.watermark.local import LocalSuspect, Router
from lora_retriever.watermark.statistics import Evidence
from lora_retriever.watermark.suspects import verify
from peft_composition import Composer

if TYPE_CHECKING:
    from lora_retriever.retrieval.index import AdapterIndex

MARKED = "the marked adapter"
"""The name under which the marked adapter is loaded."""
CHANGED = "a changed adapter"
"""The name under which a changed copy of the marked adapter is loaded for its triggers."""


@dataclass(frozen=True)
class Measured:
    """One suspect's evidence, in the form of the matrix.

    Attributes:
        note: the things that were drawn, such as the names of the other adapters, or a figure beside the evidence.
    """

    hits: int
    triggers: int
    p_hits: float
    p_ranks: float | None = None
    p_permutations: float | None = None
    note: str = ""

    @classmethod
    def of(cls, evidence: Evidence, note: str = "") -> Measured:
        """The figures of some evidence."""
        return cls(
            sum(evidence.hits),
            len(evidence.hits),
            evidence.of_hits,
            evidence.of_ranks,
            evidence.of_permutations,
            note,
        )

    def as_json(self) -> dict[str, Any]:
        """The figures for a file."""
        return asdict(self)


@dataclass(frozen=True)
class Attack:
    """One line of the matrix.

    Attributes:
        measure: asks one or several suspects.
    """

    name: str
    measure: Callable[[], list[Measured]]


@dataclass(frozen=True)
class Further:
    """How an adapter is trained further.

    Attributes:
        samples: the task's own samples. Empty: there is no further training.
        other: name and samples of another task. None: none is at hand.
        learning_rate: of the first step.
    """

    samples: Sequence[Sample] = ()
    other: tuple[str, Sequence[Sample]] | None = None
    epochs: tuple[float, ...] = (1, 3, 5)
    learning_rate: float = 3e-4
    batch_size: int = 4


@dataclass(frozen=True)
class Routing:
    """How triggers are routed by retrieval: an index of the pool, k, and the task whose adapter is the marked one."""

    index: AdapterIndex
    task: str
    k: int = 3


@dataclass(frozen=True)
class Scene:
    """Everything that attacks work with.

    Attributes:
        generator: the base with the adapters: `MARKED`, the unmarked adapter, and other adapters.
        adapter: folder of the marked adapter.
        unmarked: name of the unmarked adapter in the generator. None: there is no unmarked adapter.
        others: names of the other adapters.
        rows: rows of the task, on which its score is measured with and without the mark.
        draws: number of draws of an attack that draws.
        decoys: number of keys that the adapter does not know, for the false alarms.
        scratch: folder for changed copies of the adapter; they are removed after use.
    """

    key: Key = field(repr=False)
    generator: Generator
    adapter: Path
    unmarked: str | None
    others: tuple[str, ...]
    scratch: Path
    draws: int = 3
    decoys: int = 100
    seed: int = 0
    further: Further = Further()
    routing: Routing | None = None
    rows: Sequence[Row] = ()

    def ask(
        self, composition: Composition | Router, mode: str | Composer = "mixture", generator: Generator | None = None
    ) -> Evidence:
        """The evidence of a composition."""
        return verify(self.key, LocalSuspect("attacked", generator or self.generator, composition, mode))

    def factors(self) -> Factors:
        """The marked adapter's tensors."""
        return Factors.read(self.adapter, MARKED, self.generator.model.base)

    def ask_changed(self, factors: Factors) -> Evidence:
        """The evidence of a changed copy of the marked adapter."""
        with self.folder() as folder:
            factors.write(self.adapter, folder)
            return self.ask_folder(folder)

    def ask_folder(self, folder: Path) -> Evidence:
        """The evidence of the adapter in a folder."""
        model = self.generator.model
        model.load_adapter(folder, name=CHANGED)
        try:
            return self.ask(Composition.of({CHANGED: 1.0}))
        finally:
            model.unload_adapter(CHANGED)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that does not exist yet, and is removed afterwards."""
        folder = self.scratch / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def drawn_others(self, count: int, *label: object) -> list[list[str]]:
        """`draws` draws of `count` other adapters. Empty: there are too few."""
        if count > len(self.others):
            return []
        random_ = random.Random(f"{self.seed} {label} {count}")
        return [sorted(random_.sample(self.others, count)) for _ in range(self.draws)]
