"""The file operations of this process, counted one by one, with an action before one operation.

The functions of `os` and `open` are replaced. File operations of libraries in C (SQLite, safetensors) are not counted.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OF_PATHS = ("replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "truncate", "chmod", "utime")
"""Functions of `os` whose arguments are one path or two, and which change a file system."""
OF_DESCRIPTORS = ("fsync", "ftruncate", "write", "pwrite", "fchmod", "fchown")
"""Functions of `os` whose first argument is an open file, and which change it."""
READING = ("listdir", "scandir", "stat", "lstat", "readlink")
"""Functions of `os` that only read."""


_UNFINISHED = re.compile(r"\.[0-9a-f]+-\d+-[0-9a-f]+-\d+(?=\.unfinished)|\.\d+$")  # differs at every start


@dataclass(frozen=True)
class Operation:
    """One file operation that is about to be done.

    Attributes:
        kind: such as `replace`, `write`, `open to write`, `open to read`.
        path: the file.
        tear: for a write, writes the first half of the data; otherwise does nothing.
    """

    kind: str
    path: str
    tear: Callable[[], None]


Act = Callable[[Operation], None]


class Operations:
    """Counts the operations on files below some folders, and acts before the operation of one number."""

    def __init__(
        self, folders: Sequence[Path], at: int | None, act: Act, reads: bool = False, lasting: bool = False
    ) -> None:
        """Say what to count.

        Args:
            folders: operations on other files are not counted.
            at: the number of the operation before which `act` is called, from 0. None: never.
            reads: whether operations that only read are counted.
            lasting: whether `act` is called before all later operations as well.
        """
        self.seen: list[str] = []
        self._folders = tuple(os.path.realpath(folder) for folder in folders)
        self._at = at
        self._act = act
        self._reads = reads
        self._lasting = lasting
        self._open = io.open

    def install(self) -> None:
        """Replace the functions in this process.

        The functions are never restored, because the process is meant to end.
        """
        for name in OF_PATHS + OF_DESCRIPTORS + (READING if self._reads else ()):
            setattr(os, name, self._counted(name, getattr(os, name)))
        os_open = os.open

        def open_descriptor(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            self._step("open to write" if flags & WRITE_FLAGS else "open to read", path, not flags & WRITE_FLAGS)
            return os_open(path, flags, *arguments, **options)

        os.open = open_descriptor
        io.open = builtins.open = self._open_file

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            half = nothing
            if name in ("write", "pwrite"):
                data = bytes(arguments[1])
                half = lambda: function(arguments[0], data[: len(data) // 2], *arguments[2:])  # noqa: E731
            self._step(name, arguments[0] if arguments else ".", name in READING, half)
            return function(*arguments, **options)

        return counted

    def _open_file(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        writes = any(sign in mode for sign in "wax+")
        if not isinstance(file, int):
            self._step("open to write" if writes else "open to read", file, not writes)
        opened = self._open(file, mode, *arguments, **options)
        return _WrittenFile(opened, self, file) if writes and self._is_counted(file) else opened

    def _is_counted(self, path: Any) -> bool:
        return self._resolved(path).startswith(self._folders)

    def _resolved(self, path: Any) -> str:
        try:
            return os.path.abspath(_readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path))
        except (OSError, TypeError, ValueError):
            return ""

    def _step(self, kind: str, path: Any, is_read: bool = False, tear: Callable[[], None] | None = None) -> None:
        if (is_read and not self._reads) or not self._is_counted(path):
            return
        number = len(self.seen)
        operation = Operation(kind, self._resolved(path), tear or nothing)
        self.seen.append(f"{kind} {_UNFINISHED.sub('', os.path.basename(operation.path))}")
        if number == self._at or (self._lasting and self._at is not None and number > self._at):
            self._act(operation)


_readlink = os.readlink


class _WrittenFile:
    """An open file whose writes are operations. Data passes at once, as if the file had no buffer."""

    def __init__(self, file: Any, operations: Operations, path: Any) -> None:
        self._file = file
        self._operations = operations
        self._path = path

    def write(self, data: Any) -> Any:
        """Write, as the file does."""

        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._operations._step("write", self._path, tear=half)
        written = self._file.write(data)
        self._file.flush()
        return written

    def __enter__(self) -> _WrittenFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def nothing() -> None:
    """Do nothing."""


def die(operation: Operation) -> NoReturn:
    """End this process by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not end the process")


def tear_and_die(operation: Operation) -> NoReturn:
    """Write the first half of the data, if the operation is a write, and end this process by SIGKILL."""
    operation.tear()
    die(operation)


def failing(code: int) -> Act:
    """An act that fails the operation with this error; a full or broken disk takes the first half of a write."""

    def fail(operation: Operation) -> None:
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            operation.tear()
        raise OSError(code, os.strerror(code), operation.path)

    return fail
