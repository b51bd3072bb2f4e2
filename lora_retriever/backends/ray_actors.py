"""The actors of `backends.ray`: workers, each with a model of its own, and a desk that gives windows to the workers.

Ray imports this module in every process that calls one of these actors. Only a worker needs torch: the other processes
see windows and outcomes as bytes, and the method that needs torch imports it. The bytes are pickles that the processes
of one evaluation write for each other; no file and no data set is unpickled.
"""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from lora_retriever.backends.base import BackendError
from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from lora_retriever.backends.local import LocalBackend
    from lora_retriever.generation.loading import ModelSource

ATTEMPTS = 3
"""Maximum number of workers to which a window is given if one worker after another dies of the window."""
RESTARTS = 20
"""Maximum number of times that a worker is started again. A worker without enough memory for its model always dies."""
KILLED = "killed, out of memory, or with a broken device"


class Worker:
    """An actor that answers windows with a model of its own."""

    def __init__(self, source: ModelSource, own_methods: Sequence[str], folder: Path) -> None:
        """Remember what to load.

        Args:
            own_methods: a user's own methods, `module:object`. Their modules must be imported before their gates and
                composers can be unpickled.
            folder: where Python looks for these modules, in addition to its own path.
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
        """Load the model and the modules of the profile's methods, if they are not loaded.

        Raises:
            UserError: the model or a module cannot be loaded.
        """
        _ = self._backend

    def answer(self, window: bytes, how: bytes) -> bytes:
        """The pickled outcome of a pickled list of requests, under a pickled mode and gate.

        A worker whose device is broken ends its process. Ray starts the worker again, on a device that works.
        """
        backend = self._backend  # first: loading imports a user's own modules, which unpickling needs
        try:
            return pickle.dumps(backend.answer(pickle.loads(window), *pickle.loads(how)))
        except BackendError:
            os._exit(1)


class Desk:
    """An actor that gives each window to the next worker that is free."""

    def __init__(self, *workers: Any) -> None:
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in workers:
            self._free.put_nowait(worker)
        self._able = len(workers)  # number of workers that answer, or will answer again
        self._returning: set[asyncio.Task[None]] = set()

    async def answer(self, window: bytes, how: bytes) -> tuple[bytes, str]:
        """The outcome of a window and "", or nothing and the reason.

        The reasons: the window ended several workers one after another, a worker raised an error, or no worker is left.
        """
        reason = ""
        for _ in range(ATTEMPTS):
            worker = await self._free.get()
            if worker is None:
                self._free.put_nowait(None)  # for the next window
                return b"", reason or "all workers have died"
            try:
                outcome: bytes = await worker.answer.remote(window, how)
            except RayTaskError as error:  # the worker's code raised an error, and the worker lives
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
        """Wait until Ray has started a worker again that died. A worker that cannot be started is given up."""
        try:
            await worker.load.options(max_task_retries=-1).remote()
        except RayError:
            self._able -= 1
            if not self._able:
                self._free.put_nowait(None)
        else:
            self._free.put_nowait(worker)


def reason_of(error: BaseException) -> str:
    """The text of an error that an actor raised, without the traceback that Ray adds."""
    while isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, RayActorError):
        return f"a worker died: {KILLED}"
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, UserError) else text.splitlines()[0]
