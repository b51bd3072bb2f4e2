"""One run's file: appended to while it runs, put in order when done, never mixed with another configuration's.

`NAME.jsonl.partial` grows batch by batch, each fsynced; `NAME.meta.json`, written first, says what the run is. When
every row is there, the file takes the rows' order and its name `NAME.jsonl` in one atomic step. All state is in these
files: whatever stopped a run, the next start reads them and goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.files import write_json, write_text

Line = dict[str, Any]


class RunFile:
    """The answers of one run, on disk."""

    def __init__(self, results: Path, name: str, configuration: dict[str, Any]) -> None:
        """Open a run, new or begun.

        Raises:
            UserError: the folder holds a run of this name with another configuration.
        """
        self.name = name
        self.path = results / f"{name}.jsonl"
        self.partial = results / f"{name}.jsonl.partial"
        self.meta_path = results / f"{name}.meta.json"
        self.configuration = configuration
        self._remove = f"rm {results / name}.jsonl* {self.meta_path}"
        self.recorded = self._read_meta()  # by an earlier start
        self._finished = self.recorded.get("finished", False)
        self.lines = read_lines(results, name)

    def is_finished(self, ids: Sequence[int]) -> bool:
        """Whether all of `ids` are answered, and the file and its record have their final form."""
        return self._finished and self.path.exists() and not self.partial.exists() and not self.missing(ids)

    def missing(self, ids: Sequence[int]) -> list[int]:
        """Those of `ids` that have no answer yet, in their order."""
        return [id for id in ids if id not in self.lines]

    def append(self, lines: Sequence[Line]) -> None:
        """Add answered rows; they are on disk when this returns."""
        if self.path.exists():  # a finished file that lacks rows: it becomes a partial one again
            os.replace(self.path, self.partial)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with self.partial.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.lines.update({line["id"]: line for line in lines})

    def begin(self, meta: dict[str, Any]) -> None:
        """Record what the run is before its first row, and mend what an interruption left half-written."""
        write_json(self.meta_path, self._meta(meta))
        broken = self.partial if self.partial.exists() else self.path
        if broken.exists():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines.values())
            if broken.read_text(encoding="utf-8", errors="replace") != text:
                write_text(broken, text)

    def finish(self, ids: Sequence[int], meta: dict[str, Any]) -> None:
        """Put the rows in the order of `ids` under the run's name; rows without an answer are left out."""
        ordered = [self.lines[id] for id in ids if id in self.lines]
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered))
        self.partial.unlink(missing_ok=True)
        write_json(self.meta_path, self._meta(meta))

    def _meta(self, meta: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()
        return {"run": self.name, "configuration_hash": digest, "configuration": self.configuration, **meta}

    def _read_meta(self) -> dict[str, Any]:
        """The record of an earlier start, empty if there was none."""
        if not self.meta_path.exists():
            begun = [path for path in (self.path, self.partial) if path.exists()]
            if begun:
                raise UserError(
                    f"{begun[0]} has no {self.meta_path.name} beside it, so nobody can tell what made it; "
                    "move it away, or choose another --results folder"
                )
            return {}
        try:
            meta: dict[str, Any] = json.loads(self.meta_path.read_text(encoding="utf-8"))
            differing = differences(meta["configuration"], self.configuration)
        except (OSError, json.JSONDecodeError, KeyError) as error:
            raise UserError(f"{self.meta_path}: not readable ({error}); start this run anew: {self._remove}") from error
        if differing:
            raise UserError(
                f"{self.path} was made with another configuration: {'; '.join(differing)}. "
                f"Choose another --results folder, or start this run anew: {self._remove}"
            )
        return meta


def read_lines(results: Path, name: str) -> dict[int, Line]:
    """The rows of a run on disk by id. A half-written last line, and whatever is not a row, counts as not there."""
    partial = results / f"{name}.jsonl.partial"
    source = partial if partial.exists() else results / f"{name}.jsonl"
    if not source.exists():
        return {}
    lines = {}
    content = source.read_text(encoding="utf-8", errors="replace")
    for text in content.split("\n"):  # not splitlines: an answer may hold U+2028
        try:
            line = json.loads(text)
            lines[line["id"]] = line
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return lines


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two configurations, one `field: old → new` each."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {_short(before)} → {_short(after)}")
    return found


@contextmanager
def locked(results: Path) -> Iterator[None]:
    """Hold a results folder for this process alone; the lock goes with the process, however it ends.

    Raises:
        UserError: the folder cannot be written, or another process holds it.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        lock = (results / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"results folder {results}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise UserError(
                f"results folder {results} is in use by process {lock.read().strip() or 'unknown'}; "
                "wait for it, or choose another --results folder"
            ) from error
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk under {results} is full; the rows written so far are safe. "
                "Free space and start again: it goes on"
            ) from error


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"
