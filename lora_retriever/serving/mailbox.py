"""`Mailbox`: carries items from other threads into an event loop. Items that come at the same time wake the loop
once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, ClassVar
from weakref import WeakKeyDictionary


class Mailbox:
    """The mailbox of one event loop."""

    _of_loops: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: list[tuple[asyncio.Queue[Any], Any]] = []
        self._lock = threading.Lock()

    @classmethod
    def of_running_loop(cls) -> Mailbox:
        """The mailbox of the event loop of this thread."""
        loop = asyncio.get_running_loop()
        if loop not in cls._of_loops:
            cls._of_loops[loop] = cls(loop)
        return cls._of_loops[loop]

    def put(self, queue: asyncio.Queue[Any], item: Any) -> None:
        """Let the loop put an item into a queue, soon. If the loop has ended, nothing happens: nobody waits."""
        with self._lock:
            self._items.append((queue, item))
            wakes = len(self._items) == 1
        if wakes:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            items, self._items = self._items, []
        for queue, item in items:
            queue.put_nowait(item)
