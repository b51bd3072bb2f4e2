"""Bad inputs: a small benchmark that works, ways to spoil the benchmark, and the messages that commands must give.

The promises for each case: the exit status of the table (2 in nearly all cases), one message that names the mistake, no
traceback, no log of an unexpected error, no half-written file, and limited time and memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from campaign.world import TINY
from lora_retriever.experiment.profile import PROFILES

TASKS = ("people_qa", "movie_review", "to_velan", "passive")
MAX_MESSAGE = 6000
"""Maximum length of a command's output for a bad input, in characters."""
MAX_SECONDS = 60.0
"""Maximum time of a command with a bad input, in seconds."""
MAX_MEMORY = 1 << 30
"""Maximum memory that a command with a bad input may need beyond a command that only prints its version, in bytes."""
RUN = ("run", "--profile", "{b}/mine.yaml", "--results", "{b}/results", "--only", "best_selection")

Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        kind: the part that is spoilt: rows, pool, profile, and so on.
        spoil: spoils the benchmark in a folder.
        says: texts of which each must be in the message; `|` separates alternatives.
        command: the command's arguments; `{b}` stands for the folder.
        statuses: the exit statuses that are right.
        copies: folders of the miniature that are copied into the benchmark because the case spoils them: `base`,
            `encoder`.
    """

    kind: str
    name: str
    spoil: Spoil
    says: tuple[str, ...]
    command: tuple[str, ...] = RUN
    statuses: tuple[int, ...] = (2,)
    copies: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The case's name among all."""
        return f"{self.kind}: {self.name}"

    def arguments(self, folder: Path) -> list[str]:
        """The command's arguments for a benchmark in this folder."""
        return [part.replace("{b}", str(folder)) for part in self.command]


def make_benchmark(folder: Path, copies: Sequence[str] = ()) -> Path:
    """A benchmark of four tasks, two rows each, that works."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads((TINY / "test.json").read_text(encoding="utf-8"))
    pool = {entry["model_name"]: entry for entry in json.loads((TINY / "pool.json").read_text(encoding="utf-8"))}
    write_json(folder / "rows.json", [row for task in TASKS for row in [r for r in rows if r["task"] == task][:2]])
    write_json(folder / "pool.json", [pool[task] for task in TASKS])
    for task in TASKS:
        shutil.copytree(TINY / "adapters" / task, folder / "adapters" / task)
    for name in ("base", "encoder"):
        if name in copies:
            shutil.copytree(TINY / name, folder / name)
        else:
            (folder / name).symlink_to(TINY / name)
    content = yaml.safe_load((PROFILES / "tiny.yaml").read_text(encoding="utf-8"))
    content["base"]["location"] = "./base"
    content["encoder"]["location"] = "./encoder"
    content["adapters"]["location"] = "./adapters/{adapter}"
    content["data"] = {"rows": "rows.json", "pool": "pool.json"}
    content["options"] = {}
    content["generation"]["max_new_tokens"] = 4
    (folder / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def problems_of_output(case: Case, status: int, text: str) -> list[str]:
    """The problems of a command's exit status, and of everything that the command printed."""
    problems = [] if status in case.statuses else [f"exit status {status}, not {case.statuses}"]
    signs = ("Traceback", "unexpected error", "Exception ignored", "Segmentation fault", "Fatal Python error")
    problems += [f"the output has {sign!r}" for sign in signs if sign in text]
    flat = " ".join(text.split())
    for alternatives in case.says:
        if not any(" ".join(part.split()) in flat for part in alternatives.split("|")):
            problems.append(f"the message lacks {alternatives!r}")
    if len(text) > MAX_MESSAGE:
        problems.append(f"the output has {len(text)} characters")
    messages = text.count("\nlora-retriever: ") + text.startswith("lora-retriever: ")
    if status == 2 and messages != 1 and " error: " not in text and "problem" not in text:
        problems.append(f"{messages} messages")
    if "\x1b]" in text or "\x1b[2J" in text:
        problems.append("a terminal escape reached the output")
    return problems if not problems else [*problems, f"output: {text[-600:]}"]


def problems_of_files(case: Case, folder: Path, before: set[str]) -> list[str]:
    """The files that a command left although the command refused its input."""
    if 0 in case.statuses or 1 in case.statuses:
        return []
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - before
    allowed = {"results/.lock", "results/errors.log"}
    return [f"{name} was left behind" for name in sorted(made - allowed) if not name.startswith("cache/")]


def files_in(folder: Path) -> set[str]:
    """The names of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def write_json(path: Path, content: Any) -> None:
    """Write JSON; halves of surrogate pairs become escapes."""
    path.write_text(json.dumps(content), encoding="utf-8")


def put(name: str, content: str | bytes) -> Spoil:
    """Write a file anew."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return spoil


def put_json(name: str, content: Any) -> Spoil:
    """Write a file of JSON anew."""
    return put(name, json.dumps(content))


def change(name: str, edit: Callable[[Any], Any]) -> Spoil:
    """Change the content of a JSON file in place, or write what `edit` returns."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        edited = edit(content)
        write_json(folder / name, content if edited is None else edited)

    return spoil


def fields(name: str, *path: int | str, **changes: Any) -> Spoil:
    """Set fields of the object at a path in a JSON file."""

    def edit(content: Any) -> None:
        for part in path:
            content = content[part]
        content.update(changes)

    return change(name, edit)


def without(name: str, *path: int | str) -> Spoil:
    """Remove the value at a path in a JSON file."""

    def edit(content: Any) -> None:
        *first, last = path
        for part in first:
            content = content[part]
        del content[last]

    return change(name, edit)


def profile_with(**changes: Any) -> Spoil:
    """Change sections or fields of the profile: a dictionary changes the section's fields."""

    def spoil(folder: Path) -> None:
        path = folder / "mine.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in changes.items():
            content[name] = {**content[name], **value} if isinstance(value, dict) and name in content else value
        path.write_text(yaml.safe_dump(content), encoding="utf-8")

    return spoil


def replaced_by(name: str, kind: str) -> Spoil:
    """Put something else in the place of a file: a folder, a pipe, a link, or an unusable file."""

    def spoil(folder: Path) -> None:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "circle of links":
            path.symlink_to(path.name)
        elif kind == "dangling link":
            path.symlink_to(path.with_name("nothing here"))
        elif kind.startswith("/"):
            path.symlink_to(kind)
        elif kind != "nothing":
            raise ValueError(kind)

    return spoil


def together(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil
