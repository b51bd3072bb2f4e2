"""Greedy decoding of one batch, whose rows leave it when they end. Knows token ids only, nothing of text or adapters.

transformers' `generate` pads every prompt to the longest and decodes every row until the last one ends. Here prompts of
different lengths are read in parts and decoded together, and rows that have ended go, with their keys and values and
their part of the composition. So a batch costs what its rows need.
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
"""Prompts are read together while the shortest has this share of the longest's tokens: a quarter of padding at most."""
SEPARABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""The caches that hold keys and values alone, a row of them for every row of the batch."""
LEAVE = 1 / 8
"""Ended rows leave when they are this share of the batch: taking them out copies the others' keys and values."""


@torch.inference_mode()
def decode(
    model: ComposableModel,
    prompts: Sequence[Sequence[int]],
    eos_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The greedy continuation of every prompt, its end mark included where it has one.

    Prompts are padded on the left, and positions counted from a row's own first token: what `generate` does. They are
    best sorted by length. To be called within `model.composed` for a composed batch.

    Raises:
        UserError: the model's state would be lost from token to token, see `check_cache`.
    """
    check_cache(model)
    # The states of a hybrid's other layers (Mamba's, say) cannot be parted and joined by row: it keeps its batches.
    separable = all(type(layer) in SEPARABLE for layer in DynamicCache(config=model.config).layers)
    tokens, cache = _read(model, prompts, pad_id, separable)  # [rows]
    mask = _left_padded([[1] * len(prompt) for prompt in prompts], 0).to(model.device)  # [rows, longest]
    positions = mask.sum(dim=1, keepdim=True)  # [rows, 1], of the token to come
    ends = torch.tensor(sorted(eos_ids), dtype=torch.int64, device=model.device)  # [end marks]
    answers: list[list[int]] = [[] for _ in prompts]
    in_batch = list(range(len(prompts)))  # which prompt each row is
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)  # [rows]
    while True:
        for row, (token, over) in enumerate(zip(tokens.tolist(), ended.tolist(), strict=True)):
            if not over:
                answers[in_batch[row]].append(token)
        ended = ended | torch.isin(tokens, ends)
        over = int(ended.sum())
        if over == len(in_batch) or max(map(len, answers)) == max_new_tokens:
            return answers
        if separable and over >= LEAVE * len(in_batch):
            # On the CPU, as a model that is spread over devices has its keys and values on several.
            staying = (~ended).nonzero().flatten().cpu()  # [rows that stay]
            model.keep_rows(staying)
            cache.batch_select_indices(staying)
            mask, positions, tokens, ended = mask[staying], positions[staying], tokens[staying], ended[staying]
            in_batch = [in_batch[row] for row in staying.tolist()]
        mask = torch.cat([mask, mask.new_ones(len(in_batch), 1)], dim=1)  # [rows, length so far]
        tokens = _next_tokens(model, tokens[:, None], mask, positions, cache)  # [rows]
        positions = positions + 1


def check_cache(model: ComposableModel) -> None:
    """See that a model takes `past_key_values`, which are what is carried from one token to the next here.

    Raises:
        UserError: it keeps its state elsewhere, as pure Mamba, RWKV and xLSTM do; it would begin anew at every token.
    """
    kind = type(model.base)
    if "past_key_values" not in _arguments(kind.forward):
        raise UserError(
            f"{kind.__name__} cannot be decoded here: its forward pass takes no past_key_values, so what it has read "
            "would be lost from token to token; use a base with attention layers, or a hybrid that has some"
        )


def parts_of(lengths: Sequence[int]) -> Iterator[slice]:
    """Neighbouring prompts that are read together, as their lengths are alike."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        longer = lengths[start : stop + 1]
        if stop == len(lengths) or min(longer) < PADDED * max(longer):
            yield slice(start, stop)
            start = stop


def _read(
    model: ComposableModel, prompts: Sequence[Sequence[int]], pad_id: int, in_parts: bool
) -> tuple[Tensor, DynamicCache]:
    """The first token of every answer [rows], and the keys and values of all prompts."""
    lengths = [len(prompt) for prompt in prompts]
    parts = list(parts_of(lengths)) if in_parts else [slice(0, len(prompts))]
    tokens, caches = [], []
    for part in parts:
        ids = _left_padded(prompts[part], pad_id).to(model.device)  # [rows of the part, its longest]
        mask = _left_padded([[1] * length for length in lengths[part]], 0).to(model.device)
        caches.append(DynamicCache(config=model.config))
        with model.only_rows(part), contiguous_head(model.base):
            tokens.append(_next_tokens(model, ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0), caches[-1]))
    return torch.cat(tokens), caches[0] if len(caches) == 1 else _together(model, caches, max(lengths))


def _together(model: ComposableModel, caches: Sequence[DynamicCache], length: int) -> DynamicCache:
    """The keys and values of several parts as one cache, padded on the left to `length`."""
    together = DynamicCache(config=model.config)
    for place, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        # A layer that attends to a window has kept no more than that; of what is padded here, it keeps no more either.
        halves = [[getattr(layer, half) for layer in layers] for half in ("keys", "values")]  # [rows, heads, n, width]
        keys, values = (torch.cat([pad(x, (0, 0, length - x.shape[2], 0)) for x in half]) for half in halves)
        together.update(keys, values, place)
        for layer in layers:
            layer.keys = layer.values = None  # both copies of all layers would be twice the memory
    return together


def _next_tokens(model: ComposableModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """The best next token of every row [rows]; `ids` and `positions` [rows, n] are of the tokens that are new."""
    accepted = _arguments(type(model.base).forward)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if not bool(mask.all()):  # attention without a mask is faster, and says the same where no row is padded
        options["attention_mask"] = mask
    if "position_ids" in accepted:
        options["position_ids"] = positions
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    logits: Tensor = model(input_ids=ids, **options).logits  # [rows, 1 or n, vocabulary]
    return logits[:, -1].max(dim=-1).indices  # of equals the first, as argmax, which takes thrice the time on a CPU


@functools.cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """The names of what a model's forward pass takes: not all take positions, or limit the logits."""
    return frozenset(inspect.signature(forward).parameters)


def _left_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as int64 [rows, longest], filled with `value` on the left."""
    length = max(map(len, rows))
    return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])
