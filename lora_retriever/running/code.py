"""Which code made a run's answers: recorded in the run's record, and compared at every start.

The record `NAME.meta.json` has a field `code`:

    {"files": {"lora_retriever/methods/parts/top_k.py": SHA-256, …},   the source files that decide the run's answers
     "commit": …, "dirty": …,                                          only in a checkout with git
     "kept": [{"files": …, "commit": …, "dirty": …, "rows": n}, …]}    earlier code whose answers were kept on purpose

The hash of a run's configuration does not depend on the code.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_shell
from lora_retriever.experiment.profile import Profile
from lora_retriever.methods import Method
from lora_retriever.methods.code import GENERATION, RETRIEVAL, SEAMS, changes, hashes_of, part_hashes
from lora_retriever.own_objects import is_own
from lora_retriever.procedures import PLAIN, Procedure

ANSWERING = (
    *GENERATION,
    "lora_retriever/experiment/benchmark.py",
    "lora_retriever/running/answer_cache.py",
    "lora_retriever/running/answering.py",
    "lora_retriever/running/plan.py",
)
"""The code that every run uses, whatever its method. A name that ends in `/` is a folder."""
STAGING = ("lora_retriever/procedures/", "lora_retriever/running/stages.py")
"""The code that a run uses in addition if rows have procedures."""
BACKEND_FILES = {
    "local": ("local.py", "failures.py", "options.py"),
    "ray": ("local.py", "failures.py", "options.py", "ray.py", "ray_actors.py"),
    "vllm": ("vllm.py", "checkpoints.py", "memory_folder.py"),
}
"""The files of each backend, in the folder `backends`."""
FILES_NAMED = 5
"""Maximum number of changed files that a message names for a run."""
GIT_TIMEOUT = 5.0
"""Maximum time that git may take, in seconds."""

Hashes = dict[str, str]


def code_hashes(
    method: Method, profile: Profile | None = None, procedures: Mapping[str, Procedure] | None = None
) -> Hashes:
    """The SHA-256 of each source file that decides the answers of a method, by the file's name.

    These are the method's own file and the parts that this file imports, retrieval and scorers where the method uses
    them, the files of a user's own scorer and encoder, and `answering_hashes`. Files that cannot change an answer, such
    as the files of `report`, do not count.

    Args:
        profile: the profile of the run. None: the backend `local`, and no scorer and encoder of a user's own.
        procedures: the procedures of the run's rows, by name. None: all rows are plain.
    """
    parts = [part for part in (method.router, method.mode, method.gate) if not isinstance(part, str | None)]
    found = answering_hashes("local" if profile is None else profile.backend) | hashes_of(SEAMS)
    found |= part_hashes(parts, () if profile is None else _own_objects(method, profile))
    if "encoder" in method.reads or "scorer" in method.settings:
        found |= hashes_of([RETRIEVAL])
    used = {name: procedure for name, procedure in (procedures or {}).items() if name != PLAIN}
    if used:
        found |= hashes_of(STAGING) | part_hashes([procedure.talk for procedure in used.values()], filter(is_own, used))
    return dict(sorted(found.items()))


def _own_objects(method: Method, profile: Profile) -> list[str]:
    """The user's own scorer and encoder that a method uses, by `module:object`."""
    found = []
    if "scorer" in method.settings and is_own(profile.retrieval.scorer):
        found.append(profile.retrieval.scorer)
    if profile.encoder is not None and profile.encoder.is_own and method.needs_encoder(profile):
        found.append(profile.encoder.location)
    return found


def answering_hashes(backend: str = "local") -> Hashes:
    """The SHA-256 of the source files that make an answer of a prompt and a composition. All methods share them."""
    files = [f"lora_retriever/backends/{file}" for file in BACKEND_FILES[backend]]
    return hashes_of([*ANSWERING, *files])


@cache
def checkout_state() -> dict[str, Any]:
    """The commit of the checkout that the project runs from, and whether files differ from the commit.

    Empty where the project is installed, or git is absent or fails.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True, env=environment)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=normal", "--", "lora_retriever", "peft")
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {"commit": commit, "dirty": bool(changed)}


def code_record(hashes: Hashes, kept: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The field `code` of a record. `kept` lists the earlier code whose answers the user chose to keep."""
    return {"files": hashes, **checkout_state(), **({"kept": list(kept)} if kept else {})}


def recorded_code(record: Mapping[str, Any]) -> dict[str, Any]:
    """The field `code` of a record. If the record has no such field, or a damaged field, `files` is None."""
    code = record.get("code")
    known = isinstance(code, dict) and isinstance(code.get("files"), dict)
    return dict(code) if known and code else {"files": None}


def kept_codes(record: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """All earlier code of a run, after the `rows` answers of the latest code are kept on purpose."""
    code = recorded_code(record)
    earlier = code.pop("kept", [])
    return [*(earlier if isinstance(earlier, list) else []), {**code, "rows": rows}]


def changed_files(record: Mapping[str, Any], hashes: Hashes) -> list[str] | None:
    """The source files that changed since a run was answered. None: the record does not say which code made the run."""
    files = recorded_code(record)["files"]
    return None if files is None else changes(files, hashes)


def refuse_changed_code(results: Path, changed: Mapping[str, list[str] | None]) -> None:
    """Refuse to show the answers of other code as answers of this code.

    Args:
        changed: by the run's name, the source files that changed since the run was answered. None: not known.

    Raises:
        UserError: always. The message names the runs, the files, and the two options.
    """
    groups: dict[str, list[str]] = {}
    for name, files in changed.items():
        groups.setdefault(_in_words(files), []).append(name)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in groups.items()]
    raise UserError(
        "\n".join(
            [
                f"{len(changed)} runs in {results} were answered by other code than this, so they are not up to date:",
                *lines,
                "To answer these runs anew, give the same command with --answer-anew: their old files are moved to "
                f"{for_shell(str(results / 'earlier'))}. To keep their answers on purpose, give --keep-answers: their "
                "records will say so. Another --results folder leaves them as they are",
            ]
        )
    )


def _in_words(files: list[str] | None) -> str:
    if files is None:
        return "their records do not say which code made them (they were made by an earlier version)"
    more = f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
    return f"changed since: {', '.join(files[:FILES_NAMED])}{more}"
