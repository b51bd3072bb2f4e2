"""`Service`: everything that answers requests, without HTTP: the live pool, the routing and the engine.

The server's routes use a `Service`, and so does `lora-retriever ask`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.methods import Method
from lora_retriever.serving.engine import Engine, Steps
from lora_retriever.serving.learning import Learned, Learning
from lora_retriever.serving.naming import Asked, learns, refusal, served_methods
from lora_retriever.serving.pool import LivePool, QueryEncoder, Snapshot
from lora_retriever.serving.prompts import Codec
from lora_retriever.serving.routing import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapters(Protocol):
    """The adapters that are loaded, which the engine's thread alone touches. `base`: the base, or its skeleton."""

    base: PreTrainedModel

    def load_adapter(self, path_or_repo_id: Path, name: str) -> None:
        """Load an adapter. Raises `AdapterError`, and changes nothing, if the adapter cannot be composed exactly."""

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter."""


@dataclass(frozen=True)
class Answerer:
    """The parts of a service that depend on the backend.

    Attributes:
        codec: turns prompts into tokens, and tokens into answers.
        loop: continues prompts.
        is_fatal: whether an error of the loop means that nothing more can be computed in this process.
        learning: makes the part in which methods learn. The argument is a function that gives the adapters' folders.
            None: the backend has no model that methods could look into.
    """

    codec: Codec
    loop: Steps
    adapters: Adapters
    is_fatal: Callable[[Exception], bool]
    learning: Callable[[Callable[[], Mapping[str, Path]]], Learning] | None = None


class Service:
    """The parts that answer, and the adapters that requests use.

    Attributes:
        folders: the folder of each adapter that is loaded.
        methods: the methods that can answer a single input, by name. The backend may refuse some of these methods
            (`naming.refusal`).
    """

    def __init__(
        self,
        profile: Profile,
        answerer: Answerer,
        pool: LivePool,
        encoder: QueryEncoder | None,
        folders: Mapping[str, Path],
        observe: Callable[[int, int, float], None] = lambda rows, waiting, seconds: None,
    ) -> None:
        """Put the parts together, and start their threads. `observe` is told of every step of the engine."""
        self.profile = profile
        self.codec = answerer.codec
        self.adapters = answerer.adapters
        self.pool = pool
        self.folders = dict(folders)
        self.methods: dict[str, Method] = served_methods(profile)
        self.learning = None if answerer.learning is None else answerer.learning(self._loaded)
        self.routing = Routing(profile, pool, encoder)
        self.engine = Engine(answerer.loop, profile.serve.waiting, observe, answerer.is_fatal)
        self._using: Counter[str] = Counter()  # how many requests use an adapter
        self._leaving: set[str] = set()  # adapters that are unloaded when no request uses them any more
        self._lock = threading.Lock()

    @contextmanager
    def using(self, compositions: Sequence[Composition]) -> Iterator[bool]:
        """While the context is open, the adapters of these compositions are not unloaded.

        The context gives False if an adapter was removed from the pool meanwhile. The caller then finds other
        adapters.
        """
        names = list(dict.fromkeys(name for composition in compositions for name in composition.weights))
        with self._lock:
            present = all(name in self.folders for name in names)
            if present:
                self._using.update(names)
        try:
            yield present
        finally:
            for name in self._given_back(names) if present else ():
                self._unload(name)

    @property
    def offered(self) -> dict[str, Method]:
        """The methods that can be asked for, by name."""
        return {name: method for name, method in self.methods.items() if refusal(method, self.profile) is None}

    def is_ready(self, method: Method) -> bool:
        """Whether a method answers now. A method that learns must have learned."""
        return not learns(method) or (self.learning is not None and self.learning.is_ready(method))

    def learned(self, asked: Asked, snapshot: Snapshot) -> Learned | None:
        """The result of the learning of a request's method. None: the method does not learn, or none is asked for.

        Raises:
            ApiError: the method is still learning, or could not learn.
        """
        method = asked.method
        if self.learning is None or method is None or not learns(method):
            return None
        return self.learning.of(method, snapshot)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter between two steps of the engine.

        Raises:
            AdapterError: the adapter cannot be composed exactly. Nothing has changed.
        """
        self.engine.call(lambda: self.adapters.load_adapter(folder, name=name)).result()
        with self._lock:
            self.folders[name] = folder

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter as soon as no request uses the adapter any more.

        From now on, no request begins to use the adapter.
        """
        with self._lock:
            del self.folders[name]
            self._leaving.add(name)
            unused = not self._using[name]
        if unused:
            self._unload(name)

    def is_leaving(self, name: str) -> bool:
        """Whether an adapter is still to be unloaded."""
        with self._lock:
            return name in self._leaving

    @property
    def in_use(self) -> list[str]:
        """The adapters that requests use now."""
        with self._lock:
            return sorted(self._using)

    def close(self) -> None:
        """End the threads. Requests that are not answered by now get no answer."""
        if self.learning is not None:
            self.learning.close()
        self.routing.close()
        self.engine.close()

    def _loaded(self) -> dict[str, Path]:
        with self._lock:
            return dict(self.folders)

    def _given_back(self, names: Sequence[str]) -> list[str]:
        """The adapters among `names` that are to be unloaded now."""
        with self._lock:
            self._using.subtract(names)
            self._using += Counter()  # drops zeros
            return [name for name in names if name in self._leaving and not self._using[name]]

    def _unload(self, name: str) -> None:
        """Free an adapter's memory between two steps of the engine. Nobody waits for it."""

        def unload() -> None:
            self.adapters.unload_adapter(name)
            if self.learning is not None:
                self.learning.forget(name)
            with self._lock:
                self._leaving.discard(name)

        self.engine.call(unload)
