"""The errors that this package raises, and its warning.

Every error is a `ValueError`, because a value that was given to the package cannot be used.
"""

from __future__ import annotations

LONGEST_QUOTE = 200
"""Maximum length of a foreign text that a message quotes, in characters."""


class CompositionError(ValueError):
    """A call that cannot be served: weights of the wrong shape, an unknown mode, rows that do not match."""


class AdapterMemoryError(CompositionError):
    """A batch whose adapters do not fit into the memory that adapters may take. A smaller batch may fit."""


class AdapterError(CompositionError):
    """An adapter that cannot be composed. The error names the adapter, the module if there is one, and the reason."""

    def __init__(self, adapter: str, reason: str, module: str | None = None) -> None:
        super().__init__(adapter, reason, module)
        self.adapter = adapter
        self.reason = reason
        self.module = module

    def __str__(self) -> str:
        where = f"adapter {quoted(self.adapter)}" + (f", module {quoted(self.module)}" if self.module else "")
        return f"{where}: {self.reason}"


class AdapterWarning(UserWarning):
    """An adapter that was loaded and may not do what its user expects: it has no effect, or names another base."""


def quoted(value: object) -> str:
    """Return a value in quotes for a message: control characters escaped, at most `LONGEST_QUOTE` characters."""
    if isinstance(value, str) and len(value) > LONGEST_QUOTE:
        value = value[:LONGEST_QUOTE] + "…"
    text = repr(value)
    return text if len(text) <= 4 * LONGEST_QUOTE else text[: 4 * LONGEST_QUOTE] + "…"


def reason_of(error: BaseException) -> str:
    """Return an error in a few words for a message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
