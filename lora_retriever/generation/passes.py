"""Forward passes of a base model over prompts of different lengths, and which base models can be decoded at all.

The module uses token ids and logits: no text, no adapter. Within `model.composed` or `model.open_batch`, the passes use
the open composition.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lora_retriever.errors import UserError
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.held import is_separable
from peft_composition import ComposableModel

PADDED = 3 / 4
"""Minimum length of a prompt, as a share of the longest prompt that is read together with the prompt.

So at most a quarter is padding.
"""
NOT_FINITE = (
    "the model's logits are NaN or infinite for this prompt with these adapters; set dtype: float32 or bfloat16, and "
    "look at the adapters' scaling (lora_alpha)"
)
"""Why a row has no answer, if the model gives no numbers."""


def check_cache(model: ComposableModel) -> None:
    """Check that a model takes `past_key_values`, the state that decoding carries from token to token.

    Raises:
        UserError: the model keeps its state elsewhere, as pure Mamba, RWKV and xLSTM do. Such a model would begin anew
            at every token.
    """
    kind = type(model.base)
    if "past_key_values" not in _arguments(kind.forward):
        raise UserError(
            f"{kind.__name__} cannot be decoded here: its forward pass takes no past_key_values, so what it has read "
            "would be lost from token to token; use a base with attention layers, or a hybrid that has some"
        )


@torch.inference_mode()
def read_prompts(model: ComposableModel, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
    """Read the prompts of a composed batch in the same way as for answers, so that a gate sees the prompts.

    Prompts that are sorted by length are read faster.
    """
    lengths = [len(prompt) for prompt in prompts]
    for part in reading_parts(lengths, is_separable(model.config)):
        read_part(model, prompts[part], lengths[part], part, DynamicCache(config=model.config), pad_id, 1)


def read_part(
    model: ComposableModel,
    texts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    places: slice,
    cache: DynamicCache,
    pad_id: int,
    last: int,
) -> Tensor:
    """Read the texts of some rows of the batch.

    Args:
        texts: the new tokens of each row, after the tokens in the cache.
        lengths: number of tokens of each row, with the tokens in the cache.
        places: the rows of the batch that are read.
        cache: is filled.
        last: number of positions whose logits are wanted.

    Returns:
        Logits [rows, `last` or n, vocabulary].
    """
    ids = left_padded(texts, pad_id).to(model.device)  # [rows, n]
    mask = left_padded([[1] * length for length in lengths], 0).to(model.device)  # [rows, longest]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # [rows, n]
    with model.only_rows(places), contiguous_head(model.base):
        padded = mask if min(lengths) < max(lengths) else None
        return logits_of(model, ids, padded, positions, cache, last)


def reading_parts(lengths: Sequence[int], separable: bool) -> Iterator[slice]:
    """Slices of neighbouring prompts of similar length, which are read together.

    The prompts of a model that is not separable (`is_separable`) are all read together, because their states cannot be
    put together afterwards.
    """
    start = 0
    for stop in range(1, len(lengths) + 1):
        longer = lengths[start : stop + 1]
        if stop == len(lengths) or (separable and min(longer) < PADDED * max(longer)):
            yield slice(start, stop)
            start = stop


def logits_of(
    model: ComposableModel, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache, last: int
) -> Tensor:
    """The logits of the last positions, [rows, `last` or n, vocabulary].

    Args:
        ids: [rows, n], the new tokens.
        mask: [rows, length so far], 0 for padding. None: without padding a mask changes nothing, and attention without
            a mask is faster.
        positions: [rows, n], the positions of the new tokens.
        last: number of positions whose logits are wanted; some models give the logits of all positions.
    """
    accepted = _arguments(type(model.base).forward)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if mask is not None:
        options["attention_mask"] = mask
    if "position_ids" in accepted:
        options["position_ids"] = positions
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = last
    logits: Tensor = model(input_ids=ids, **options).logits
    return logits


@functools.cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """The argument names of a model's forward pass: some models take no positions, or give all logits."""
    return frozenset(inspect.signature(forward).parameters)


def left_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as int64 [rows, longest], filled with `value` on the left."""
    length = max(map(len, rows))
    return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])
