"""Files that are never half-written, hashes of files, and names that stay in their folder."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.escaping import as_json

MAX_NAME_BYTES = 255
"""Maximum length of the name of a file or folder, in bytes, on the usual file systems."""
MAX_LINKS = 40
"""Maximum number of symbolic links that are followed from one path, as in Linux."""
UNFINISHED = ".unfinished"
"""The end of the name of a file or folder that is being written."""
FOREIGN_SECONDS = 24 * 3600
"""Age after which an unfinished file or folder of another machine counts as left over, in seconds."""
DISK_ERRORS = {
    errno.ENOSPC: "the disk under {} is full",
    errno.EDQUOT: "the disk quota under {} is used up",
    errno.EROFS: "the file system of {} is read-only",
    errno.EIO: "the disk under {} failed, or the connection to it",
    errno.ESTALE: "the file server has lost {}",
    errno.ENXIO: "the device under {} is gone",
    errno.ENODEV: "the device under {} is gone",
    errno.EFBIG: "the file system of {} takes no larger file",
    errno.ENOTCONN: "the connection to the disk under {} is lost",
    errno.ETIMEDOUT: "the file server of {} does not answer",
    errno.EHOSTDOWN: "the file server of {} does not answer",
}
"""Errors of a file system as a whole, whichever file an error names."""

WITHOUT_EFFECT = (
    "README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.md", "*.png", "*.jpg", "*.jpeg", "*.svg", "*.gif",
    "*.pdf", "*.log", "*.pyc", "events.out.tfevents.*", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt",
    "rng_state*.pth", "trainer_state.json", "training_args.bin", "all_results.json", "train_results.json",
    "eval_results.json", "losses.csv",
)  # fmt: skip
"""Files in the folder of a model or an adapter that compute nothing; hidden files compute nothing either."""
FOLDERS_WITHOUT_EFFECT = ("runs", "checkpoint-*", "wandb", "__pycache__")
"""Folders in such a folder whose files compute nothing."""

HASHES_FILE = "hashes.jsonl"
SETTLED_SECONDS = 2
"""Time for which a file must not have changed before its hash is remembered: clocks of file systems are coarse."""
MAX_HASHES_BYTES = 4 << 20
"""Maximum size of the file of remembered hashes, in bytes. A larger file is begun anew."""

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_DESCRIPTOR = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d+)")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_SHA256 = re.compile("[0-9a-f]{64}")
_MACHINE = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:8]
_PROCESS = secrets.token_hex(4)
_WRITTEN_BY = re.compile(rf"\.(.*)\.([0-9a-f]{{8}})-(\d+)-([0-9a-f]{{8}})-\d+{re.escape(UNFINISHED)}", re.DOTALL)
_counter = itertools.count()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, as `write_bytes` does. Half of a surrogate pair becomes an escape of JSON."""
    write_text(path, as_json(content) + "\n")


def write_text(path: Path, text: str) -> None:
    r"""Write `text` in UTF-8, as `write_bytes` does. Half of a surrogate pair becomes the six characters `\ud83d`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` in one atomic step: a reader sees the old file or the new one, also after a crash.

    A symbolic link stays, and the file behind the link is written. A file keeps its mode, and its owner where this user
    may set it. Some files are written to without being replaced, and these writes are not atomic: a device, a pipe, an
    open file (`/dev/stdout`), a file in a folder that takes no new files, and a file on which another file system is
    mounted.

    Raises:
        OSError: the file cannot be written. `writing` makes a message of this error.
    """
    try:
        descriptor = _descriptor(path)
        if descriptor is not None:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # None: closed by the shell
                    stream.flush()
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            return
        target = Path(os.path.realpath(path))  # the path itself, or the file behind a link
        try:
            status = os.stat(path)
        except FileNotFoundError:
            status = None
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise OSError(errno.EINVAL, f"not a path: {error}") from error
    if status is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, data, None)
    elif not stat.S_ISREG(status.st_mode):
        _write_into(path, data)
    else:
        os.close(os.open(target, os.O_WRONLY))  # a file that may not be written must not be replaced either
        try:
            _replace(target, data, status)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV):
                raise
            _write_into(target, data)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives an unfinished folder to fill. At the end of the `with` block, this folder becomes the folder `out` in one
    atomic step.

    The folder that the context gives does not exist yet. After an error nothing is left. Unfinished folders that killed
    processes left beside `out` are removed when `out` is made again.

    Raises:
        OSError: a folder cannot be made, or `out` exists and is not empty.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() and any(out.iterdir()):
        raise OSError(errno.ENOTEMPTY, "the folder exists and is not empty; name a new folder", str(out))
    unfinished = _unfinished_beside(out)
    unfinished.mkdir()
    try:
        folder = unfinished / out.name
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_bytes(path: Path, at_most: int = -1) -> bytes:
    """The content of a regular file, or the first `at_most` bytes of it.

    Raises:
        OSError: the file cannot be read, or the path is a folder, a pipe, a socket or a device. Reading a pipe or a
            device might never end.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise OSError(errno.EINVAL, f"this is {kind}; name a file", str(path))
    with path.open("rb") as file:
        return file.read(at_most)


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names, in hexadecimal.

    Files of a folder that compute nothing do not count: hidden files, descriptions, pictures, and files that a training
    leaves beside its result (`WITHOUT_EFFECT`).

    A hash is remembered in the user's cache by the files' sizes, times of change and inodes (`HASHES_FILE`).

    Raises:
        UserError: there is no such file or folder, or it cannot be read.
    """
    with _reading(path):
        files = _files_that_count(path)
        state = _state_of(files)
        key = str(path.resolve())
        known = _remembered(key, state)
        if known is not None:
            return known
        digest = hashlib.sha256()
        for name, file in files.items():
            if file != path:
                digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
        if _state_of(files) == state:
            _remember(key, state, files.values(), digest.hexdigest())
        return digest.hexdigest()


def hash_files(path: Path) -> dict[str, str]:
    """SHA-256 of each file that counts for `hash_path`, by the file's name within the folder, in hexadecimal.

    Raises:
        UserError: as for `hash_path`.
    """
    with _reading(path):
        files = _files_that_count(path)
    return {name: hash_path(file) for name, file in files.items()}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make a message of every error of the file system while `path` is written.

    Raises:
        UserError: `path` cannot be written.
    """
    try:
        yield
    except BrokenPipeError:  # a reader such as `head` has read enough, which is no error
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def sweep_unfinished(folder: Path) -> list[Path]:
    """Remove the unfinished files and folders in `folder` that a process began to write. Return their paths.

    An unfinished file of another machine is removed when the file is older than `FOREIGN_SECONDS`, because this machine
    cannot see whether the process still runs. A file that cannot be listed or removed stays.
    """
    return _swept(folder, None)


def _swept(folder: Path, stem: str | None) -> list[Path]:
    """Remove the unfinished files of processes that have ended: all such files, or those with this stem in their
    names."""
    removed = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if _is_left_over(path, stem):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed.append(path)
    return removed


def is_location(text: str) -> bool:
    """Whether a name means a file or a folder, because the name begins with `.`, `/` or `~`.

    Other names are Hub ids.
    """
    return text.startswith((".", "/", "~"))


def safe_name(name: str, kind: str, may_have_folders: bool = False) -> str:
    """Return `name` if a file or folder of this name stays inside its folder.

    Args:
        kind: the kind of thing that has the name, for the message.
        may_have_folders: whether `a/b` is a name, as for adapters in folders of folders.

    Raises:
        UserError: the name is empty, `.` or `..`, absolute, has a `/` or a NUL, begins with `~`, is too long, or cannot
            be written in UTF-8.
    """
    reason = _unsafe(name, may_have_folders)
    if reason:
        shown = ascii(name if len(name) <= 60 else f"{name[:60]}…")
        raise UserError(f"{kind} {shown}: the name is part of a path, and {reason}; rename")
    return name


def cache_folder() -> Path:
    """The folder of this user's cache: `$LORA_RETRIEVER_CACHE`, or else `~/.cache/lora-retriever`.

    If the user has no home folder, no folder can be made at the path that is returned. Each cache then works without
    files, as on a disk that cannot be written.
    """
    try:
        return Path(os.environ.get("LORA_RETRIEVER_CACHE") or "~/.cache/lora-retriever").expanduser()
    except RuntimeError:
        return Path(os.devnull) / "no-home"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL, or half of a surrogate pair
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _files_that_count(path: Path) -> dict[str, Path]:
    """The files that `hash_path` reads, by their names within the folder, in the order of their paths.

    Raises:
        OSError: the path is no file and no folder.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return {path.name: path}
    if not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "neither a file nor a folder")
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if _counts(file, path)}


def _counts(file: Path, folder: Path) -> bool:
    *folders, name = file.relative_to(folder).parts
    if name.startswith(".") or any(fnmatchcase(name, pattern) for pattern in WITHOUT_EFFECT):
        return False
    if any(part.startswith(".") or _is_without_effect(part) for part in folders):
        return False
    return file.is_file()


def _is_without_effect(folder: str) -> bool:
    return any(fnmatchcase(folder, pattern) for pattern in FOLDERS_WITHOUT_EFFECT)


def _state_of(files: Mapping[str, Path]) -> str:
    """A hash of the facts that show a change of the files without reading the files."""
    digest = hashlib.sha256()
    for name, file in files.items():
        found = file.stat()
        state = (name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino)
        digest.update(repr(state).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _remembered(key: str, state: str) -> str | None:
    """The hash of this path, if the files have not changed since the hash was made."""
    try:
        file = cache_folder() / HASHES_FILE
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        known = _read_hashes(file, found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return None
    remembered_state, remembered_hash = known.get(key, ("", ""))
    return remembered_hash if remembered_state == state else None


@lru_cache(maxsize=1)
def _read_hashes(file: Path, size: int, changed: int) -> dict[str, tuple[str, str]]:
    """State and hash by path. Lines that another process is writing, or that are damaged, are ignored."""
    known: dict[str, tuple[str, str]] = {}
    if size > MAX_HASHES_BYTES:
        return known
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            path, state, digest = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if all(isinstance(value, str) for value in (path, state, digest)) and _SHA256.fullmatch(digest):
            known[path] = state, digest
    return known


def _remember(key: str, state: str, files: Iterable[Path], digest: str) -> None:
    """Add a hash to the file of hashes: one line in one write, so that several processes need no lock."""
    with suppress(OSError, ValueError):
        newest = max((max(found.st_mtime, found.st_ctime) for found in map(os.stat, files)), default=0)
        if time.time() - newest < SETTLED_SECONDS:
            return
        file = cache_folder() / HASHES_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > MAX_HASHES_BYTES:
            file.unlink()
        line = json.dumps([key, state, digest]) + "\n"
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as opened:
            opened.write(line.encode("ascii"))


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path means:

    1 for `/dev/stdout` and for links to `/dev/stdout`. None: no open file.
    """
    current = str(path)
    for _ in range(MAX_LINKS):
        if current in _STANDARD:
            return _STANDARD[current]
        match = _DESCRIPTOR.fullmatch(current)
        if match:
            return int(match.group(1))
        if not os.path.islink(current):
            return None
        current = os.path.join(os.path.dirname(current), os.readlink(current))
    return None


def _replace(target: Path, data: bytes, status: os.stat_result | None) -> None:
    """Write a file beside `target`, and rename the file. `status` is the status of the file that `target` is now."""
    unfinished = _unfinished_beside(target)
    try:
        # Not mkstemp: its mode is 600, and a new file has the mode of the umask.
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if status is not None:
                _take_over(file.fileno(), status)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished_beside(target: Path) -> Path:
    """A path beside `target` with the number of this process. Unfinished files that killed processes left beside
    `target` are removed."""
    stem = target.name if len(os.fsencode(target.name)) <= 180 else hashlib.sha256(os.fsencode(target)).hexdigest()
    _swept(target.parent, stem)
    return target.with_name(f".{stem}.{_MACHINE}-{os.getpid()}-{_PROCESS}-{next(_counter)}{UNFINISHED}")


def _take_over(descriptor: int, status: os.stat_result) -> None:
    """Give a new file the group, owner and mode of the file that it replaces, as far as this user may."""
    made = os.fstat(descriptor)
    for user, group in ((-1, status.st_gid), (status.st_uid, -1)):
        if (group not in (-1, made.st_gid)) or (user not in (-1, made.st_uid)):
            with suppress(OSError):
                os.fchown(descriptor, user, group)
    with suppress(OSError):  # after fchown, which clears the bits of set-user-ID
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


def _write_into(path: Path, data: bytes) -> None:
    """Write into a device, a pipe or a file, which is not replaced. A pipe that no process reads is an error."""
    if stat.S_ISBLK(os.stat(path).st_mode):
        raise OSError(errno.EPERM, "it is a disk")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_TRUNC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "no process reads from this pipe") from error
        raise
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _is_left_over(path: Path, stem: str | None) -> bool:
    """Whether a file or folder is unfinished and its process has ended. None: of any stem."""
    match = _WRITTEN_BY.fullmatch(path.name)
    if match is None or stem not in (None, match[1]) or path.is_symlink():
        return False
    if not (path.is_file() or path.is_dir()):
        return False
    machine, process, start = match.groups()[1:]
    if machine != _MACHINE:
        return time.time() - path.stat().st_mtime > FOREIGN_SECONDS
    if int(process) == os.getpid():
        return start != _PROCESS  # containers give every process the same number
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _unsafe(name: str, may_have_folders: bool) -> str | None:
    """Why a name is unsafe in a path. None: the name is safe."""
    parts = name.split("/")
    try:
        longest = max(len(part.encode("utf-8")) for part in parts)
    except UnicodeEncodeError:
        return "has half of a surrogate pair"
    if not name.strip():
        return "is empty"
    if "\0" in name:
        return "has a NUL character"
    if name.startswith("~"):
        return "begins with ~"
    if len(parts) > 1 and not may_have_folders:
        return "has a /"
    if any(part in ("", ".", "..") for part in parts):
        return "would leave its folder"
    if longest > MAX_NAME_BYTES:
        return f"has more than {MAX_NAME_BYTES} bytes"
    return None
