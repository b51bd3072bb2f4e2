"""Training examples: tokens of prompt and answer, labels, padding, and the loss of answers under a composition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.generation.chat import ChatTemplate
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.limits import Limits, check_text
from lora_retriever.generation.prompt import encode_prompt
from lora_retriever.generation.special_tokens import prompt_end, start_token_id
from lora_retriever.generation.tokenizing import text_tokens
from peft_composition import ComposableModel

IGNORED = -100
"""The label of a token that does not count in transformers' loss."""
MAX_ANSWER_TOKENS = 512
"""Default maximum length of an answer that is trained on, in tokens."""

Padding = Callable[[Sequence[dict[str, list[int]]]], dict[str, Any]]
"""Makes a batch of the examples that `encode_example` gives."""


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    template: str | ChatTemplate,
    max_tokens: int,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
) -> dict[str, list[int]]:
    """Token ids of prompt, answer and EOS token, and their labels. The labels of the prompt are `IGNORED`.

    Prompt and answer have the tokens that evaluation uses: `prompt_tokens` and `text_tokens` make them. The prompt is
    cut as at evaluation. An answer of more than `max_answer_tokens` loses its end and its EOS token.

    Args:
        template: a text with `{inputs}` in it, or a chat template.
        max_tokens: maximum length of the prompt, in tokens.

    Raises:
        UserError: the tokenizer has no EOS token.
        ValueError: the template alone is longer than `max_tokens`.
    """
    prompt = encode_prompt(tokenizer, template, sample.inputs, max_tokens)
    return answered_example(prompt.token_ids, encode_answer(tokenizer, sample)[:max_answer_tokens])


def encode_answer(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
    """Token ids of a sample's whole target and of the EOS token.

    Raises:
        UserError: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no EOS token, so no adapter learns to end answers")
    return [*text_tokens(tokenizer, sample.target), tokenizer.eos_token_id]


def answered_example(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """Token ids of a prompt and its answer, and their labels. The labels of the prompt are `IGNORED`."""
    return {"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]}


def check_examples(examples: Sequence[dict[str, list[int]]], samples: Sequence[Sample], limits: Limits) -> None:
    """Check that a base can read the examples: it has all their tokens, and enough positions.

    Args:
        samples: the samples of which the examples were made, in their order.

    Raises:
        UserError: the base lacks a token or positions; the message shows the sample.
    """
    for example, sample in zip(examples, samples, strict=True):
        try:
            check_text(example["input_ids"], limits)
        except UserError as error:
            raise UserError(f"example {sample.inputs[:40]!r}: {error}") from error


class LeftPadding:
    """Pads examples on the left. All answers then end together, and only the last positions need logits.

    With a large vocabulary (Gemma 3 270M: 256k tokens), logits are the most expensive part of a small model's step.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        length = max(len(example["input_ids"]) for example in examples)
        answer = max(sum(label != IGNORED for label in example["labels"]) for example in examples)
        kept = min(answer + 1, length)  # one more, because the logits of a position predict the next token

        def padded(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([[filler] * (length - len(e[key])) + e[key] for e in examples])

        mask = torch.tensor([[0] * (length - len(e["input_ids"])) + [1] * len(e["input_ids"]) for e in examples])
        return {
            "input_ids": padded("input_ids", self.pad_id),  # [batch, length]
            "attention_mask": mask,  # [batch, length]
            "labels": padded("labels", IGNORED)[:, -kept:],  # [batch, kept]
            "logits_to_keep": kept,
        }


class EncoderDecoderPadding:
    """Pads the examples of an encoder-decoder base on the right: prompts for the encoder, answers for the decoder."""

    def __init__(self, pad_id: int, start_id: int, end: Sequence[int]) -> None:
        """`start_id`: the token before every answer. `end`: the tokens after every prompt."""
        self._pad_id, self._start_id, self._end = pad_id, start_id, end

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        prompts, answers = [], []
        for example in examples:
            length = sum(label == IGNORED for label in example["labels"])
            prompts.append([*example["input_ids"][:length], *self._end])
            answers.append(example["input_ids"][length:])
        return {
            "input_ids": right_padded(prompts, self._pad_id),  # [batch, longest prompt]
            "attention_mask": right_padded([[1] * len(prompt) for prompt in prompts], 0),
            # The decoder predicts each token of an answer at the token's own position.
            "decoder_input_ids": right_padded([[self._start_id, *answer[:-1]] for answer in answers], self._pad_id),
            "labels": right_padded(answers, IGNORED),  # [batch, longest answer]
        }


def padding_of(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pad_id: int) -> Padding:
    """The object that makes batches of examples for a base.

    Raises:
        UserError: an encoder-decoder base names no start token.
    """
    if base.config.is_encoder_decoder:
        return EncoderDecoderPadding(pad_id, start_token_id(base), prompt_end(base, tokenizer))
    return LeftPadding(pad_id)


def right_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as int64 [rows, longest], filled with `value` on the right."""
    length = max(map(len, rows))
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])


def forward_options(base: PreTrainedModel, mask: Tensor, kept: int) -> dict[str, Any]:
    """The arguments of a forward pass over rows that are padded on the left, as far as the base takes them.

    Args:
        mask: [batch, length], 0 for padding.
        kept: number of positions, from the end, whose logits are needed.
    """
    accepted = inspect.signature(type(base).forward).parameters
    options: dict[str, Any] = {"use_cache": False}
    if not bool(mask.all()):
        options["attention_mask"] = mask
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)  # as if there were no padding
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = kept
    return options


def example_losses(model: ComposableModel, batch: dict[str, Any]) -> Tensor:
    """The mean cross-entropy of each example's answer [batch], nats, float32, under the current composition.

    Args:
        batch: a batch of `LeftPadding`, or of `EncoderDecoderPadding`.
    """
    losses, answers = answer_losses(model, batch)
    return losses.sum(dim=1) / answers.sum(dim=1)


def answer_losses(model: ComposableModel, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each token [batch, n], nats, float32, and whether the token belongs to an answer [batch, n].

    Tokens that belong to no answer have a loss of 0. The other arguments are those of `example_losses`.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "decoder_input_ids" in batch:
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        with contiguous_head(model.base):
            logits = model.base(**inputs, use_cache=False).logits  # [batch, n, V]
        labels = batch["labels"].to(logits.device)
    else:
        logits = last_logits(model, inputs["input_ids"], inputs["attention_mask"], inputs["logits_to_keep"])[:, :-1]
        labels = batch["labels"].to(logits.device)[:, 1:]  # [batch, kept - 1], the tokens that the positions predict
    answers = labels != IGNORED
    losses = torch.zeros(labels.shape, device=logits.device)
    losses[answers] = cross_entropy(logits[answers].float(), labels[answers], reduction="none")
    return losses, answers


def last_logits(model: ComposableModel, input_ids: Tensor, attention_mask: Tensor, kept: int) -> Tensor:
    """The logits of the last positions [batch, kept, vocabulary] of texts that are padded on the left.

    Args:
        input_ids: [batch, length].
        attention_mask: [batch, length], 0 for padding.
    """
    options = forward_options(model.base, attention_mask.to(model.device), kept)
    with contiguous_head(model.base):
        logits: Tensor = model.base(input_ids=input_ids.to(model.device), **options).logits  # [batch, kept or n, V]
    return logits[:, -kept:]
