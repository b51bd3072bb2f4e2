"""What a method may look at: the rows, the pool, the profile's settings, and what is dear to make, made when asked for.

Embeddings, indexes, the model and whatever was learned are shared by all methods of a run (`Resources`); a `Setting` is
one method's view of them. Knows nothing of any method, nor of answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_retriever.benchmark import Benchmark
from lora_retriever.data import PoolEntry, Row
from lora_retriever.embedding_cache import cached
from lora_retriever.encoders import Embeddings, Encoder, load_encoder
from lora_retriever.files import hash_path, write_json
from lora_retriever.generation import Generator
from lora_retriever.index import AdapterIndex, Hits
from lora_retriever.profile import Profile
from lora_retriever.retrieval import index_pool

LEARNED = "learned"
"""The folder, within the results', of what methods have learned."""
RECORD_FILE = "record.json"
"""In each of them: how it was learned. A folder without it is not finished."""


class Resources:
    """What all methods of one evaluation share, each made when it is first asked for."""

    def __init__(
        self,
        profile: Profile,
        benchmark: Benchmark,
        results: Path,
        console: Console,
        load_generator: Callable[[], Generator],
    ) -> None:
        """`load_generator` gives the base model with the pool's adapters, or raises `UserError` where none can be.

        `learned` notes the hashes of the learned folders that were used since it was last emptied.
        """
        self.profile = profile
        self.benchmark = benchmark
        self.results = results
        self.console = console
        self.learned: dict[str, str] = {}
        self._load_generator = load_generator
        self._indexes: dict[str, AdapterIndex] = {}

    @cached_property
    def generator(self) -> Generator:
        """The base model with the pool's adapters, for methods that look into it."""
        return self._load_generator()

    @cached_property
    def embeddings(self) -> tuple[AdapterIndex, Embeddings]:
        """The pool's index under the profile's scorer, and the embeddings [rows, dim] of the rows' inputs."""
        profile, settings, device = self.profile, self.profile.encoder, self.profile.encoder_device
        with self.console.status("encoding the pool and the rows"):
            load = partial(
                load_encoder,
                self.benchmark.encoder,
                settings.layout,
                settings.instruction,
                settings.batch_size,
                device,
            )
            encoder: Encoder = (
                cached(load, self.benchmark.hashes["encoder"], settings.layout, settings.instruction, device)
                if settings.cache
                else load()
            )
            queries = encoder.encode([row.inputs for row in self.benchmark.rows])
            return index_pool(encoder, self.benchmark.pool, profile.retrieval.scorer), queries

    def index(self, scorer: str) -> AdapterIndex:
        """The pool's index under a scorer."""
        if scorer not in self._indexes:
            self._indexes[scorer] = self.embeddings[0].rescored(scorer)
        return self._indexes[scorer]


@dataclass(frozen=True)
class Setting:
    """One method's view of an evaluation.

    Attributes:
        k, scorer, temperature, seed: the profile's, or a sweep's.
        masked: whether every row's own adapter is out of reach.
    """

    resources: Resources
    profile: Profile
    masked: bool = False

    @property
    def rows(self) -> list[Row]:
        """The benchmark's rows, which are to be given adapters. Routers read their inputs, the oracle the task."""
        return self.resources.benchmark.rows

    @property
    def pool(self) -> list[PoolEntry]:
        """The pool: every adapter's name, domain and samples."""
        return self.resources.benchmark.pool

    @property
    def names(self) -> list[str]:
        """The adapters of the pool."""
        return [entry.model_name for entry in self.pool]

    @property
    def k(self) -> int:
        """How many adapters a row gets."""
        return self.profile.retrieval.k

    @property
    def scorer(self) -> str:
        """By which retrieval orders adapters."""
        return self.profile.retrieval.scorer

    @property
    def temperature(self) -> float | None:
        """By which scores become weights; None: equal ones."""
        return self.profile.retrieval.temperature

    @property
    def seed(self) -> int:
        """Of whatever a method draws."""
        return self.profile.seed

    @property
    def excluded(self) -> list[str | None]:
        """For every row, the adapter that it must not be given; None: it may have any."""
        return [row.task if self.masked else None for row in self.rows]

    @property
    def available(self) -> int:
        """How many adapters every row can choose from."""
        return len(self.pool) - self.masked

    @property
    def queries(self) -> Embeddings:
        """The embeddings [rows, dim] of the rows' inputs, float32."""
        return self.resources.embeddings[1]

    def index(self, scorer: str | None = None) -> AdapterIndex:
        """The pool's index under a scorer, the profile's if none is named."""
        return self.resources.index(self.scorer if scorer is None else scorer)

    def search(self, k: int, scorer: str | None = None) -> Hits:
        """The best `k` adapters for every row, without those that are masked."""
        exclude = self.excluded if self.masked else None
        texts = [row.inputs for row in self.rows]
        return self.index(scorer).search(self.queries, k, exclude=exclude, texts=texts)

    @property
    def generator(self) -> Generator:
        """The base model with the pool's adapters, its tokenizer, and the template.

        Raises:
            UserError: the profile's backend has no model to look into.
        """
        return self.resources.generator

    def learned(
        self,
        name: str,
        depends_on: Mapping[str, Any],
        learn: Callable[[Path], dict[str, Any]],
        *,
        seeded: bool = True,
    ) -> Path:
        """The folder of what a method has learned, learned now if it is not there.

        It lies in the results folder and is found again by what it depends on: `depends_on` (options of the method),
        the seed, the base, the adapters, the pool, the template and the dtype. So a run that was interrupted goes on
        with what it had, and variants share it.

        Args:
            learn: is given a folder to write its files to, and returns what is to be recorded of how they were made.
                Called again after an interruption it is given the same folder, with the files that it wrote.
            seeded: whether the seed counts; where nothing is drawn, all seeds share what is there.
        """
        benchmark, generation = self.resources.benchmark, self.profile.generation
        conditions = {
            "name": name,
            "options": dict(depends_on),
            **({"seed": self.seed} if seeded else {}),
            **{what: benchmark.hashes[what] for what in ("base", "adapters", "pool")},
            "template": generation.template_text,
            "max_prompt_tokens": generation.max_prompt_tokens,
            "dtype": self.profile.dtype,
        }
        digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.resources.results / LEARNED / f"{name}-{digest}"
        record = folder / RECORD_FILE
        if not record.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(record, {"conditions": conditions, **learn(folder)})
        self.resources.learned[folder.name] = hash_path(folder)
        return folder

    @property
    def console(self) -> Console:
        """Where progress is shown."""
        return self.resources.console
