"""`Service`: everything that answers requests, without HTTP: the live pool, the routing and the engine.

The server's routes use a `Service`, and so does `lora-retriever ask`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lora_retriever.backends.base import is_broken_device
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loop import Loop
from lora_retriever.methods import Method
from lora_retriever.serving.engine import Engine
from lora_retriever.serving.learning import Learned, Learning
from lora_retriever.serving.naming import Asked, learns, served_methods
from lora_retriever.serving.pool import LivePool, QueryEncoder, Snapshot
from lora_retriever.serving.routing import Routing


class Service:
    """The parts that answer, and the adapters that requests use.

    Attributes:
        folders: the folder of each adapter that is loaded.
        methods: the methods that can be asked for, by name.
    """

    def __init__(
        self,
        profile: Profile,
        generator: Generator,
        pool: LivePool,
        encoder: QueryEncoder | None,
        folders: Mapping[str, Path],
        learning: Callable[[Callable[[], Mapping[str, Path]]], Learning],
        observe: Callable[[int, int, float], None] = lambda rows, waiting, seconds: None,
    ) -> None:
        """Put the parts together, and start their threads.

        Args:
            learning: makes the part in which methods learn, of a function that gives the adapters' folders.
            observe: is told of every step of the engine.
        """
        self.profile = profile
        self.generator = generator
        self.pool = pool
        self.folders = dict(folders)
        self.methods: dict[str, Method] = served_methods(profile)
        self.learning = learning(self._loaded)
        self.routing = Routing(profile, pool, encoder)
        self.engine = Engine(
            Loop(
                generator,
                profile.serve.tokens,
                read_tokens=profile.serve.read_tokens,
                steps=1,
                is_fatal=is_broken_device,
            ),
            profile.serve.waiting,
            observe,
            is_broken_device,
        )
        self._using: Counter[str] = Counter()  # how many requests use an adapter
        self._leaving: set[str] = set()  # adapters that are unloaded when no request uses them any more
        self._lock = threading.Lock()

    @contextmanager
    def using(self, compositions: Sequence[Composition]) -> Iterator[bool]:
        """While the context is open, the adapters of these compositions are not unloaded.

        The context gives False if one of the adapters was removed from the pool meanwhile. The caller then finds other
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

    def learned(self, asked: Asked, snapshot: Snapshot) -> Learned | None:
        """The result of the learning of a request's method. None: the method does not learn, or none is asked for.

        Raises:
            ApiError: the method is still learning, or could not learn.
        """
        method = asked.method
        return self.learning.of(method, snapshot) if method is not None and learns(method) else None

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter between two steps of the engine.

        Raises:
            AdapterError: the adapter cannot be composed exactly. Nothing has changed.
        """
        model = self.generator.model
        self.engine.call(lambda: model.load_adapter(folder, name=name)).result()
        with self._lock:
            self.folders[name] = folder

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter as soon as no request uses it any more. No request begins to use it from now on."""
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
            self.generator.model.unload_adapter(name)
            self.learning.forget(name)
            with self._lock:
                self._leaving.discard(name)

        self.engine.call(unload)
