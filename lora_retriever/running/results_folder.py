"""A results folder: held by one process at a time, and every error of its file system is one message.

The lock is `flock` on the file `.lock`. The system frees this lock when the process ends, however the process ends. On
a file system without `flock` (some NFS, FUSE and Lustre mounts) the lock is a file `.lock.owner`, which is made only if
no such file exists. The file names the process and the machine of the process. A file whose process has ended is taken
over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_shell
from lora_retriever.files import DISK_ERRORS, read_bytes, sweep_unfinished
from lora_retriever.methods.context import LEARNED

LOCK = ".lock"
SOFT_LOCK = ".lock.owner"
EARLIER = "earlier"
"""The folder, within the results folder, of the files of runs that were answered anew."""

UNFINISHED_SECONDS = 2.0
"""Maximum time between the making of a soft lock and the moment when the lock names its process, in seconds."""
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""The errors of `flock` if another process holds the lock."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""The errors of `flock` on a file system that has no such locks."""
GONE = (errno.ENOENT, errno.ENOTDIR)


class FolderError(UserError):
    """The results folder cannot be written any more. The answers on disk are safe, and no other row can be answered."""


def folder_error(results: Path, error: OSError) -> FolderError:
    """The message for an error of the file system while a run writes into its results folder."""
    said = f"({error.strerror or error})"
    if error.errno in GONE:
        return FolderError(
            f"the results folder {results} was removed or moved while the run was going on {said}. If it was moved, "
            "give its new path with --results: the run goes on there"
        )
    reason = DISK_ERRORS.get(error.errno or 0, "the results folder {} cannot be written").replace("{}", str(results))
    return FolderError(
        f"{reason} {said}; the rows written so far are safe. Set that right and give the same command again: it goes on"
    )


@contextmanager
def writing_into(results: Path) -> Iterator[None]:
    """Writes of one step of a run.

    Raises:
        FolderError: the file system does not take the writes.
    """
    try:
        if not results.is_dir():  # a write must not make a removed folder anew
            raise NotADirectoryError(errno.ENOENT, os.strerror(errno.ENOENT), str(results))
        yield
    except OSError as error:
        raise folder_error(results, error) from error


class HeldFolder:
    """A results folder that this process holds, or a results folder that can only be read."""

    def __init__(self, path: Path, obstacle: OSError | None = None) -> None:
        """`obstacle` is why nothing can be written into the folder. None: the folder can be written."""
        self.path = path
        self._obstacle = obstacle

    def require_writable(self) -> None:
        """Raise `UserError` if nothing can be written into the folder."""
        if self._obstacle is not None:
            raise _unwritable(self.path, self._obstacle) from self._obstacle


@contextmanager
def locked(results: Path) -> Iterator[HeldFolder]:
    """Hold a results folder for this process alone. A missing folder is made.

    A read-only folder is not held, because no run can change such a folder. The finished runs of such a folder can
    still be shown.

    Raises:
        UserError: the folder cannot be made, or another process holds it.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(results, error) from error
    try:
        lock = _opened(results)
    except OSError as error:
        yield HeldFolder(results, error)
        return
    try:
        with _flock(results, lock):
            remove_left_over(results)
            yield HeldFolder(results)
    finally:
        os.close(lock)


def remove_left_over(results: Path) -> None:
    """Remove the half-written files of processes that have ended: in the folder, in `learned` and in `earlier`."""
    sweep_unfinished(results)
    for parent in (results / LEARNED, results / EARLIER):
        with suppress(OSError):
            for folder in parent.iterdir():
                sweep_unfinished(folder)


def _opened(results: Path) -> int:
    """The lock's file, opened; a link is not followed, so that no other file is written."""
    path = results / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise _foreign(path) from error
        raise
    if not stat.S_ISREG(os.fstat(lock).st_mode):
        os.close(lock)
        raise _foreign(path)
    return lock


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} is not a lock that this command made: it is a link, a folder or a device, and would be written into. "
        f"Remove it: rm -r {for_shell(str(path))}"
    )


@contextmanager
def _flock(results: Path, lock: int) -> Iterator[None]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            with _soft_lock(results, error):
                yield
            return
        if error.errno in HELD:
            raise _in_use(results, lock) from error
        raise UserError(f"results folder {results}: cannot be locked ({error.strerror})") from error
    with suppress(OSError):  # the disk may be full; the process id is only for a message
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    try:
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(lock, 0)  # so that no later message names this process


def _in_use(results: Path, lock: int) -> UserError:
    pid, _, host = os.pread(lock, 300, 0).decode("utf-8", "replace").strip().partition(" ")
    here = not host or host == socket.gethostname()
    holder = f"process {pid}" if pid.isdigit() else "another process"
    return UserError(
        f"results folder {results} is in use by {holder}{'' if here else f' on {host}'}; wait for it, or choose "
        "another --results folder"
    )


@contextmanager
def _soft_lock(results: Path, reason: OSError) -> Iterator[None]:
    """A lock for file systems without `flock`."""
    from filelock import SoftFileLock, Timeout

    path = results / SOFT_LOCK
    lock = SoftFileLock(path, timeout=0)
    _remove_if_left_unfinished(path)
    try:
        lock.acquire()
    except Timeout as error:
        pid, host = lock.pid, _host_of(path)
        where = f" on {host}" if host and host != socket.gethostname() else ""
        holder = f"process {pid}{where}" if pid else "another process"
        raise UserError(
            f"results folder {results} is in use by {holder}; wait for it, or choose another --results folder. The "
            f"file system has no locks ({reason.strerror}), so a file stands for one: if that process is no more, "
            f"remove the file: rm {for_shell(str(path))}"
        ) from error
    except OSError as error:
        raise UserError(
            f"results folder {results}: its file system has no locks ({reason.strerror}), and a file cannot stand for "
            f"one ({error.strerror or error}). Put the results on another file system"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def _remove_if_left_unfinished(path: Path) -> None:
    """Remove a soft lock whose process was killed after it made the file and before the process had written its number
    and its machine."""
    patience = time.monotonic() + UNFINISHED_SECONDS
    with suppress(OSError):
        made = os.lstat(path)
        while stat.S_ISREG(made.st_mode) and _is_unfinished(read_bytes(path)):
            if time.monotonic() > patience:
                path.unlink()
                return
            time.sleep(0.05)
            if os.lstat(path).st_ino != made.st_ino:
                return


def _is_unfinished(text: bytes) -> bool:
    """Whether a soft lock lacks the lines of its process and machine, or the end of its last line."""
    return text.count(b"\n") < 2 or not text.endswith(b"\n")


def _host_of(path: Path) -> str:
    """The second line of a soft lock: the machine of the process that made it."""
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return lines[1].strip() if len(lines) > 1 else ""


def _unwritable(results: Path, error: Exception) -> UserError:
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return UserError(f"results folder {results}: cannot be written ({reason}); choose another with --results")
