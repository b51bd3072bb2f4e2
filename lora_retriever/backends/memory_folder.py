"""A folder for files that live shortly: in memory where there is room for them, and never left behind for long.

What is left in memory after a crash would be lost to the machine until its next start. So every folder is locked by
the process that made it; the lock goes with the process, however it ends, and the next process removes what it finds
unlocked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")  # Linux's memory-backed file system; elsewhere there is none under this name
PREFIX = ".lora-retriever-compositions-"  # a name that nobody else gives: what is unlocked under it is removed


class MemoryFolder:
    """A new, empty folder, this process's own until it is closed.

    Attributes:
        path: where it is.
    """

    def __init__(self, room: int) -> None:
        """`room` is how many bytes it must be able to hold; with less memory left it is on disk."""
        disk = Path(tempfile.gettempdir())
        places = [MEMORY, disk] if os.access(MEMORY, os.W_OK | os.X_OK) else [disk]
        for place in places:
            remove_abandoned(place)
        roomy = (place for place in places if shutil.disk_usage(place).free >= room)
        self.path, lock = _locked_folder(next(roomy, disk))
        self._lock: int | None = lock

    def close(self) -> None:
        """Remove the folder with all that is in it. Closing it again does nothing."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def remove_abandoned(place: Path) -> None:
    """Remove the folders in `place` that belong to no living process; those of other users are left alone."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process took it for abandoned before it was locked
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():
            return path, lock
        os.close(lock)
