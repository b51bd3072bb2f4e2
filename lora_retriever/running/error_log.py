"""`RESULTS/errors.log`: the tracebacks of unexpected errors. The messages of a command stay one line each."""

from __future__ import annotations

import os
import traceback
from datetime import datetime, timezone
from pathlib import Path

from lora_retriever.errors import one_line_of
from lora_retriever.escaping import for_terminal

LOG = "errors.log"


class ErrorLog:
    """The log of one start of a command."""

    def __init__(self, results: Path) -> None:
        self.path = results / LOG
        self.is_used = False
        """Whether a traceback of this start is in the file."""
        self._known: set[str] = set()

    def add(self, what: str, error: BaseException) -> str:
        """Keep an error's traceback, and return the error in one line. `what` names the task that failed."""
        self.add_text(what, "".join(traceback.format_exception(error)))
        return one_line_of(error)

    def add_text(self, what: str, text: str) -> None:
        """Keep a traceback. A traceback that is in the file already is not repeated: 1,000 rows may fail of one bug."""
        if text in self._known:
            return
        self._known.add(text)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = for_terminal(f"{now} {what}\n{text.rstrip()}\n\n").encode("utf-8", "replace")
        try:
            log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:  # a full or read-only disk, or a link; the one-line messages are still true
            return
        try:
            os.write(log, entry)
            self.is_used = True
        except OSError:
            pass
        finally:
            os.close(log)

    @property
    def note(self) -> str:
        """Where the tracebacks are, as the last line of a message; empty if there are none."""
        return f"tracebacks are in {self.path}" if self.is_used else ""
