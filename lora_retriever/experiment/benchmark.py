"""The files that a profile names: rows, pool and model folders, read or found, with the hashes that identify them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_retriever.data.drawing import draw_pool, hash_entries
from lora_retriever.data.rows import PoolEntry, Row, limited, read_pool, read_rows
from lora_retriever.data.sources import hash_source
from lora_retriever.errors import UserError
from lora_retriever.experiment.checks import benchmark_problems, benchmark_warnings
from lora_retriever.experiment.profile import ADAPTER, Profile
from lora_retriever.files import hash_path
from lora_retriever.generation.prompt import files_wanted
from lora_retriever.hub import ENCODER_WANTED, WANTED, fetch
from lora_retriever.own_objects import source_hash
from lora_retriever.retrieval.own import find_encoder

if TYPE_CHECKING:
    from lora_retriever.generation.loading import ModelSource

MAX_LISTED = 50
"""Maximum number of problems that one message lists."""


@dataclass(frozen=True)
class Benchmark:
    """The rows, the pool and the models of a profile, the same for all of the profile's methods.

    Attributes:
        limit: number of rows kept per task. None: all rows.
        base: the folder of the base model.
        encoder: the folder of the encoder. None: no encoder is used, or an encoder of a user's own.
        adapters: the folder of each adapter, by the adapter's name.
        hashes: SHA-256 of `rows`, `pool`, `base`, of each adapter in `adapters`, and of the `encoder` if an encoder is
            used. The hash of a user's own encoder is its source file's. The hash of a drawn pool is its content's.
        warnings: findings about rows and pool that do not stop a run, one line each.
    """

    rows: list[Row]
    limit: int | None
    pool: list[PoolEntry]
    base: Path
    encoder: Path | None
    adapters: dict[str, Path]
    hashes: dict[str, Any]
    warnings: tuple[str, ...] = ()


def open_benchmark(profile: Profile, limit: int | None, uses_encoder: bool = True) -> Benchmark:
    """Read the rows and the pool, find or fetch the models, and hash all of them.

    All rows are checked, also the rows that `limit` leaves out.

    Args:
        uses_encoder: whether embeddings are needed. If embeddings are not needed, the profile's encoder is neither
            fetched nor looked for.

    Raises:
        UserError: something is missing or malformed. The message names everything that is inconsistent in rows and
            pool, or all missing adapters.
    """
    notes: list[str] = []
    rows = read_rows(profile.rows_source, notes=notes)
    pool = pool_of(profile, rows, notes)
    problems = benchmark_problems(profile, rows, pool)
    if problems:
        raise UserError(_listed(f"profile {profile.name}: the benchmark is inconsistent", problems))
    wanted = files_wanted(profile.generation.template)
    base = folder_of(profile, profile.base.location, profile.base.revision, wanted)
    encoder, encoder_hash = find_encoder_of(profile) if uses_encoder else (None, {})
    adapters = folders_of_adapters(profile, pool)
    hashes = {
        "rows": hash_source(profile.rows_source),
        "pool": hash_source(profile.pool_source) if isinstance(profile.data.pool, str) else hash_entries(pool),
        "base": hash_path(base),
        **encoder_hash,
        "adapters": {name: hash_path(folder) for name, folder in adapters.items()},
    }
    warnings = (*notes, *benchmark_warnings(profile, rows, pool))
    kept = rows if limit is None else limited(rows, limit)
    return Benchmark(kept, limit, pool, base, encoder, adapters, hashes, warnings)


def pool_of(profile: Profile, rows: Sequence[Row], notes: list[str]) -> list[PoolEntry]:
    """The pool of a profile: read, or drawn from training data without the inputs of the `rows`.

    Args:
        notes: a list to which a line is added for each finding about a draw.

    Raises:
        UserError: the pool is unusable (`read_pool`), or nothing can be drawn for a task.
    """
    entries, pool = read_pool(profile.pool_source), profile.data.pool
    if isinstance(pool, str):
        return entries
    return draw_pool(entries, rows, pool.samples, pool.seed, str(profile.pool_path), notes)


def find_encoder_of(profile: Profile) -> tuple[Path | None, dict[str, str | None]]:
    """The folder of the profile's encoder, and the encoder's hash. A user's own encoder is loaded and has no folder.

    Raises:
        UserError: the encoder cannot be found or loaded.
    """
    section = profile.encoder
    if section is None:
        return None, {}
    if section.is_own:
        find_encoder(section.location, profile.folder)
        return None, {"encoder": source_hash(section.location)}
    folder = folder_of(profile, section.location, section.revision, ENCODER_WANTED)
    return folder, {"encoder": hash_path(folder)}


def folder_of(profile: Profile, location: str, revision: str | None, wanted: Sequence[str] = WANTED) -> Path:
    """The folder that a profile's location means. A Hub id is fetched from the Hub or found in the Hub's cache.

    Raises:
        UserError: the folder does not exist, or the Hub does not give the repository.
    """
    local = profile.local_path(location)
    if local is None:
        return fetch(location, revision, wanted)
    if not os.path.isdir(local):
        raise UserError(f"profile {profile.name}: no folder {local}")
    return local


def adapter_folder(profile: Profile, adapter: str) -> Path:
    """The folder of one adapter, fetched from the Hub if necessary.

    macOS writes names of folders in Unicode form NFD, so a folder of that form is found as well.

    Raises:
        UserError: as for `folder_of`.
    """
    decomposed = profile.local_path(profile.adapter_location(unicodedata.normalize("NFD", adapter)))
    location = profile.adapter_location(adapter)
    if decomposed is not None and os.path.isdir(decomposed) and not os.path.isdir(profile.local_path(location) or ""):
        return decomposed
    return folder_of(profile, location, profile.adapters.revision)


def folders_of_adapters(profile: Profile, pool: Sequence[PoolEntry]) -> dict[str, Path]:
    """The folder of each adapter of the pool.

    Raises:
        UserError: adapters are missing. The message names every missing adapter.
    """
    location = profile.adapters.location
    if len(pool) > 1 and ADAPTER not in location:
        raise UserError(
            f"profile {profile.name}: adapters.location: {location} has no {ADAPTER} in it, so all {len(pool)} "
            f"adapters of the pool would be the same; write {location.rstrip('/')}/{ADAPTER}"
        )
    folders, missing = {}, []
    for entry in pool:
        try:
            folders[entry.model_name] = adapter_folder(profile, entry.model_name)
        except UserError as error:
            missing.append(f"adapter {entry.model_name}: {error}")
    if missing:
        raise UserError(_listed(f"profile {profile.name}: adapters of the pool {profile.pool_path}", missing))
    return folders


def _listed(title: str, problems: Sequence[str]) -> str:
    """The text of one problem; or of several problems, a title and at most `MAX_LISTED` lines."""
    if len(problems) == 1:
        return problems[0]
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "\n".join([f"{title}: {len(problems)} problems", *problems[:MAX_LISTED], *more])


def model_source(profile: Profile, benchmark: Benchmark) -> ModelSource:
    """The base model and the adapters of a profile, ready to be loaded.

    Raises:
        UserError: the profile asks for a CUDA device, and torch finds none.
    """
    from lora_retriever.generation.loading import ModelSource

    return ModelSource(
        benchmark.base,
        benchmark.adapters,
        profile.generation,
        profile.dtype,
        profile.torch_device,
        profile.adapters.memory,
        profile.threads,
    )
