"""Adapters that clients add and remove, and the file that keeps these changes over a restart.

The file `pool-changes.json` lies in the folder `serve.adapters` of the profile. A change is made as a whole or not at
all: the adapter is verified and loaded, then added to the index, then written to the file. After an error, the steps
before are undone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from lora_retriever.data.rows import PoolEntry
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.checks import benchmark_problems
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import read_bytes, safe_name, write_json
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.schemas import NewAdapter
from lora_retriever.serving.service import Service
from lora_retriever.settings import problems_of
from peft_composition import AdapterError, inspect_adapter

FILE = "pool-changes.json"
LOCK = ".pool-changes.lock"
UNFIT = frozenset(":+\n")
"""Characters that a composition has between names, or that no path of the server has."""


@dataclass(frozen=True)
class Changes:
    """The differences from the profile's pool.

    Attributes:
        added: adapters that the profile's pool does not have.
        folders: the folder of each added adapter.
        removed: names of the pool's adapters that were removed.
    """

    added: tuple[PoolEntry, ...] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def applied(self, pool: Sequence[PoolEntry]) -> list[PoolEntry]:
        """The pool with the changes."""
        added = {entry.model_name for entry in self.added}
        return [e for e in pool if e.model_name not in self.removed | added] + list(self.added)

    def with_adapter(self, entry: PoolEntry, folder: Path) -> Changes:
        """The changes with one more adapter."""
        return replace(self, added=(*self.added, entry), folders={**self.folders, entry.model_name: folder})

    def without_adapter(self, name: str) -> Changes:
        """The changes after an adapter is removed: an added adapter, or an adapter of the pool."""
        kept = tuple(entry for entry in self.added if entry.model_name != name)
        folders = {n: folder for n, folder in self.folders.items() if n != name}
        return Changes(kept, folders, self.removed | {name})


def root_of(profile: Profile) -> Path | None:
    """The folder below which added adapters lie. None: the profile names no such folder.

    Raises:
        UserError: the location is no folder.
    """
    if profile.serve.adapters is None:
        return None
    root = profile.local_path(profile.serve.adapters)
    if root is None or not root.is_dir():
        raise UserError(f"profile {profile.name}: serve.adapters: no folder {profile.serve.adapters}")
    return root.resolve()


def read_changes(profile: Profile) -> Changes:
    """The changes that were made by clients of earlier servers. None were made if the file is not there.

    Raises:
        UserError: the file is damaged, or an added adapter's folder is gone.
    """
    root = root_of(profile)
    if root is None or not (root / FILE).exists():
        return Changes()
    path = root / FILE
    try:
        content = json.loads(read_bytes(path))
        added = tuple(PoolEntry.model_validate(entry["entry"]) for entry in content["added"])
        folders = {
            entry.model_name: _below(root, written["folder"])
            for entry, written in zip(added, content["added"], strict=True)
        }
        removed = frozenset(map(str, content["removed"]))
    except (ValueError, KeyError, TypeError, ApiError) as error:
        raise UserError(f"{path}: is damaged ({error}); set it right, or remove it to begin with the pool") from error
    return Changes(added, folders, removed)


class Changing:
    """Adds adapters to a service and removes adapters, one change at a time."""

    def __init__(self, service: Service) -> None:
        """Take over the changes that were made before.

        Raises:
            UserError: the profile has no `serve.adapters`, or another server changes this folder.
        """
        root = root_of(service.profile)
        if root is None:
            raise UserError(
                f"profile {service.profile.name}: serve.adapters is missing: the folder below which clients may add "
                "adapters"
            )
        self._service = service
        self._root = root
        self._held = FileLock(root / LOCK)  # held until this process ends
        try:
            self._held.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{root}: another server changes this folder; end it, or use another folder") from error
        self._changes = read_changes(service.profile)
        self._lock = Lock()

    def add(self, new: NewAdapter) -> tuple[PoolEntry, tuple[str, ...]]:
        """Verify, load and find an adapter.

        Returns:
            The adapter's entry, and the notes of `inspect_adapter` on the adapter, one sentence each.

        Raises:
            ApiError: the adapter cannot be added. Nothing has changed.
        """
        with self._lock:
            entry = self._checked(new)
            folder = _below(self._root, new.folder or new.name)
            name, service = entry.model_name, self._service
            try:
                notes = inspect_adapter(folder, name, service.adapters.base).notes
                service.load_adapter(name, folder)
            except AdapterError as error:
                raise ApiError(400, str(error), "folder", "adapter_unusable") from error
            try:
                service.pool.add(entry)
                try:
                    self._write(self._changes.with_adapter(entry, folder))
                except BaseException:
                    service.pool.remove(name)
                    raise
            except BaseException as error:
                service.unload_adapter(name)
                if isinstance(error, ValueError | UserError):
                    raise ApiError(400, str(error), "samples") from error
                if isinstance(error, OSError):
                    reason = f"{FILE} cannot be written ({error.strerror or error}); nothing was changed"
                    raise ApiError(500, reason) from error
                raise
            return entry, notes

    def remove(self, name: str) -> None:
        """Remove an adapter from the pool.

        The adapter is unloaded when the last request that uses the adapter has ended.
        Raises:
            ApiError: there is no such adapter, or the change cannot be kept. Nothing has changed.
        """
        with self._lock:
            service = self._service
            if name not in service.pool.current.entries:
                raise ApiError(404, f"no adapter {quoted(name)}", code="adapter_not_found")
            try:
                self._write(self._changes.without_adapter(name))
            except OSError as error:
                reason = f"{FILE} cannot be written ({error.strerror or error}); nothing was changed"
                raise ApiError(500, reason) from error
            service.pool.remove(name)
            service.unload_adapter(name)

    def _checked(self, new: NewAdapter) -> PoolEntry:
        """The adapter as an entry of the pool, with a name that can be told apart from all others."""
        service = self._service
        try:
            safe_name(new.name, "adapter")
            entry = PoolEntry(model_name=new.name, domain=new.domain, sample=tuple(new.samples))
        except ValidationError as error:
            raise ApiError(400, "; ".join(problems_of(error, "`", "an adapter")), "name") from error
        except UserError as error:
            raise ApiError(400, f"`name`: {error}", "name") from error
        name = entry.model_name
        if name in service.methods or set(name) & UNFIT:
            reason = "is a method's name, or has `:`, `+` or a line end in it"
            raise ApiError(400, f"`name`: {quoted(name)} {reason}", "name")
        if name in service.pool.current.entries:
            raise ApiError(409, f"`name`: the pool has an adapter {quoted(name)} already; remove it first", "name")
        if service.is_leaving(name):
            raise ApiError(409, f"`name`: requests still use the removed adapter {quoted(name)}; try again", "name")
        problems = benchmark_problems(service.profile, [], [*service.pool.current.entries.values(), entry])
        if problems:
            raise ApiError(400, f"`name`: {problems[0]}", "name")
        return entry

    def _write(self, changes: Changes) -> None:
        content: dict[str, Any] = {
            "added": [
                {
                    "folder": str(changes.folders[entry.model_name].relative_to(self._root)),
                    "entry": entry.model_dump(mode="json"),
                }
                for entry in changes.added
            ],
            "removed": sorted(changes.removed),
        }
        write_json(self._root / FILE, content)
        self._changes = changes


def _below(root: Path, folder: str) -> Path:
    """A folder below the root, links resolved.

    Raises:
        ApiError: the folder is not below the root, or not there.
    """
    try:
        path = (root / folder).resolve()
        found = path.is_relative_to(root) and path != root and path.is_dir()
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        raise ApiError(400, f"`folder`: no folder {quoted(folder)} below the server's folder of adapters", "folder")
    return path
