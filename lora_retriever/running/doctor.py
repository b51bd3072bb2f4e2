"""`lora-retriever doctor`: what a run would stumble over, found without loading anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from lora_retriever.data.rows import PoolEntry, Row, read_pool, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import folder_of
from lora_retriever.experiment.profile import BALANCED, Profile
from lora_retriever.hub import is_cached
from lora_retriever.methods import methods_of
from lora_retriever.running.memory import MemoryUse, ModelShape, predicted_memory

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BYTES_PER_ANSWER = 4096  # a row with its answer; the official rows come to about 1,000
BASE_FILES = ("config.json", "tokenizer_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, `warning` (it may still work) or `problem` (it will not)."""

    level: Literal["ok", "warning", "problem"]
    text: str


def examine(profile: Profile, results: Path) -> Iterator[Finding]:
    """Everything a run of this profile needs, looked at one by one."""
    rows: list[Row] = []
    pool: list[PoolEntry] = []
    try:
        rows = read_rows(profile.rows_path)
        yield Finding("ok", f"rows: {len(rows)} in {profile.rows_path}")
    except UserError as error:
        yield Finding("problem", f"rows: {error}")
    try:
        pool = read_pool(profile.pool_path)
        yield Finding("ok", f"pool: {len(pool)} adapters in {profile.pool_path}")
    except UserError as error:
        yield Finding("problem", f"pool: {error}")
    yield from _examine_tasks(rows, pool)
    yield _examine_checkpoint(profile, "base model", profile.base.location, profile.base.revision, BASE_FILES)
    yield _examine_checkpoint(
        profile, "encoder", profile.encoder.location, profile.encoder.revision, ("config.json", "modules.json")
    )
    yield from _examine_adapters(profile, pool)
    try:
        yield _examine_device(profile, profile.torch_device)
        yield _examine_memory(profile, pool, profile.torch_device)
    except UserError as error:
        yield Finding("problem", str(error))
    methods = 0
    try:
        methods = len(methods_of(profile))
        yield Finding("ok", f"methods: {methods}")
    except UserError as error:
        yield Finding("problem", str(error))
    yield _examine_disk(results, len(rows) * methods * BYTES_PER_ANSWER)


def _examine_tasks(rows: list[Row], pool: list[PoolEntry]) -> Iterator[Finding]:
    without = sorted({row.task for row in rows} - {entry.model_name for entry in pool})
    if rows and pool and without:
        yield Finding(
            "warning", f"tasks without an adapter in the pool, which best_selection cannot answer: {', '.join(without)}"
        )


def _examine_checkpoint(
    profile: Profile, what: str, location: str, revision: str | None, needed: tuple[str, ...]
) -> Finding:
    folder = profile.local_path(location)
    if folder is None:
        if is_cached(location, revision):
            return Finding("ok", f"{what}: {location} is in the Hub's cache on this machine")
        return Finding("warning", f"{what}: {location} is not on this machine; a run will fetch it from the Hub")
    absent = [name for name in needed if not (folder / name).is_file()]
    if not absent and not any(folder.glob("*.safetensors")):
        absent = ["*.safetensors"]
    if absent:
        return Finding("problem", f"{what}: {folder} lacks {', '.join(absent)}")
    return Finding("ok", f"{what}: {folder}")


def _examine_adapters(profile: Profile, pool: list[PoolEntry]) -> Iterator[Finding]:
    findings = [
        _examine_checkpoint(
            profile,
            f"adapter {entry.model_name}",
            profile.adapter_location(entry.model_name),
            profile.adapters.revision,
            ADAPTER_FILES,
        )
        for entry in pool
    ]
    good = [finding for finding in findings if finding.level == "ok"]
    yield from (finding for finding in findings if finding.level != "ok")
    if good:
        yield Finding("ok", f"adapters: {len(good)} of {len(pool)} are there")


def _examine_device(profile: Profile, device: str) -> Finding:
    if device == "cpu" and profile.dtype != "float32":
        return Finding(
            "warning", f"device: {profile.dtype} on a CPU is slow on many machines; set dtype: float32 to try"
        )
    return Finding("ok", f"device: {device}, {profile.dtype}")


def _examine_memory(profile: Profile, pool: list[PoolEntry], device: str) -> Finding:
    """What the largest batch of a mixture is predicted to take (`memory`), against what the device has free."""
    folder = profile.local_path(profile.base.location)
    try:
        if folder is None:
            if not is_cached(profile.base.location, profile.base.revision):
                return Finding("warning", "memory: the base model's size is not known before it is fetched")
            folder = folder_of(profile, profile.base.location, profile.base.revision)
        used = _predicted(profile, pool, folder)
    except (KeyError, TypeError) as error:
        return Finding("warning", f"memory: cannot be predicted from the base's configuration ({error})")
    except (OSError, SafetensorError, ValueError, UserError) as error:
        return Finding("problem", f"memory: the base model's files cannot be read ({error})")
    free = _free_memory(device)
    parts = ", ".join(f"{what} {size / GIB:.2f}" for what, size in asdict(used).items())
    text = f"memory: {used.total / GIB:.2f} GiB at most ({parts}); {free / GIB:.1f} GiB are free on {device}"
    if used.weights > free:
        return Finding("problem", f"{text}: the model does not fit; choose a smaller dtype or another device")
    if used.weights + used.adapters > free:
        return Finding("problem", f"{text}: the adapters do not fit beside the model; set adapters.memory")
    if used.total > 0.9 * free:
        return Finding("warning", f"{text}: tight; lower generation.batch_size or set generation.batch_tokens")
    return Finding("ok", text)


def _predicted(profile: Profile, pool: list[PoolEntry], folder: Path) -> MemoryUse:
    """The memory of the batch that takes most, with the paper's rank 8 on q and v where the adapters are not here."""
    settings = profile.generation
    rank, targets = 8, ["q_proj", "v_proj"]
    shape = ModelShape.of_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    first = profile.local_path(profile.adapter_location(pool[0].model_name)) if pool else None
    if first is not None and (first / ADAPTER_FILES[0]).is_file():
        config = json.loads((first / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        rank, named = config.get("r", rank), config.get("target_modules")
        targets = [name for name in shape.widths if name in named] if isinstance(named, list) else list(shape.widths)
    parameters = _parameters(folder)
    # Of batches sized by tokens, those of short prompts have more rows, and so more pairs.
    used = max(
        (
            predicted_memory(
                shape,
                parameters,
                value_bytes=BYTES[profile.dtype],
                rows=settings.rows_that_fit(length),
                length=length,
                new_tokens=settings.max_new_tokens,
                adapters=len(pool),
                rank=rank,
                targets=targets,
                pair_rank=profile.retrieval.k * rank,
            )
            for length in range(1, settings.max_prompt_tokens + 1)
        ),
        key=lambda used: used.total,
    )
    limit = profile.adapters.memory
    return used if limit is None else replace(used, adapters=min(limit, used.adapters))


def _parameters(folder: Path) -> int:
    """Parameters in a folder's safetensors files, from their headers."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                count += size
    return count


def _free_memory(device: str) -> int:
    if device == BALANCED:
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _examine_disk(results: Path, needed: int) -> Finding:
    there = next(folder for folder in (results.resolve(), *results.resolve().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("problem", f"results folder {results}: {there} cannot be written")
    free = shutil.disk_usage(there).free
    text = f"disk: about {needed / GIB:.3f} GiB of answers, {free / GIB:.1f} GiB free under {there}"
    return Finding("ok" if free > 2 * needed else "problem", text)
