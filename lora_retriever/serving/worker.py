"""`Worker`: a thread with a queue. Items that were put into the queue meanwhile are handled together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """A thread that is given all items that wait, again and again."""

    def __init__(self, name: str, work: Callable[[list[Item]], bool], end: Callable[[], object] = lambda: None) -> None:
        """Start the thread.

        Args:
            work: gets the items in their order, and returns whether to call it again at once, also without an item.
                `work` raises nothing.
            end: called in the thread, at the thread's end.
        """
        self._work, self._end = work, end
        self._items: list[Item] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, *items: Item) -> bool:
        """Let items wait for the thread. Returns False, and takes nothing, if the thread is to end."""
        with self._wake:
            if self._closed:
                return False
            self._items += items
            self._wake.notify()
        return True

    def close(self, waits: bool = True) -> None:
        """Let the thread work on the waiting items, and end. `waits`: whether this call waits for the thread's end."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if waits:
            self._thread.join()

    def _run(self) -> None:
        again = False
        while True:
            with self._wake:
                while not (self._items or self._closed or again):
                    self._wake.wait()
                items, self._items = self._items, []
                if self._closed and not items:
                    break
            again = self._work(items)
        self._end()
