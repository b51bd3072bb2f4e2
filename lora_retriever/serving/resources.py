"""The resources that a method reads to route the inputs of a request: the inputs as rows, and the live pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.generator import Generator
from lora_retriever.methods.context import Resources
from lora_retriever.retrieval.encoders import Embeddings
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.serving.pool import LivePool, QueryEncoder, Snapshot

QUIET = Console(quiet=True)  # made once: making a console takes longer than a search


@dataclass(frozen=True)
class Looking:
    """The resources of a method that looks into the model.

    Attributes:
        generator: the model, with the pool's adapters.
        results: the folder into whose sub-folder `learned` the method writes.
        hashes: identify base, adapters and pool, as in `Benchmark`.
        kept: paths of learned folders that lie elsewhere.
    """

    generator: Generator
    results: Path
    hashes: Mapping[str, Any] = field(repr=False)
    kept: tuple[str, ...] = ()


class AskedResources(Resources):
    """The resources of one request: its inputs as rows, and the indexes of the live pool."""

    def __init__(
        self,
        profile: Profile,
        texts: Sequence[str],
        pool: LivePool,
        snapshot: Snapshot,
        exclude: frozenset[str],
        encoder: QueryEncoder | None,
        looking: Looking | None = None,
    ) -> None:
        """`looking`: None for a method that reads no model."""
        rows = [
            Row.model_construct(inputs=text, targets="", task="", domain="", metric="em", id=0, further={})
            for text in texts
        ]
        entries = [entry for name, entry in snapshot.entries.items() if name not in exclude]
        benchmark = Benchmark(rows, None, entries, Path(), None, {}, dict(looking.hashes) if looking else {})
        super().__init__(profile, benchmark, looking.results if looking else Path(), QUIET, self._looked_into)
        self.kept_learned = looking.kept if looking else ()
        self._texts, self._encoder_of_queries, self._looking = texts, encoder, looking
        self._pool, self._snapshot, self._exclude = pool, snapshot, exclude

    @property
    def embeddings(self) -> tuple[AdapterIndex, Embeddings]:
        """An empty index, and the embeddings [inputs, dim] of the inputs."""
        if self._encoder_of_queries is None:
            raise UserError("this server has no encoder")
        return AdapterIndex(), self._encoder_of_queries.encode(self._texts)

    def index(self, scorer: str) -> AdapterIndex:
        """The pool's index under a scorer, without the adapters that the request excludes (`lora.exclude`)."""
        index = self._pool.index(self._snapshot, scorer)
        return index.hiding(self._exclude) if self._exclude else index

    def _looked_into(self) -> Generator:
        if self._looking is None:
            raise UserError("the method does not declare that it reads the model")
        return self._looking.generator
