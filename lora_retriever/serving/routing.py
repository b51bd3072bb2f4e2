"""From inputs to compositions: the adapters of each input, found as an evaluation finds them.

A method's own router does the work. It is given a context whose rows are the inputs of a request. Requests that come at
the same time are encoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.context import Context, Resources
from lora_retriever.retrieval.encoders import Embeddings
from lora_retriever.retrieval.index import AdapterIndex, Hits
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.naming import Asked, with_settings
from lora_retriever.serving.pool import LivePool, QueryEncoder, Snapshot
from lora_retriever.serving.worker import Worker

QUIET = Console(quiet=True)  # made once: making a console takes longer than a search
AT_ONCE = 256
"""Maximum number of inputs that are routed together."""


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
    ) -> None:
        rows = [
            Row.model_construct(inputs=text, targets="", task="", domain="", metric="em", id=0, further={})
            for text in texts
        ]
        entries = [entry for name, entry in snapshot.entries.items() if name not in exclude]
        benchmark = Benchmark(rows, None, entries, Path(), None, {}, {})
        super().__init__(profile, benchmark, Path(), QUIET, _no_model)
        self._texts, self._encoder_of_queries = texts, encoder
        self._pool, self._snapshot, self._exclude = pool, snapshot, exclude

    @property
    def embeddings(self) -> tuple[AdapterIndex, Embeddings]:
        """An empty index, and the embeddings [inputs, dim] of the inputs."""
        if self._encoder_of_queries is None:
            raise UserError("this server has no encoder")
        return AdapterIndex(), self._encoder_of_queries.encode(self._texts)

    def index(self, scorer: str) -> AdapterIndex:
        """The pool's index under a scorer, without the excluded adapters."""
        index = self._pool.index(self._snapshot, scorer)
        return index.hiding(self._exclude) if self._exclude else index


def _no_model() -> NoReturn:
    raise UserError("methods that look into the model are not served")


@dataclass
class _Waiting:
    asked: Asked
    texts: Sequence[str]
    snapshot: Snapshot
    future: Future[list[Composition]]


class Routing:
    """Routes inputs in a thread of its own, so that requests of one moment are encoded in one batch."""

    def __init__(self, profile: Profile, pool: LivePool, encoder: QueryEncoder | None) -> None:
        """Start the thread. `encoder`: None if no method that is asked for needs embeddings."""
        self._profile = profile
        self._pool = pool
        self._encoder = encoder
        self._profiles = lru_cache(maxsize=256)(lambda settings: with_settings(profile, settings))
        self._worker: Worker[_Waiting] = Worker("routing", self._route_together)

    def submit(self, asked: Asked, texts: Sequence[str], snapshot: Snapshot) -> Future[list[Composition]]:
        """The composition of each text, soon. Errors are `ApiError`."""
        future: Future[list[Composition]] = Future()
        if asked.composition is not None:
            future.set_result([asked.composition] * len(texts))
            return future
        if not self._worker.put(_Waiting(asked, texts, snapshot, future)):
            future.set_exception(RuntimeError("the server has ended"))
        return future

    def route(self, asked: Asked, text: str, snapshot: Snapshot) -> Composition:
        """The composition of a text, now.

        Raises:
            ApiError: the method cannot route the input, or wants more adapters than there are.
        """
        if asked.composition is not None:
            return asked.composition
        assert asked.method is not None
        method, profile = asked.method, self._profiles(asked.settings)
        available = len(snapshot.entries.keys() - asked.exclude)
        wanted = max(1, method.adapters_needed(profile.retrieval.k))
        if wanted > available:
            raise ApiError(400, f"`lora.k`: k = {wanted}, and there are {available} adapters to choose from", "lora.k")
        resources = AskedResources(profile, [text], self._pool, snapshot, asked.exclude, self._encoder)
        try:
            (composition,) = method.compositions(Context(resources, profile, method.declaration))
        except (UserError, ValueError) as error:
            raise ApiError(400, f"`model`: {asked.name} cannot answer this input: {error}", "model") from error
        return composition

    def search(
        self, texts: Sequence[str], k: int, scorer: str, exclude: frozenset[str], snapshot: Snapshot
    ) -> tuple[Hits, NDArray[np.float64] | None]:
        """The best adapters of each text, and the probability [texts] that the own adapter is in the pool at all.

        Raises:
            ApiError: k is too large, or the scorer cannot be used.
        """
        available = len(snapshot.entries.keys() - exclude)
        if k > available:
            raise ApiError(400, f"`k` is {k}, and there are {available} adapters to choose from", "k")
        resources = AskedResources(self._profile, texts, self._pool, snapshot, exclude, self._encoder)
        try:
            index = resources.index(scorer)
            queries = resources.embeddings[1] if index.needs_embeddings else None
            hits = index.search(queries, k, texts=list(texts))
        except (UserError, ValueError) as error:
            raise ApiError(400, f"`input`: {error}", "input") from error
        try:
            presence = index.presence(hits)
        except ValueError:  # too few adapters
            presence = None
        return hits, presence

    def close(self) -> None:
        """End the thread."""
        self._worker.close()

    def _route_together(self, batch: Sequence[_Waiting]) -> bool:
        """Encode the inputs of all requests at once, then route input by input: no input changes another's adapters."""
        live = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        reading = [w.texts for w in live if w.asked.method and w.asked.method.needs_encoder(self._profile)]
        if self._encoder is not None and len(reading) > 1:
            with suppress(Exception):  # the request at fault meets the error again
                self._encoder.encode([text for texts in reading for text in texts][:AT_ONCE])
        for waiting in live:
            try:
                found = [self.route(waiting.asked, text, waiting.snapshot) for text in waiting.texts]
            except Exception as error:  # goes to whoever waits
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(found)
        return False
