"""The files of the models and adapters behind a run.

The record has the hash of each file, so a refusal names the changed files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import hash_files
from lora_retriever.methods import Method
from lora_retriever.methods.code import changes

FOLDERS_NAMED = 5
"""Maximum number of folders whose changed files a message names."""


def file_hashes(profile: Profile, benchmark: Benchmark, method: Method) -> dict[str, dict[str, str]]:
    """The SHA-256 of each file that counts, by the file's name, of the folders that decide a method's answers.

    The folders are named as in a configuration: `base`, `encoder`, `adapters.NAME`.
    """
    return {name: hash_files(folder) for name, folder in _folders(profile, benchmark, method).items()}


def changed_inputs(record: Mapping[str, Any], profile: Profile, benchmark: Benchmark, method: Method) -> list[str]:
    """The files of models and adapters that differ from the files in a record, one line for each folder."""
    found = record.get("file_hashes")
    recorded = found if isinstance(found, dict) else {}
    lines = []
    for name, folder in _folders(profile, benchmark, method).items():
        before = recorded.get(name)
        try:
            differing = changes(before, hash_files(folder)) if isinstance(before, dict) else []
        except UserError:  # the folder cannot be read; the hashes of the configurations differ without this line, too
            continue
        if differing:
            lines.append(f"{name}: {', '.join(str(folder / file) for file in differing)}")
    more = len(lines) - FOLDERS_NAMED
    return lines[:FOLDERS_NAMED] + ([f"{more} more folders"] if more > 0 else [])


def _folders(profile: Profile, benchmark: Benchmark, method: Method) -> dict[str, Path]:
    folders = {"base": benchmark.base}
    if benchmark.encoder is not None and method.needs_encoder(profile):
        folders |= {"encoder": benchmark.encoder}
    if "adapters" in method.reads:
        folders |= {f"adapters.{name}": folder for name, folder in benchmark.adapters.items()}
    return folders
