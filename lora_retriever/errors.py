"""The two ways a command ends badly. A user's mistakes are raised as `UserError` and shown without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Unusable arguments, input or environment: says what is wrong, where, and what to do. Exit status 2."""


class RowsFailedError(Exception):
    """Some rows could not be answered; the others were, and are on disk. Exit status 1."""
