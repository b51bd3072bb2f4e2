"""What a profile names: rows, pool and model folders, read or found, with the hashes that identify them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.files import hash_path
from lora_retriever.hub import ENCODER_WANTED, WANTED, fetch

if TYPE_CHECKING:
    from lora_retriever.generation.loading import ModelSource


@dataclass(frozen=True)
class Benchmark:
    """The rows, the pool and the models of a profile, the same for all of the profile's methods.

    Attributes:
        limit: number of rows kept per task. None: all rows.
        base: the folder of the base model.
        encoder: the folder of the encoder.
        adapters: the folder of each adapter, by the adapter's name.
        hashes: SHA-256 of `rows`, `pool`, `base`, `encoder` and of each adapter in `adapters`.
    """

    rows: list[Row]
    limit: int | None
    pool: list[PoolEntry]
    base: Path
    encoder: Path
    adapters: dict[str, Path]
    hashes: dict[str, Any]


def open_benchmark(profile: Profile, limit: int | None) -> Benchmark:
    """Read the rows and the pool, find or fetch the models, and hash all of them.

    Raises:
        UserError: something is missing or malformed. The message names it.
    """
    rows = read_rows(profile.rows_path, limit)
    pool = read_pool(profile.pool_path)
    base = folder_of(profile, profile.base.location, profile.base.revision)
    encoder = folder_of(profile, profile.encoder.location, profile.encoder.revision, ENCODER_WANTED)
    adapters = {
        entry.model_name: folder_of(profile, profile.adapter_location(entry.model_name), profile.adapters.revision)
        for entry in pool
    }
    hashes = {
        "rows": hash_path(profile.rows_path),
        "pool": hash_path(profile.pool_path),
        "base": hash_path(base),
        "encoder": hash_path(encoder),
        "adapters": {name: hash_path(folder) for name, folder in adapters.items()},
    }
    return Benchmark(rows, limit, pool, base, encoder, adapters, hashes)


def folder_of(profile: Profile, location: str, revision: str | None, wanted: Sequence[str] = WANTED) -> Path:
    """The folder that a profile's location means. A Hub id is fetched from the Hub or found in the Hub's cache.

    Raises:
        UserError: the folder does not exist, or the Hub does not give the repository.
    """
    local = profile.local_path(location)
    if local is None:
        return fetch(location, revision, wanted)
    if not local.is_dir():
        raise UserError(f"profile {profile.name}: no folder {local}")
    return local


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
