"""A folder for temporary files: in memory where there is room, and removed even after a crash.

Files left in memory after a crash would take that memory until the machine is started again. So every folder is locked
by the process that made it. The lock ends with the process, however the process ends, and the next process removes all
folders that are not locked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from lora_retriever.errors import UserError

MEMORY = Path("/dev/shm")
"""The file system in memory of Linux. Other systems have none of this name."""
PREFIX = ".lora-retriever-compositions-"
"""The beginning of the folders' names. Folders of such a name that are not locked are removed."""
ATTEMPTS = 100
"""Maximum number of attempts to make and lock a folder."""


class MemoryFolder:
    """A new, empty folder that belongs to this process until it is closed.

    Attributes:
        path: the folder.
    """

    def __init__(self, room: int) -> None:
        """Make the folder: in memory if at least `room` bytes are free there, else on disk."""
        disk = Path(tempfile.gettempdir())
        places = [MEMORY, disk] if os.access(MEMORY, os.W_OK | os.X_OK) else [disk]
        for place in places:
            remove_abandoned(place)
        roomy = (place for place in places if shutil.disk_usage(place).free >= room)
        self.path, lock = _locked_folder(next(roomy, disk))
        self._lock: int | None = lock

    def close(self) -> None:
        """Remove the folder and its files. Closing the folder again does nothing."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def remove_abandoned(place: Path) -> None:
    """Remove the folders in `place` that belong to no living process. Folders of other users stay."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # a living process holds the folder, or the file system has no locks
            pass
        finally:
            os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process removed the folder before it was locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is removing the folder
            os.close(lock)
            continue
        except OSError:  # the file system has no locks, so no process can remove the folder by mistake
            return path, lock
        if path.is_dir():
            return path, lock
        os.close(lock)
    raise UserError(f"no folder can be made and locked in {place}; another program removes folders there")
