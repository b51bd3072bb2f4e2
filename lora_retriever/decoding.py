"""Greedy decoding of one batch, whose rows leave it when they end. Knows token ids only, nothing of text or adapters.

transformers' `generate` decodes every row until the last one ends. Here the rows that have ended go, with their keys
and values and their part of the composition, so a batch costs what its rows need.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from peft_composition import ComposableModel

LEAVE = 1 / 8
"""Ended rows leave when they are this share of the batch: taking them out copies the others' keys and values."""


@torch.inference_mode()
def decode(
    model: ComposableModel,
    prompts: Sequence[Sequence[int]],
    end_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The greedy continuation of every prompt, its end mark included where it has one.

    Prompts are padded on the left, and positions counted from a row's own first token: what `generate` does. To be
    called within `model.composed` for a composed batch.
    """
    device = model.device
    ids = _left_padded(prompts, pad_id).to(device)  # [rows, length]
    mask = _left_padded([[1] * len(prompt) for prompt in prompts], 0).to(device)  # [rows, length]
    # Attention without a mask is faster, and says the same where no row is padded.
    padded = not bool(mask.all())
    accepted = inspect.signature(model.base.forward).parameters
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # [rows, length]
    ends = torch.tensor(sorted(end_ids), device=device)  # [end marks]
    answers: list[list[int]] = [[] for _ in prompts]
    in_batch = list(range(len(prompts)))  # which prompt each row is
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # [rows]
    cache: Any = None
    for step in range(max_new_tokens):
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if padded:
            options["attention_mask"] = mask
        if "position_ids" in accepted:
            options["position_ids"] = positions
        if "logits_to_keep" in accepted:
            options["logits_to_keep"] = 1
        output = model(input_ids=ids, **options)
        cache = output.past_key_values
        tokens = output.logits[:, -1].argmax(dim=-1)  # [rows]
        for row, (token, over) in enumerate(zip(tokens.tolist(), ended.tolist(), strict=True)):
            if not over:
                answers[in_batch[row]].append(token)
        ended = ended | torch.isin(tokens, ends)
        over = int(ended.sum())
        if over == len(in_batch) or step == max_new_tokens - 1:
            break
        positions = positions[:, -1:] + 1  # [rows, 1]
        if over >= LEAVE * len(in_batch):
            # On the CPU, as a model that is spread over devices has its keys and values on several.
            staying = (~ended).nonzero().flatten().cpu()  # [rows that stay]
            model.keep_rows(staying)
            cache.batch_select_indices(staying)
            mask, positions, tokens, ended = mask[staying], positions[staying], tokens[staying], ended[staying]
            in_batch = [in_batch[row] for row in staying.tolist()]
        ids = tokens[:, None]  # [rows, 1]
        mask = torch.cat([mask, mask.new_ones(len(in_batch), 1)], dim=1)  # [rows, length so far]
    return answers


def _left_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as int64 [rows, longest], filled with `value` on the left."""
    length = max(map(len, rows))
    return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])
