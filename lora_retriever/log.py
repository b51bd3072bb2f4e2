"""The log of a command, for `-v` and `--log-file`: beginnings and ends, messages of libraries, tracebacks.

Without these two arguments nothing is logged, and the messages of a command are the same. Log entries and warnings of
libraries reach the terminal only with `-v`. The warnings of this project's own packages are messages of the command.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich, for_terminal
from lora_retriever.progress import tolerant

LOG = logging.getLogger("lora_retriever")
LOG.addHandler(logging.NullHandler())  # without a handler, logging would print warnings and errors itself
SHOWN = {"shown": True}
"""The mark of a log entry whose text the terminal shows in any case."""
OWN_PACKAGES = ("lora_retriever", "peft_composition")


class LoggedConsole(Console):
    """A console for messages, which also go into the log."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, and log the printed texts."""
        super().print(*objects, **options)
        texts = [part.plain if isinstance(part, Text) else part for part in objects if isinstance(part, str | Text)]
        if texts:
            LOG.info("%s", " ".join(texts), extra=None if self.quiet else SHOWN)


class _Formatter(logging.Formatter):
    """Entries whose text cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


@contextmanager
def logged(verbose: bool, quiet: bool, file: Path | None) -> Iterator[Console]:
    """The console for a command's messages, on standard error, while the log is open.

    Args:
        verbose: whether the log goes to the console, too.
        quiet: whether the console shows nothing.
        file: the file to which the log is appended.

    Raises:
        UserError: the file cannot be written.
    """
    console = LoggedConsole(file=tolerant(sys.stderr), quiet=quiet)
    handlers: list[logging.Handler] = []
    stream = None
    if file is not None:
        try:
            stream = file.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"--log-file {file}: cannot be written ({error.strerror or error})") from error
        handlers.append(logging.StreamHandler(tolerant(stream)))
        handlers[-1].setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if verbose:
        from rich.logging import RichHandler

        handlers.append(RichHandler(console=console, show_path=False, highlighter=None))
        handlers[-1].setFormatter(_Formatter("%(name)s: %(message)s"))
        handlers[-1].addFilter(lambda record: not hasattr(record, "shown"))
    root = logging.getLogger()
    level = root.level
    if handlers:
        root.setLevel(logging.INFO)
    else:
        handlers.append(logging.NullHandler())  # without a handler, logging would print libraries' warnings itself
    for handler in handlers:
        root.addHandler(handler)
    logging.captureWarnings(True)
    _show_own_warnings(console)
    try:
        yield console
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        if stream is not None:
            with suppress(OSError):  # a full disk
                stream.close()


def _show_own_warnings(console: Console) -> None:
    """Print the warnings of this project's packages on the console. All other warnings still go into the log."""
    into_the_log = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if category.__module__.partition(".")[0] in OWN_PACKAGES:
            console.print(for_rich(str(message)), soft_wrap=True)
        else:
            into_the_log(message, category, *where, **options)

    warnings.showwarning = show
