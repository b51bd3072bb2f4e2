"""Arrays that are computed once and then read from the cache: row statistics, intervals and tests of a table.

An array is kept under the SHA-256 of everything from which it was computed: data, source code and versions of
libraries. So a remembered array is the array that a new computation would give. The arrays lie in `remembered/` of the
user's cache (`cache_folder`), a file each. The cache never stops a command: where a file cannot be read or written, the
array is computed.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_retriever.files import cache_folder, write_bytes

Array = NDArray[np.float64]

MAX_FILES = 2000
"""Maximum number of remembered files. When there are more, the half that was not used for longest is removed."""
PACKAGE = Path(__file__).parent


def remembered(parts: Iterable[bytes | str], compute: Callable[[], list[Array]]) -> list[Array]:
    """The arrays of `compute`, which are read from the cache if they were computed before.

    Args:
        parts: everything that decides the arrays: texts, bytes of arrays, `code_of` the source files.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    try:
        file = cache_folder() / "remembered" / f"{digest.hexdigest()}.npz"
        found = _read(file)
    except OSError:  # no home folder, no permission
        return compute()
    if found is not None:
        return found
    arrays = compute()
    with suppress(OSError):
        buffer = io.BytesIO()
        np.savez(buffer, *arrays)
        write_bytes(file, buffer.getvalue())
        _remove_oldest(file.parent)
    return arrays


def code_of(*modules: str, packages: Iterable[str] = ()) -> str:
    """A text that changes when the source of these modules or folders of the project changes, or a package's version.

    Args:
        modules: paths within the project's package, such as `metrics` or `resampling.py`.
    """
    return _code_of(modules, tuple(packages))


@cache
def _code_of(modules: tuple[str, ...], packages: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        path = PACKAGE / module
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    for package in packages:
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}\0".encode())
    return digest.hexdigest()


def _read(file: Path) -> list[Array] | None:
    """The arrays of a file. None: there is no such file, or the file is damaged."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays: list[Any] = [content[f"arr_{index}"] for index in range(len(content.files))]
    except Exception:  # numpy and zipfile raise many kinds of errors for a damaged file
        return None
    with suppress(OSError):
        os.utime(file)
    return arrays


def _remove_oldest(folder: Path) -> None:
    files = list(folder.glob("*.npz"))
    if len(files) > MAX_FILES:
        for file in sorted(files, key=lambda file: file.stat().st_mtime)[: len(files) // 2]:
            file.unlink(missing_ok=True)
