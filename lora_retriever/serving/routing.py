"""From inputs to compositions: the adapters of each input, found in the same way as in an evaluation.

A method's own router does the work. The router gets a context whose rows are the inputs of a request. Requests that
come at the same time are encoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.context import Context
from lora_retriever.retrieval.index import Hits
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.learning import Learned
from lora_retriever.serving.naming import Asked, with_settings
from lora_retriever.serving.pool import LivePool, QueryEncoder, Snapshot
from lora_retriever.serving.resources import AskedResources
from lora_retriever.serving.worker import Worker

AT_ONCE = 256
"""Maximum number of inputs that are routed together."""


@dataclass
class _Waiting:
    asked: Asked
    texts: Sequence[str]
    snapshot: Snapshot
    learned: Learned | None
    future: Future[list[Composition]]


class Routing:
    """Routes inputs in a thread of its own, so that requests of one moment are encoded in one batch.

    Methods that look into the model have another thread, so that no other method waits for the model.
    """

    def __init__(self, profile: Profile, pool: LivePool, encoder: QueryEncoder | None) -> None:
        """Start the threads. `encoder`: None if no method that is asked for needs embeddings."""
        self._profile = profile
        self._pool = pool
        self._encoder = encoder
        self._profiles = lru_cache(maxsize=256)(lambda settings: with_settings(profile, settings))
        self._worker: Worker[_Waiting] = Worker("routing", self._route_together)
        self._looking: Worker[_Waiting] = Worker("looking", self._route_together)

    def submit(
        self, asked: Asked, texts: Sequence[str], snapshot: Snapshot, learned: Learned | None = None
    ) -> Future[list[Composition]]:
        """The composition of each text, soon. Errors are `ApiError`.

        Args:
            learned: the result of the method's learning. None: the method does not learn.
        """
        future: Future[list[Composition]] = Future()
        if asked.composition is not None:
            future.set_result([asked.composition] * len(texts))
            return future
        worker = self._worker if learned is None else self._looking
        if not worker.put(_Waiting(asked, texts, snapshot, learned, future)):
            future.set_exception(RuntimeError("the server has ended"))
        return future

    def route(self, asked: Asked, text: str, snapshot: Snapshot, learned: Learned | None = None) -> Composition:
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
        try:
            if learned is not None:
                return self._route_learned(asked, text, snapshot, learned)
            resources = AskedResources(profile, [text], self._pool, snapshot, asked.exclude, self._encoder)
            (composition,) = method.compositions(Context(resources, profile, method.declaration))
        except (UserError, ValueError) as error:
            raise ApiError(400, f"`model`: {asked.name} cannot answer this input: {error}", "model") from error
        return composition

    def _route_learned(self, asked: Asked, text: str, snapshot: Snapshot, learned: Learned) -> Composition:
        """The composition by a method that has learned, without adapters that the request excludes or that are gone.

        A method that finds adapters by the input looks among the remaining adapters. Files about the input that the
        method writes are removed at once.
        """
        assert asked.method is not None
        without = asked.exclude | (learned.snapshot.entries.keys() - snapshot.entries.keys())
        hidden = without if learned.gate is None else frozenset()  # a gate was learned for certain adapters
        with TemporaryDirectory() as folder:
            looking = replace(learned.looking, results=Path(folder))
            resources = AskedResources(
                self._profile, [text], self._pool, learned.snapshot, frozenset(hidden), self._encoder, looking
            )
            (composition,) = asked.method.compositions(Context(resources, self._profile, asked.method.declaration))
        weights = {name: weight for name, weight in composition.weights.items() if name not in without}
        return replace(composition, weights=weights)

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
        """End the threads."""
        self._worker.close()
        self._looking.close()

    def _route_together(self, batch: Sequence[_Waiting]) -> bool:
        """Encode the inputs of all requests at once, then route each input alone.

        No input changes another's adapters.
        """
        live = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        reading = [w.texts for w in live if w.asked.method and w.asked.method.needs_encoder(self._profile)]
        if self._encoder is not None and len(reading) > 1:
            with suppress(Exception):  # the error is raised again below, for the request that caused the error
                self._encoder.encode([text for texts in reading for text in texts][:AT_ONCE])
        for waiting in live:
            try:
                w = waiting
                found = [self.route(w.asked, text, w.snapshot, w.learned) for text in w.texts]
            except Exception as error:  # the error goes to the caller, who waits for the future
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(found)
        return False
