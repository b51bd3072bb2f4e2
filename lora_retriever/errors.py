"""The errors with which a command ends. A user's mistakes are raised as `UserError` and shown without a traceback."""

from __future__ import annotations

LONGEST_REASON = 300
"""Maximum length of a foreign error's text in a message, in characters."""


class UserError(Exception):
    """Unusable arguments, input or environment: says what is wrong, where, and what to do. Exit status 2."""


class RowsFailedError(Exception):
    """Some rows could not be answered; the answers of all other rows are on disk. Exit status 1."""


class RunsFailedError(UserError):
    """Some runs could not be made, or the work had to end; the runs that were made are on disk. Exit status 2."""


class StoppedError(KeyboardInterrupt):
    """A signal ended the command. Like `KeyboardInterrupt`, this error passes every `except Exception`.

    Attributes:
        signal: the signal's number. The exit status is 128 plus this number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def one_line_of(error: BaseException) -> str:
    """An unexpected error in one line: its kind, and the first line of its text."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
