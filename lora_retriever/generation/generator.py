"""`Generator`: a base model with its adapters answers a batch of prompts, each prompt under its own composition."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from lora_retriever.errors import UserError
from lora_retriever.generation.answer import Answer, GateUse
from lora_retriever.generation.composition import Composition, weight_matrix
from lora_retriever.generation.decoding import check_cache, decode
from lora_retriever.generation.limits import check_settings, check_tokens, limits_of
from lora_retriever.generation.prompt import Prompt, encode_prompt, extract_answer
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.special_tokens import eos_token_ids, pad_token_id
from peft_composition import ComposableModel, Composer, Gate


class Generator:
    """A base model with the adapters of a pool, its tokenizer, and the settings by which it answers."""

    def __init__(self, model: ComposableModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSection) -> None:
        """Put the parts together.

        Raises:
            UserError: decoding would lose the state of this base model from token to token, or the base has fewer
                positions than the settings ask for.
        """
        check_cache(model)
        self.limits = limits_of(model.base)
        check_settings(self.limits, settings)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        # Only the EOS tokens are taken from the checkpoint's generation defaults. Other defaults would change the
        # experiment: Llama-2's draw tokens at random.
        self.eos_ids = eos_token_ids(model.base.generation_config, tokenizer, model.base.config)
        self.pad_id = pad_token_id(tokenizer, self.limits.vocabulary, settings.pad_token_id)

    def answer(
        self,
        prompts: Sequence[Prompt],
        compositions: Sequence[Composition],
        mode: str | Composer,
        gate: Gate | None = None,
    ) -> list[Answer]:
        """Greedy answers to the prompts, each under its own composition, all in one batch.

        Raises:
            UserError: a prompt has a token that the base lacks, or the model's logits are not finite numbers. A caller
                that must know which prompt is at fault divides the batch.
        """
        for prompt in prompts:
            check_tokens(prompt.token_ids, self.limits.vocabulary)
        names, weights = weight_matrix(compositions)
        uses: list[GateUse] | list[None] = [None] * len(prompts)
        with self.model.composed(names, weights, mode=mode, gate=gate) if names else nullcontext():
            tokens = decode(
                self.model,
                [prompt.token_ids for prompt in prompts],
                self.eos_ids,
                self.pad_id,
                self.settings.max_new_tokens,
            )
            if names and gate is not None:
                uses = gate_uses(self.model, names)
        return [replace(answer_of(row, self.tokenizer), gate=use) for row, use in zip(tokens, uses, strict=True)]


def gate_uses(model: ComposableModel, names: Sequence[str]) -> list[GateUse]:
    """How the gate of the current composition weighed the adapters `names`, for each row of the batch."""
    usage = model.gate_usage()  # [batch, adapters], [batch]
    return [
        GateUse({name: round(w, 6) for name, w in zip(names, row, strict=True)}, round(entropy, 6))
        for row, entropy in zip(usage.weights.tolist(), usage.entropy.tolist(), strict=True)
    ]


def answer_of(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """The answer that the generated tokens of one row stand for."""
    return Answer(extract_answer(str(tokenizer.decode(tokens, skip_special_tokens=True))), len(tokens))


def make_prompts(
    inputs: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: GenerationSection
) -> list[Prompt]:
    """The prompt of each input: the input in the template, cut where the input is too long.

    Raises:
        UserError: the template alone is longer than `settings.max_prompt_tokens`, or the tokenizer lacks the template.
    """
    template = settings.template_for(tokenizer)
    try:
        return [encode_prompt(tokenizer, template, text, settings.max_prompt_tokens) for text in inputs]
    except ValueError as error:
        raise UserError(f"generation.max_prompt_tokens is too small: {error}") from error
