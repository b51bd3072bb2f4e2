"""The memory that a profile's largest batch is predicted to need, before any model weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.settings import READ_TOKENS, SHARE_READ
from lora_retriever.running.memory import MemoryUse, ModelShape, predicted_memory

if TYPE_CHECKING:
    from peft_composition import AdapterHeader

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Size of a value of each dtype, in bytes."""
BATCH_SHAPES = 256
"""Maximum number of batch sizes for which the memory is predicted."""


def predicted_for(
    profile: Profile, adapters: int, headers: Sequence[AdapterHeader], shape: ModelShape, parameters: int
) -> MemoryUse:
    """The memory of the batch that needs most, with the paper's rank 8 on q and v if no adapter is known."""
    lengths = turning_points(profile)
    every = (predicted_at(profile, adapters, headers, shape, parameters, length) for length in lengths)
    return max(every, key=lambda used: used.total)


def predicted_at(
    profile: Profile,
    adapters: int,
    headers: Sequence[AdapterHeader],
    shape: ModelShape,
    parameters: int,
    length: int,
    rows: int | None = None,
) -> MemoryUse:
    """The memory of a batch whose longest prompt has `length` tokens.

    Args:
        adapters: number of adapters in memory.
        headers: the adapters that are known.
        rows: number of rows of the batch. None: as many as fit.
    """
    rank, targets = adapted_by(headers, shape)
    settings = profile.generation
    used = predicted_memory(
        shape,
        parameters,
        value_bytes=BYTES[profile.dtype],
        rows=settings.rows_that_fit(length) if rows is None else rows,
        length=length,
        new_tokens=settings.max_new_tokens,
        read_tokens=settings.tokens_read(length),
        kept_tokens=settings.tokens_kept(settings.tokens_held(length)),
        adapters=adapters,
        rank=rank,
        targets=targets,
        pair_rank=profile.retrieval.k * rank,
    )
    limit = profile.adapters.memory
    return used if limit is None else replace(used, adapters=min(limit, used.adapters))


def adapted_by(headers: Sequence[AdapterHeader], shape: ModelShape) -> tuple[int, list[str]]:
    """The largest rank of some adapters, and the modules that the adapters target, under Llama's names."""
    modules = [(name, module) for header in headers for name, module in header.modules.items()]
    rank = max((module.rank for _, module in modules), default=8)
    adapted = {name.rpartition(".")[2] for name, _ in modules} or {"q_proj", "v_proj"}
    # A family with other names than Llama's: all modules, which is the most that an adapter can adapt.
    return rank, [name for name in shape.widths if name in adapted] or list(shape.widths)


def turning_points(profile: Profile) -> list[int]:
    """The lengths of prompts at which a batch may need most memory, in tokens.

    With a fixed number of rows that are read together, longer prompts need more. So three kinds of lengths count: the
    longest prompt; where `batch_tokens` bounds a batch, the longest prompt of which a given number of rows still fits;
    and the longest prompt of which a whole batch is still read at once. The numbers of rows are the largest and the
    smallest that are possible.
    """
    settings = profile.generation
    longest, most = settings.max_prompt_tokens, settings.rows_that_fit(1)
    lengths = {longest}
    # Lengths above which a batch of a fixed number of rows is read in parts, of which each has at most the share
    # SHARE_READ.
    whole = {int(settings.max_new_tokens * SHARE_READ / (1 - SHARE_READ)), READ_TOKENS // most}
    if settings.batch_tokens is not None:
        counts = {
            *range(max(1, most - BATCH_SHAPES // 2), most + 1),
            *range(1, min(most, BATCH_SHAPES // 2) + 1),
        }
        lengths |= {settings.batch_tokens // rows - settings.max_new_tokens for rows in counts}
        whole = {settings.tokens_read(1) // rows for rows in counts}
    lengths |= whole | {length + 1 for length in whole}
    return sorted({min(max(1, length), longest) for length in lengths})


def weights_size(folder: Path | None) -> int:
    """The size of the model weights on disk, in bytes. 0: there is no such folder."""
    return 0 if folder is None else sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
