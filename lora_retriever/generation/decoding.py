"""Greedy decoding of one batch. Rows leave the batch when they end. The module uses token ids: no text, no adapter.

transformers' `generate` pads every prompt to the longest, and decodes every row until the last row ends. Here prompts
of different lengths are read in parts and decoded together. Rows that have ended are taken out of the batch, with their
keys and values and their part of the composition. So a batch costs as much as its rows need.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lora_retriever.errors import UserError
from lora_retriever.generation.heads import contiguous_head
from peft_composition import ComposableModel

PADDED = 3 / 4
"""Minimum length of a prompt over the longest prompt that is read with it. So at most a quarter is padding."""
SEPARABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers that hold keys and values only, one row for each row of the batch."""
LEAVE = 1 / 8
"""Minimum share of a batch's rows that must have ended before these rows are taken out: the others are copied then."""
NOT_FINITE = (
    "the model's logits are NaN or infinite for this prompt with these adapters; set dtype: float32 or bfloat16, and "
    "look at the adapters' scaling (lora_alpha)"
)
"""Why a row has no answer, if the model gives no numbers."""


@torch.inference_mode()
def decode(
    model: ComposableModel,
    prompts: Sequence[Sequence[int]],
    eos_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The greedy continuation of every prompt, with the EOS token if there is one.

    Prompts are padded on the left, and positions are counted from the first token of a row, as `generate` does.
    Prompts that are sorted by length are decoded faster. A composed batch is decoded within `model.composed`.

    Raises:
        UserError: the model's state would be lost from token to token (`check_cache`), or a row's logits are NaN or
            infinite.
    """
    check_cache(model)
    # The states of a hybrid's other layers, such as Mamba's, cannot be divided by row: such a batch stays whole.
    separable = all(type(layer) in SEPARABLE for layer in DynamicCache(config=model.config).layers)
    tokens, finite, cache = _read(model, prompts, pad_id, separable)  # [rows], [rows]
    mask = left_padded([[1] * len(prompt) for prompt in prompts], 0).to(model.device)  # [rows, longest]
    positions = mask.sum(dim=1, keepdim=True)  # [rows, 1], of the next token
    ends = torch.tensor(sorted(eos_ids), dtype=torch.int64, device=model.device)  # [EOS tokens]
    answers: list[list[int]] = [[] for _ in prompts]
    in_batch = list(range(len(prompts)))  # the prompt of each row
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)  # [rows]
    while True:
        if not bool((finite | ended).all()):
            raise UserError(NOT_FINITE)
        for row, (token, over) in enumerate(zip(tokens.tolist(), ended.tolist(), strict=True)):
            if not over:
                answers[in_batch[row]].append(token)
        ended = ended | torch.isin(tokens, ends)
        over = int(ended.sum())
        if over == len(in_batch) or max(map(len, answers)) == max_new_tokens:
            return answers
        if separable and over >= LEAVE * len(in_batch):
            # On the CPU: a model on several devices has keys and values on each of them.
            staying = (~ended).nonzero().flatten().cpu()  # [rows that stay]
            model.keep_rows(staying)
            cache.batch_select_indices(staying)
            mask, positions, tokens, ended = mask[staying], positions[staying], tokens[staying], ended[staying]
            in_batch = [in_batch[row] for row in staying.tolist()]
        mask = torch.cat([mask, mask.new_ones(len(in_batch), 1)], dim=1)  # [rows, length so far]
        tokens, finite = _next_tokens(model, tokens[:, None], mask, positions, cache)  # [rows], [rows]
        positions = positions + 1


def check_cache(model: ComposableModel) -> None:
    """Check that a model takes `past_key_values`, the state that decoding carries from token to token.

    Raises:
        UserError: the model keeps its state elsewhere, as pure Mamba, RWKV and xLSTM do. It would begin anew at every
            token.
    """
    kind = type(model.base)
    if "past_key_values" not in _arguments(kind.forward):
        raise UserError(
            f"{kind.__name__} cannot be decoded here: its forward pass takes no past_key_values, so what it has read "
            "would be lost from token to token; use a base with attention layers, or a hybrid that has some"
        )


def parts_of(lengths: Sequence[int]) -> Iterator[slice]:
    """Slices of neighbouring prompts of similar length, which are read together."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        longer = lengths[start : stop + 1]
        if stop == len(lengths) or min(longer) < PADDED * max(longer):
            yield slice(start, stop)
            start = stop


def _read(
    model: ComposableModel, prompts: Sequence[Sequence[int]], pad_id: int, in_parts: bool
) -> tuple[Tensor, Tensor, DynamicCache]:
    """The first token of every answer [rows], whether its logits are numbers [rows], and all keys and values."""
    lengths = [len(prompt) for prompt in prompts]
    parts = list(parts_of(lengths)) if in_parts else [slice(0, len(prompts))]
    tokens, finite, caches = [], [], []
    for part in parts:
        ids = left_padded(prompts[part], pad_id).to(model.device)  # [rows of the part, its longest]
        mask = left_padded([[1] * length for length in lengths[part]], 0).to(model.device)
        caches.append(DynamicCache(config=model.config))
        with model.only_rows(part), contiguous_head(model.base):
            chosen = _next_tokens(model, ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0), caches[-1])
        tokens.append(chosen[0])
        finite.append(chosen[1])
    cache = caches[0] if len(caches) == 1 else _together(model, caches, max(lengths))
    return torch.cat(tokens), torch.cat(finite), cache


def _together(model: ComposableModel, caches: Sequence[DynamicCache], length: int) -> DynamicCache:
    """The keys and values of several parts as one cache, padded on the left to `length`."""
    together = DynamicCache(config=model.config)
    for place, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        # A sliding-window layer has kept its window only, and keeps no more of the padded keys and values.
        halves = [[getattr(layer, half) for layer in layers] for half in ("keys", "values")]  # [rows, heads, n, width]
        keys, values = (torch.cat([pad(x, (0, 0, length - x.shape[2], 0)) for x in half]) for half in halves)
        together.update(keys, values, place)
        for layer in layers:
            layer.keys = layer.values = None  # two copies of all layers would need twice the memory
    return together


def _next_tokens(
    model: ComposableModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> tuple[Tensor, Tensor]:
    """The best next token of every row [rows], and whether the token's logit is a finite number [rows].

    The best logit is NaN if any logit of the row is NaN. The arguments are those of `logits_of`.
    """
    logits = logits_of(model, ids, None if bool(mask.all()) else mask, positions, cache, 1)
    best = logits[:, -1].max(dim=-1)  # of equal logits the first, as argmax, which takes three times as long on a CPU
    return best.indices, best.values.isfinite()


def logits_of(
    model: ComposableModel, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache, last: int
) -> Tensor:
    """The logits of the last positions, [rows, `last` or n, vocabulary].

    Args:
        ids: [rows, n], the new tokens.
        mask: [rows, length so far], 0 for padding. None: without padding a mask changes nothing, and attention without
            a mask is faster.
        positions: [rows, n], the positions of the new tokens.
        last: number of positions whose logits are wanted; some models give those of all positions.
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
