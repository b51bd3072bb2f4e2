"""What a profile names, read and found: rows, pool, model folders, and the hashes by which a run knows them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_retriever.data import PoolEntry, Row, read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.files import hash_path
from lora_retriever.hub import ENCODER_WANTED, folder_of
from lora_retriever.methods import Method
from lora_retriever.profile import Profile
from lora_retriever.sweep import Variant


@dataclass(frozen=True)
class Benchmark:
    """The same for all methods of a profile. `limit` is the number of rows kept per task, None for all."""

    rows: list[Row]
    limit: int | None
    pool: list[PoolEntry]
    base: Path
    encoder: Path
    adapters: dict[str, Path]
    hashes: dict[str, Any]


def open_benchmark(profile: Profile, limit: int | None) -> Benchmark:
    """Read the rows and the pool, find (or fetch) the models, and hash all of it.

    Raises:
        UserError: something is missing or malformed; the message names it.
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


def check_pool_size(variants: Sequence[Variant], benchmark: Benchmark) -> None:
    """See that every variant of a method finds as many adapters as it wants.

    Raises:
        UserError: one does not.
    """
    for variant in variants:
        method, profile = variant.method, variant.profile
        available = len(benchmark.pool) - method.masked
        wanted = method.adapters_needed(profile.retrieval.k)
        if wanted > available:
            option = f"option k of {method.name.removesuffix('_ood')}"
            lower = "retrieval.k, or the sweep's k" if method.depends_on("k", wanted) else option
            raise UserError(
                f"profile {profile.name}: {variant.name} wants k = {wanted} adapters a row, but the pool "
                f"{profile.pool_path} leaves {available} to choose from; lower {lower}"
            )


def configuration(profile: Profile, benchmark: Benchmark, method: Method) -> dict[str, Any]:
    """All that a method's answers depend on, files by their hashes; what does not bear on it is left out.

    Later settings stand in it only where they are set: folders older than these stay usable.
    """
    k, temperature, tokens = profile.retrieval.k, profile.retrieval.temperature, profile.generation.batch_tokens
    used = {
        "method": method.describe(),
        "rows": benchmark.hashes["rows"],
        "limit_per_task": benchmark.limit,
        "base": benchmark.hashes["base"],
        "generation": profile.generation.model_dump(exclude={"batch_tokens"} if tokens is None else None),
        "dtype": profile.dtype,
        "device": profile.torch_device,
        "threads": profile.threads,
    }
    used |= {what: benchmark.hashes[what] for what in ("adapters", "pool") if what in method.reads}
    if "encoder" in method.reads:
        used |= {
            "encoder": {
                "hash": benchmark.hashes["encoder"],
                "layout": profile.encoder.layout,
                "instruction": profile.encoder.instruction,
            }
        }
    if "scorer" in method.settings:
        used |= {"scorer": profile.retrieval.scorer}
    if wanted := method.adapters_needed(k):
        used |= {"k": wanted}
    if temperature is not None and method.depends_on("temperature", k):
        used |= {"temperature": temperature}
    if profile.seed != 0:
        used |= {"seed": profile.seed}
    if profile.backend != "local":
        used |= {"backend": profile.backend}
    return used
