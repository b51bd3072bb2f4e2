"""What runs in Ray's processes for `backends.ray`: workers that hold a model each, and a desk that gives them batches.

Ray imports this module in every process that speaks to one of these actors, and pays for torch only where `Worker` has
its model: batches and outcomes are bytes elsewhere, and the heavy imports stand inside the method that needs them.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from lora_retriever.backends.local import LocalBackend
    from lora_retriever.generation.loading import ModelSource

ATTEMPTS = 3
"""A batch is given up when so many workers died of it."""
RESTARTS = 20
"""A worker is given up when it died more often; it may be short of memory for its model, and would die for ever."""
KILLED = "killed, or out of memory"


class Worker:
    """An actor that answers with a model of its own."""

    def __init__(self, source: ModelSource, own_methods: Sequence[str], folder: Path) -> None:
        """Remember what to load.

        Args:
            own_methods: a user's own methods, `module:object`. Once their modules are imported, their gates and
                composers can be unpickled.
            folder: where these modules are looked for, beside Python's own path.
        """
        self._source = source
        self._own_methods = own_methods
        self._folder = folder

    @cached_property
    def _backend(self) -> LocalBackend:
        from lora_retriever.backends.local import LocalBackend
        from lora_retriever.generation.loading import load_generator
        from lora_retriever.methods import load_methods

        for location in self._own_methods:
            load_methods(location, self._folder)
        return LocalBackend(load_generator(self._source))

    def load(self) -> None:
        """Have the model loaded, and the modules of the profile's methods.

        Raises:
            UserError: one of them cannot be loaded.
        """
        _ = self._backend

    def answer(self, batch: bytes, way: bytes) -> bytes:
        """The pickled outcome of a pickled list of requests, composed in a pickled way: a mode and a gate."""
        backend = self._backend  # before anything is unpickled: it knows a user's own modules
        return pickle.dumps(backend.answer(pickle.loads(batch), *pickle.loads(way)))


class Desk:
    """An actor that gives each batch to the next worker that is free."""

    def __init__(self, *workers: Any) -> None:
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in workers:
            self._free.put_nowait(worker)
        self._able = len(workers)  # workers that answer, or will again
        self._returning: set[asyncio.Task[None]] = set()

    async def answer(self, batch: bytes, way: bytes) -> tuple[bytes, str]:
        """A batch's outcome; or nothing, and why: worker after worker died of it, one raised an error, none is left."""
        reason = ""
        for _ in range(ATTEMPTS):
            worker = await self._free.get()
            if worker is None:
                self._free.put_nowait(None)  # for the next batch
                return b"", reason or "all workers have died"
            try:
                outcome: bytes = await worker.answer.remote(batch, way)
            except RayTaskError as error:  # raised by the worker's own code: it lives
                self._free.put_nowait(worker)
                return b"", reason_of(error)
            except RayError:  # the worker, its machine or its answer is lost
                reason = f"its worker died: {KILLED}"
                task = asyncio.create_task(self._welcome_back(worker))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
            else:
                self._free.put_nowait(worker)
                return outcome, ""
        return b"", reason

    async def _welcome_back(self, worker: Any) -> None:
        """Wait for a worker that died, and let it go if it cannot come back."""
        try:
            await worker.load.options(max_task_retries=-1).remote()  # waits until Ray has started it again
        except RayError:
            self._able -= 1
            if not self._able:
                self._free.put_nowait(None)
        else:
            self._free.put_nowait(worker)


def reason_of(error: BaseException) -> str:
    """What an error says for a person: what an actor itself raised, without the traceback that Ray puts around it."""
    while isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, RayActorError):
        return f"a worker died: {KILLED}"
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, UserError) else text.splitlines()[0]
