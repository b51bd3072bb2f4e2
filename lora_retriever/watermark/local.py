"""A suspect in this process: a base model with adapters, composed as the caller says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition, weight_matrix
from lora_retriever.generation.examples import forward_options
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.heads import contiguous_head
from lora_retriever.generation.passes import NOT_FINITE
from lora_retriever.generation.prompt import Prompt
from lora_retriever.generation.tokenizing import text_tokens
from lora_retriever.watermark.suspects import Replies, first_word
from peft_composition import ComposableModel, Composer

Router = Callable[[Sequence[str]], list[Composition]]
"""The composition with which each input is answered."""


class LocalSuspect:
    """A generator under one composition for all inputs, or under the compositions of a router.

    Attributes:
        name: the suspect in words.
    """

    def __init__(
        self,
        name: str,
        generator: Generator,
        composition: Composition | Router,
        mode: str | Composer = "mixture",
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Put the parts together.

        Args:
            temperature: 0: answers are greedy. Above 0: an answer is one token, drawn at this temperature.
            seed: seed of the draws.
        """
        self.name = name
        self._generator, self._composition, self._mode = generator, composition, mode
        self._temperature, self._random = temperature, torch.Generator().manual_seed(seed)

    def replies(self, inputs: Sequence[str], words: Sequence[str]) -> Replies:
        """The answers, and the log-probabilities of the words if their first tokens differ."""
        if isinstance(self._composition, Composition):
            compositions = [self._composition] * len(inputs)
        else:
            compositions = self._composition(inputs)
        generator = self._generator
        prompts = make_prompts(inputs, generator.tokenizer, generator.settings)
        tokens = first_tokens(generator.tokenizer, words)
        texts = [""] * len(inputs)
        scores = None if tokens is None else np.zeros((len(inputs), len(words)))
        order = sorted(range(len(inputs)), key=lambda row: len(prompts[row].token_ids))
        size = generator.settings.batch_size
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            batch, chosen = [prompts[row] for row in rows], [compositions[row] for row in rows]
            answers, logs = self._answered(batch, chosen, words, tokens)
            for row, answer in zip(rows, answers, strict=True):
                texts[row] = answer
            if scores is not None and logs is not None:
                scores[rows] = logs
        return Replies(texts, scores)

    def _answered(
        self, prompts: list[Prompt], compositions: list[Composition], words: Sequence[str], tokens: list[int] | None
    ) -> tuple[list[str], NDArray[np.float64] | None]:
        """The answers to a batch, and the log-probabilities of the tokens as first tokens [batch, M].

        If the first token already shows that the answer begins with none of the words, the answer is this token alone.
        """
        generator = self._generator
        logs = next_log_probabilities(generator, prompts, compositions, self._mode)  # [batch, vocabulary]
        scores = None if tokens is None else logs[:, tokens].double().cpu().numpy()
        if self._temperature:
            first = torch.multinomial((logs / self._temperature).softmax(-1), 1, generator=self._random).flatten()
        else:
            first = logs.argmax(-1)  # [batch]
        texts = [str(generator.tokenizer.decode([token], skip_special_tokens=True)) for token in first.tolist()]
        going_on = [row for row, text in enumerate(texts) if begins_a_word(text, words)]
        if going_on and not self._temperature:
            chosen = [compositions[row] for row in going_on]
            answers = generator.answer([prompts[row] for row in going_on], chosen, self._mode)
            for row, answer in zip(going_on, answers, strict=True):
                texts[row] = answer.text
        return texts, scores


def begins_a_word(text: str, words: Sequence[str]) -> bool:
    """Whether the first word of an answer that begins with `text` may be one of the words."""
    begun = first_word(text)
    return not begun or any(word.startswith(begun) for word in words)


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int] | None:
    """The first token of each word.

    None: two words begin with the same token, so one token does not distinguish the two.
    Words that the tokenizer does not know begin with the same token, the unknown token.
    """
    tokens = [text_tokens(tokenizer, word)[0] for word in words]
    return tokens if len(set(tokens)) == len(tokens) else None


@torch.inference_mode()
def next_log_probabilities(
    generator: Generator, prompts: Sequence[Prompt], compositions: Sequence[Composition], mode: str | Composer
) -> Tensor:
    """The log-probabilities of the token after each prompt, [batch, vocabulary], float32, in nats.

    Raises:
        UserError: the model's logits are NaN or infinite.
    """
    names, weights = weight_matrix(compositions)
    model = generator.model
    with model.composed(names, weights, mode=mode) if names else nullcontext():
        logs = last_logits(model, [prompt.token_ids for prompt in prompts], generator.pad_id).log_softmax(-1)
    if bool(logs.isnan().any()):
        raise UserError(NOT_FINITE)
    return logs


def last_logits(model: ComposableModel, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """The logits after each prompt, [batch, vocabulary], float32. Prompts are padded on the left."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]).to(model.device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]).to(model.device)
    with contiguous_head(model.base):
        logits: Tensor = model(input_ids=ids, **forward_options(model.base, mask, 1)).logits  # [batch, 1 or n, V]
    return logits[:, -1].float()
