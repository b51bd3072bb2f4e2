"""The log-likelihood of the options of rows: multiple choice without decoding.

The likelihood of an option is the product of the probabilities of its tokens after the prompt, under the row's
composition. The module uses token ids: no text, no metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_retriever.errors import UserError
from lora_retriever.generation.answer import Answer, GateUse, mean_use
from lora_retriever.generation.composition import Composition, weight_matrix
from lora_retriever.generation.examples import last_logits
from lora_retriever.generation.gates import gate_uses
from lora_retriever.generation.passes import NOT_FINITE, left_padded
from lora_retriever.generation.prompt import ScoredOption
from peft_composition import ComposableModel, Composer, Gate


@dataclass(frozen=True)
class _Text:
    """One text that the model reads: the prompt of `row` with a part of an option.

    The last token of an option is never read. So the options of a row that have one token each are one text.
    """

    row: int
    token_ids: tuple[int, ...]


@torch.inference_mode()
def option_likelihoods(
    model: ComposableModel,
    rows: Sequence[Sequence[ScoredOption]],
    compositions: Sequence[Composition],
    mode: str | Composer,
    pad_id: int,
    batch_size: int,
    gate: Gate | None = None,
) -> list[Answer]:
    """The log-likelihood of each option of each row, in nats: Σ log p(token | prompt and the option's earlier tokens).

    The answers have no text. Under a gate, the use of the gate is the mean over the row's texts.

    Args:
        rows: the options of each row.
        compositions: the composition of each row.
        batch_size: maximum number of texts that are read together.

    Raises:
        UserError: the model's logits are NaN or infinite.
    """
    wanted: dict[_Text, list[tuple[int, ScoredOption]]] = {}  # each text with the options that need the text
    for row, options in enumerate(rows):
        for place, option in enumerate(options):
            wanted.setdefault(_Text(row, option.token_ids[:-1]), []).append((place, option))
    texts = sorted(wanted, key=lambda text: (-len(text.token_ids), text.row))
    found: list[dict[int, float]] = [{} for _ in rows]
    uses: list[list[GateUse]] = [[] for _ in rows]
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        kept = max(option.scored for text in batch for _, option in wanted[text])
        names, weights = weight_matrix([compositions[text.row] for text in batch])
        with model.composed(names, weights, mode=mode, gate=gate) if names else nullcontext():
            logits = _read(model, [text.token_ids for text in batch], pad_id, kept)  # [texts, kept, vocabulary]
            if names and gate is not None:
                for text, use in zip(batch, gate_uses(model, names), strict=True):
                    uses[text.row].append(use)
        for text, last in zip(batch, logits, strict=True):
            for place, option in wanted[text]:
                found[text.row][place] = _likelihood(last, option)
    return [
        Answer("", 0, mean_use(row_uses), tuple(by_place[place] for place in sorted(by_place)))
        for by_place, row_uses in zip(found, uses, strict=True)
    ]


def _read(model: ComposableModel, texts: Sequence[Sequence[int]], pad_id: int, kept: int) -> Tensor:
    """The logits of the last positions of each text [texts, kept, vocabulary]."""
    ids = left_padded(texts, pad_id)  # [texts, length]
    mask = left_padded([[1] * len(text) for text in texts], 0)  # [texts, length]
    return last_logits(model, ids, mask, kept)


def _likelihood(logits: Tensor, option: ScoredOption) -> float:
    """The log-likelihood of an option, from the logits of the last positions [kept, vocabulary] before its last token.

    Raises:
        UserError: the logits are NaN or infinite.
    """
    predicted = logits[-option.scored :].float().log_softmax(dim=-1)  # [scored, vocabulary]
    tokens = torch.tensor(option.token_ids[-option.scored :], device=predicted.device)
    total = float(predicted.gather(1, tokens[:, None]).double().sum())
    if total != total or total == -float("inf"):
        raise UserError(NOT_FINITE)
    return total
