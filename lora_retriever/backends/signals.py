"""Signals that end a command: backends are closed, and the exit status is 128 plus the signal's number.

A scheduler ends a job by SIGTERM, a closed terminal sends SIGHUP, and Ctrl-C sends SIGINT. Each raises `StoppedError`
in the main thread. The files on disk are complete at any moment, so nothing else has to be done.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lora_retriever.errors import StoppedError

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
MOMENT = 0.02
"""Seconds until a signal that Python swallowed is raised again."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise `StoppedError` on the signals of `ENDING`; the former handlers come back afterwards.

    A signal that this process was started to ignore, as `nohup` does with SIGHUP, stays ignored. After the first
    signal, the backends are closed, and further signals are ignored. Only a second Ctrl-C ends the closing, too.

    Raises:
        StoppedError: a signal came. A library may have turned the error of the signal into another error.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in ENDING:
            if signal.getsignal(other) == stop:
                signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_IGN)
        raise StoppedError(number)

    def swallowed(what: sys.UnraisableHookArgs) -> None:
        """Raise a signal again, a moment later, if Python swallowed the error, as in a destructor or a callback."""
        if not isinstance(what.exc_value, KeyboardInterrupt):
            former_hook(what)
            return
        number = getattr(what.exc_value, "signal", signal.SIGINT)
        signal.signal(number, stop)
        # A signal to the main thread also ends a call in which the thread waits.
        threading.Timer(MOMENT, signal.pthread_kill, [threading.main_thread().ident, number]).start()

    former_hook = sys.unraisablehook
    with keeping_handlers():
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)
        sys.unraisablehook = swallowed
        try:
            yield
        except Exception as error:
            if received:
                raise StoppedError(received[0]) from error
            raise
        finally:
            sys.unraisablehook = former_hook


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """After this context, the signals of `ENDING` have the same handlers as before. Ray installs handlers that abort
    the process."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in ENDING} if is_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not installed by Python
                signal.signal(number, handler)
