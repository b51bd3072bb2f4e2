"""The progress bar of every long step: the work done, the time so far, and an estimate of the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from lora_retriever.escaping import one_line

LOG = logging.getLogger(__name__)
NAME_WIDTH = 24
"""Minimum width of the name, in characters. A longer name wraps, so that the count stays visible."""


class Bar:
    """One bar.

    The bar's length shows units of work (tokens, steps), and a text beside the bar shows counts such as rows.
    """

    def __init__(self, progress: Progress, name: str, total: float, done: float, text: str) -> None:
        """Begin with `done` of `total` units of work."""
        self._progress = progress
        self.text = text
        self._task = progress.add_task(one_line(name), total=total, completed=int(done), text=text)

    def move_to(self, done: float, text: str) -> None:
        """Show `done` units of work and the `text`."""
        self.text = text
        self._progress.update(self._task, completed=done, text=text)

    def restart_at(self, done: float, text: str) -> None:
        """Show `done` units of work from an earlier start, which the estimate of the time left ignores."""
        self.text = text
        self._progress.reset(self._task, completed=int(done), text=text)


@contextmanager
def progress_bar(console: Console | None, name: str, total: float, done: float = 0, text: str = "") -> Iterator[Bar]:
    """Show a bar while the context is open; `console` None shows nothing. The log tells of begin and end."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=NAME_WIDTH, overflow="fold")),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    LOG.info("%s: begins %s", one_line(name), text)
    with Progress(*columns, console=console, disable=console is None) as progress:
        bar = Bar(progress, name, total, done, text)
        yield bar
    LOG.info("%s: done, %s (%.1f s)", one_line(name), bar.text, time.perf_counter() - started)


class _Tolerant:
    """A stream for progress. Text that cannot be written is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerant(stream: IO[str]) -> IO[str]:
    """A stream that never fails: a closed pipe or a full disk behind the progress must not end hours of work."""
    return cast(IO[str], _Tolerant(stream))


def quieten_transformers() -> None:
    """Hide the progress bars and the advice of transformers, which would interrupt ours. A log keeps the advice."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    if logging.getLogger().isEnabledFor(logging.INFO):
        of_transformers.set_verbosity_warning()
        of_transformers.disable_default_handler()
        of_transformers.enable_propagation()
    else:
        of_transformers.set_verbosity_error()
