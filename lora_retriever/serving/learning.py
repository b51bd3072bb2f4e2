"""Learning of methods before they answer: weights, gates, measurements. Methods learn in a thread, while requests run.

A method is learned from the pool at one moment. After a change of the pool, the method learns anew. Until then, the
method answers with its earlier result, without the adapters that were removed. The learned folders lie in the results
folder, as in an evaluation: a server finds the learned folders of an evaluation, and an evaluation finds the learned
folders of a server.
"""

from __future__ import annotations

import copy
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_retriever.data.drawing import hash_entries
from lora_retriever.errors import UserError, one_line_of
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import hash_path
from lora_retriever.generation.generator import Generator
from lora_retriever.log import LOG
from lora_retriever.methods import Method
from lora_retriever.methods.context import LEARNED, Context
from lora_retriever.running.results_folder import locked
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.pool import LivePool, QueryEncoder, Snapshot
from lora_retriever.serving.resources import AskedResources, Looking
from lora_retriever.serving.worker import Worker
from peft_composition import ComposableModel, Gate

RETRY = 10
"""Time after which a client asks again for a method that learns, in seconds."""
AFTER_FAILURE = 60.0
"""Time after which a method that could not be learned is tried again, in seconds."""


@dataclass(frozen=True)
class Learned:
    """The result of a method's learning.

    Attributes:
        snapshot: the pool that was learned from.
        looking: the model, and where the method's learned folders lie.
        gate: the method's gate. None: it has none.
    """

    snapshot: Snapshot
    looking: Looking
    gate: Gate | None


class Twin:
    """A second view of the base, with the same model weights, for methods that look into the model while it answers.

    Adapters are loaded at their first use, in addition to the engine's adapters.
    """

    def __init__(self, generator: Generator, adapter_memory: int | None) -> None:
        """Made before the engine composes anything, because compositions add hooks to the modules of the base."""
        base = generator.model.base
        shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())}
        self._base = copy.deepcopy(base, shared)
        self._of, self._memory = generator, adapter_memory
        self._gone: set[str] = set()
        self._lock = threading.Lock()

    def with_adapters(self, folders: Mapping[str, Path]) -> Generator:
        """The generator, with these adapters loaded.

        Raises:
            AdapterError: an adapter cannot be loaded.
        """
        with self._lock:
            model = self._generator.model
            gone, self._gone = self._gone, set()
            for name in gone & set(model.adapters):
                model.unload_adapter(name)
            loaded = set(model.adapters)
            for name, folder in folders.items():  # the pool's order, as in an evaluation
                if name not in loaded:
                    model.load_adapter(folder, name=name)
            return self._generator

    def forget(self, name: str) -> None:
        """Unload an adapter that has left the pool, before adapters are loaded the next time. Nobody waits here."""
        self._gone.add(name)

    @cached_property
    def _generator(self) -> Generator:
        tokenizer = copy.deepcopy(self._of.tokenizer)
        return Generator(ComposableModel(self._base, self._memory), tokenizer, self._of.settings)


@dataclass
class _Work:
    """The state of one method."""

    learned: Learned | None = None
    failure: str | None = None
    failed_at: float = field(default=-AFTER_FAILURE)
    begun: bool = False


class Learning:
    """The methods that learn, and the thread of the learning."""

    def __init__(
        self,
        profile: Profile,
        base: Path,
        results: Path,
        pool: LivePool,
        encoder: QueryEncoder | None,
        pool_hash: str | None,
        twin: Twin,
        folders: Callable[[], Mapping[str, Path]],
    ) -> None:
        """Start the thread.

        Args:
            results: the folder whose sub-folder `learned` has the learned folders.
            pool_hash: identifies the present pool. None: the pool's content identifies the pool.
            folders: gives the folder of each adapter that is loaded now.
        """
        self._profile, self._base, self._results = profile, base, results
        self._pool, self._encoder, self._twin, self._folders = pool, encoder, twin, folders
        self._first, self._pool_hash = pool.current, pool_hash
        self._states: dict[str, _Work] = {}
        self._hashes: dict[Path, str] = {}
        self._lock = threading.Lock()  # protects the states
        self._turn = threading.Lock()  # held by the thread that learns
        self._worker: Worker[Method] = Worker("learning", self._work)

    def is_ready(self, method: Method) -> bool:
        """Whether the method has learned."""
        state = self._states.get(method.name)
        return state is not None and state.learned is not None

    def of(self, method: Method, snapshot: Snapshot) -> Learned:
        """The result of a method's learning. If the pool has changed since, the method begins to learn anew.

        Raises:
            ApiError: the method is still learning, or could not learn.
        """
        with self._lock:
            state = self._states.setdefault(method.name, _Work())
            learned, failure = state.learned, state.failure
            is_old = learned is None or learned.snapshot.entries is not snapshot.entries
            if is_old and not state.begun and time.monotonic() - state.failed_at > AFTER_FAILURE:
                state.begun = self._worker.put(method)
                failure = None
        if learned is not None:
            return learned
        if failure is not None:
            raise ApiError(503, f"`model`: {method.name} could not learn: {failure}", "model", "learning_failed")
        reason = f"`model`: {method.name} learns before it answers; try again later"
        raise ApiError(503, reason, "model", "learning", {"Retry-After": str(RETRY)})

    def learn(self, method: Method) -> None:
        """Let a method learn now, and wait for the result.

        Raises:
            UserError: the method cannot learn.
        """
        snapshot = self._pool.current
        with self._lock:
            state = self._states.setdefault(method.name, _Work())
        if state.learned is None or state.learned.snapshot.entries is not snapshot.entries:
            state.learned = self._learned(method, snapshot)

    def forget(self, adapter: str) -> None:
        """Free the memory of an adapter that has left the pool. The adapter's folder may get other files later."""
        self._twin.forget(adapter)
        self._hashes.clear()

    def close(self) -> None:
        """Let no further method learn. If the process ends while a method learns, the learning continues when a server
        starts again."""
        self._worker.close(waits=False)

    def _work(self, methods: list[Method]) -> bool:
        for method in methods:
            state = self._states[method.name]
            learned, failure = None, None
            try:
                learned = self._learned(method, self._pool.current)
            except UserError as error:
                failure = str(error)
            except Exception as error:  # a method may raise anything
                LOG.exception("method %s could not learn", method.name)
                failure = one_line_of(error)
            with self._lock:
                state.begun, state.failure = False, failure
                if learned is None:
                    state.failed_at = time.monotonic()
                else:
                    state.learned = learned
        return False

    def _learned(self, method: Method, snapshot: Snapshot) -> Learned:
        loaded = self._folders()
        folders = {name: loaded[name] for name in snapshot.entries if name in loaded}
        looking = Looking(self._twin.with_adapters(folders), self._results, self._hashes_of(snapshot, folders))
        used: list[set[str]] = []  # names of learned folders
        with self._turn, locked(self._results):
            for _ in range(2):
                inputs = [uuid4().hex]  # any text: methods learn for all inputs
                asked = AskedResources(self._profile, inputs, self._pool, snapshot, frozenset(), self._encoder, looking)
                context = Context(asked, self._profile, method.declaration)
                gate = method.fitted_gate(context)
                method.compositions(context)
                used.append(set(asked.learned))
            for name in used[0] ^ used[1]:  # folders that only one of the two texts has
                shutil.rmtree(self._results / LEARNED / name, ignore_errors=True)
        kept = tuple(str((self._results / LEARNED / name).resolve()) for name in used[0] & used[1])
        return Learned(snapshot, replace(looking, kept=kept), gate)

    def _hashes_of(self, snapshot: Snapshot, folders: Mapping[str, Path]) -> dict[str, Any]:
        """The hashes that identify learned folders, equal to the hashes of an evaluation of the same pool."""
        known = dict(self._hashes)
        known |= {folder: hash_path(folder) for folder in {self._base, *folders.values()} - known.keys()}
        self._hashes.update(known)
        of_pool = self._pool_hash if snapshot.entries is self._first.entries else None
        entries = list(snapshot.entries.values())
        return {
            "rows": "",  # the rows of a server are its requests
            "pool": of_pool or hash_entries(entries),
            "base": known[self._base],
            "adapters": {name: known[folder] for name, folder in folders.items()},
        }
