"""Files that are never half-written, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError

MAX_NAME_BYTES = 255
"""Maximum length of the name of a file or folder, in bytes, on the usual file systems."""


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON in one atomic step."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` in one atomic step, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` in one atomic step: a reader sees the old file or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names (hidden ones left out), in hexadecimal."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file, path))
    for file in files:
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _counts(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def is_location(text: str) -> bool:
    """Whether a name means a file or a folder: it begins with `.`, `/` or `~`. Other names are Hub ids."""
    return text.startswith((".", "/", "~"))


def safe_name(name: str, kind: str, may_have_folders: bool = False) -> str:
    """Return `name` if a file or folder of this name stays inside the folder that it belongs to.

    Args:
        kind: what the name is the name of, for the message.
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
