"""A command in a fork of the test's process.

The fork gets signals and ends like any process, but imports nothing anew.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lora_retriever.cli import main


class Forked:
    """One command, to be used in `with`: a process that still runs at the end of the block is killed."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        before: Callable[[], object] = lambda: None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        """Start the command.

        Args:
            arguments: of `lora-retriever`.
            folder: where the files of its output and its errors are written.
            before: called in the new process before the command.
            stdout: an open file in place of the file for the output; `stderr` likewise.
        """
        self.returncode: int | None = None
        self._files = folder / "forked.out", folder / "forked.err"
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        given = [
            os.open(path, writing) if one is None else os.dup(one)
            for path, one in zip(self._files, (stdout, stderr), strict=True)
        ]
        self.pid = os.fork()
        if self.pid == 0:
            _run(arguments, before, given)
        for one in given:
            os.close(one)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def poll(self) -> int | None:
        """The exit status, negative for a signal. None: the process still runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end, for `timeout` seconds at most. Returns the exit status."""
        patience = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < patience, "the command does not end"
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def wait_for(self, path: Path, timeout: float = 60) -> None:
        """Wait until a file has content or the command has ended."""
        patience = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < patience:
            with suppress(FileNotFoundError):
                if path.stat().st_size:
                    return
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def output(self) -> str:
        return self._files[0].read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        return self._files[1].read_text(encoding="utf-8")


def _run(arguments: Sequence[str], before: Callable[[], object], given: Sequence[int]) -> NoReturn:
    """Run the command in this new process, and end the process."""
    status = 99
    try:
        os.setsid()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizers' threads do not live on in a fork
        for number, one in zip((1, 2), given, strict=True):
            os.dup2(one, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        before()
        status = main(arguments)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
