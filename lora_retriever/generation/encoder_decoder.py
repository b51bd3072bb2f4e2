"""Encoder-decoder bases such as T5: the encoder reads a prompt once, and the decoder makes the answer.

For a decoder-only base, prompt and answer are one text. Here prompt and answer are two texts:

- The encoder reads the prompt. After the prompt come the tokens that the tokenizer puts after a text (T5's EOS
  token). Shorter prompts are padded on the right.
- The decoder reads the base's start token and the tokens of the answer so far.

Rows of such a base are read together. Rows leave the batch when they end, and no row joins. The module uses token ids:
no text, no adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from lora_retriever.errors import UserError
from lora_retriever.generation.answer import Answer
from lora_retriever.generation.composition import Composition, weight_matrix
from lora_retriever.generation.examples import IGNORED, Padding, answer_losses, right_padded
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.passes import NOT_FINITE
from lora_retriever.generation.prompt import Prompt
from lora_retriever.generation.special_tokens import start_token_id
from peft_composition import ComposableModel, Composer

KNOWN = ("t5", "mt5", "umt5")
"""The model types of encoder-decoder bases whose rows are answered."""

GATES = "methods that weigh adapters by token"
"""The name of gates in a message. Gates need a decoder-only base."""


def is_known(config: PretrainedConfig) -> bool:
    """Whether rows are answered with a base of this configuration: a decoder-only model, or a kind of T5."""
    return not config.is_encoder_decoder or config.model_type in KNOWN


def refuse_encoder_decoder(config: PretrainedConfig, what: str) -> None:
    """Check that a base is a decoder-only model, for something that was not made for encoder-decoder models.

    Args:
        what: the name of the thing in the message, in the plural.

    Raises:
        UserError: the base is an encoder-decoder model.
    """
    if config.is_encoder_decoder:
        raise UserError(f"{what} need a decoder-only base model, and {config.model_type} is an encoder-decoder model")


class EncoderDecoderBatch:
    """The encoder's output for the prompts of a batch, and the keys and values of the decoder."""

    def __init__(self, model: ComposableModel, pad_id: int, end: Sequence[int]) -> None:
        """Begin without rows. `end`: the tokens after every prompt."""
        self._model = model
        self._pad_id, self._end, self._start_id = pad_id, end, start_token_id(model.base)
        self._read: Tensor | None = None  # [rows, longest, width], the prompts as the encoder has read them
        self._mask: Tensor | None = None  # [rows, longest]
        self._cache: EncoderDecoderCache | None = None

    def read(self, prompts: Sequence[Sequence[int]], begun: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts of new rows, in place of the rows before. Returns the next logits [rows, vocabulary].

        Args:
            begun: the beginning of each row's answer; all beginnings have the same length.
        """
        prompts = [[*prompt, *self._end] for prompt in prompts]
        device = self._model.device
        self._mask = right_padded([[1] * len(prompt) for prompt in prompts], 0).to(device)
        ids = right_padded(prompts, self._pad_id).to(device)
        encoder: Any = self._model.base.get_encoder()
        self._read = encoder(input_ids=ids, attention_mask=self._mask).last_hidden_state
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return self._next(torch.tensor([[self._start_id, *tokens] for tokens in begun], device=device))

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read the last token of every row. Returns the next logits [rows, vocabulary]."""
        return self._next(torch.tensor(tokens, device=self._model.device)[:, None])

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows: indices int64 [rows], in this order."""
        assert self._read is not None and self._mask is not None and self._cache is not None, "rows have been read"
        self._read, self._mask = self._read[rows], self._mask[rows]
        self._cache.batch_select_indices(rows)

    def clear(self) -> None:
        """Free the memory."""
        self._read = self._mask = self._cache = None

    def _next(self, ids: Tensor) -> Tensor:
        """The logits after the new tokens `ids` [rows, n] of the decoder."""
        assert self._read is not None, "rows have been read"
        with contiguous_head(self._model.base):
            logits: Tensor = self._model.base(
                encoder_outputs=BaseModelOutput(last_hidden_state=self._read),
                attention_mask=self._mask,
                decoder_input_ids=ids,
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        return logits[:, -1]


@torch.inference_mode()
def option_likelihoods(
    model: ComposableModel,
    prompts: Sequence[Prompt],
    compositions: Sequence[Composition],
    mode: str | Composer,
    padding: Padding,
    batch_size: int,
) -> list[Answer]:
    """The log-likelihood of each option of each prompt as the decoder's answer, in nats: Σ log p(token | …).

    Args:
        padding: makes a batch of examples (`padding_of`).
        batch_size: maximum number of options that are read together.

    Raises:
        UserError: the model's logits are NaN or infinite.
    """
    texts = [(row, option.alone) for row, prompt in enumerate(prompts) for option in prompt.options]
    found: list[list[float]] = [[] for _ in prompts]
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        examples = [
            {
                "input_ids": [*prompts[row].token_ids, *option],
                "labels": [IGNORED] * len(prompts[row].token_ids) + [*option],
            }
            for row, option in batch
        ]
        names, weights = weight_matrix([compositions[row] for row, _ in batch])
        with model.composed(names, weights, mode=mode) if names else nullcontext():
            totals = -answer_losses(model, padding(examples))[0].double().sum(dim=1)  # [options]
        if not bool(totals.isfinite().all()):
            raise UserError(NOT_FINITE)
        for (row, _), total in zip(batch, totals.tolist(), strict=True):
            found[row].append(total)
    return [Answer("", 0, None, tuple(of_row)) for of_row in found]
