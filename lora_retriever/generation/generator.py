"""`Generator`: a base model with its adapters answers a batch of prompts, each prompt under its own composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from lora_retriever.data.rows import PoolEntry, Row, Sample, single_spaced
from lora_retriever.errors import UserError
from lora_retriever.generation.answer import Answer
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.encoder_decoder import GATES, refuse_encoder_decoder
from lora_retriever.generation.encoder_decoder import option_likelihoods as decoders_likelihoods
from lora_retriever.generation.examples import padding_of
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.likelihood import option_likelihoods
from lora_retriever.generation.limits import check_settings, check_tokens, limits_of
from lora_retriever.generation.loop import Event, continued
from lora_retriever.generation.passes import check_cache
from lora_retriever.generation.prompt import (
    Prompt,
    encode_options,
    encode_prompt,
    extract_answer,
    filling_of,
)
from lora_retriever.generation.sampling import Sampling
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.special_tokens import eos_token_ids, pad_token_id, prompt_end
from peft_composition import ComposableModel, Composer, Gate


class Generator:
    """A base model with the adapters of a pool, the base's tokenizer, and the settings for prompts and answers."""

    def __init__(self, model: ComposableModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSection) -> None:
        """Put the parts together.

        Raises:
            UserError: decoding would lose the state of this base model from token to token, the base has fewer
                positions than the settings ask for, or an encoder-decoder base names no start token.
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
        self.prompt_end = prompt_end(model.base, tokenizer)
        self._padding = padding_of(model.base, tokenizer, self.pad_id)  # pads options for an encoder-decoder base

    def answer(
        self,
        prompts: Sequence[Prompt],
        compositions: Sequence[Composition],
        mode: str | Composer,
        gate: Gate | None = None,
    ) -> list[Answer]:
        """Greedy answers to the prompts, each under its own composition, all in one batch if memory allows.

        Raises:
            UserError: a prompt has a token that the base lacks, or the model's logits are not finite numbers. A caller
                that must know which prompt is at fault divides the batch.
        """
        sampling = Sampling(self.settings.max_new_tokens)
        jobs = [
            Job(prompt.token_ids, composition, mode, sampling, gate)
            for prompt, composition in zip(prompts, compositions, strict=True)
        ]
        return [self.answer_of(event) for event in continued(self, jobs)]

    def answer_of(self, event: Event) -> Answer:
        """The answer of a job that has ended, by its last event with all its tokens."""
        tokens = [token.id for token in event.tokens]
        return replace(answer_of(tokens, self.tokenizer, self.settings.answer_end), gate=event.gate)

    def score(
        self,
        prompts: Sequence[Prompt],
        compositions: Sequence[Composition],
        mode: str | Composer,
        gate: Gate | None = None,
    ) -> list[Answer]:
        """The log-likelihoods of the options of the prompts, each prompt under its own composition.

        Raises:
            UserError: an option has a token that the base lacks, an option is longer than the base can read, or the
                model's logits are not finite numbers.
        """
        if gate is not None:
            refuse_encoder_decoder(self.model.config, GATES)
        for prompt in prompts:
            for option in prompt.options:
                check_tokens(option.token_ids, self.limits.vocabulary)
                if self.limits.table is not None and len(option.token_ids) - 1 > self.limits.table:
                    raise UserError(
                        f"the prompt and an option have {len(option.token_ids)} tokens, more than the "
                        f"{self.limits.table} positions of the base; lower generation.max_prompt_tokens"
                    )
        options = [prompt.options for prompt in prompts]
        longest = max(len(option.token_ids) for row in options for option in row)
        at_once = self.settings.texts_that_fit(longest)
        if self.model.config.is_encoder_decoder:
            return decoders_likelihoods(self.model, prompts, compositions, mode, self._padding, at_once)
        return option_likelihoods(self.model, options, compositions, mode, self.pad_id, at_once, gate)


def row_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: GenerationSection, pool: Sequence[PoolEntry] = ()
) -> list[Prompt]:
    """The prompt of each row, with the row's options, and with examples before the input if the settings want examples.

    The examples are the first samples of the row's own adapter in the pool, without samples that have the row's input.
    A row whose task is no adapter of the pool gets no example. If the prompt is too long, the last examples are left
    out until the whole input fits. So the prompt of a row does not depend on the method.

    Raises:
        UserError: as for `make_prompts`, or an option cannot be scored; the message names the row.
    """
    samples = {entry.model_name: entry.sample for entry in pool}
    plain = make_prompts([row.inputs for row in rows], tokenizer, settings)
    templates = {0: settings.template_for(tokenizer)}
    found = []
    for row, prompt in zip(rows, plain, strict=True):
        shots: tuple[Sample, ...] = ()
        if settings.shots:
            own = [s for s in samples.get(row.task, ()) if single_spaced(s.inputs) != single_spaced(row.inputs)]
            prompt = replace(prompt, shots=0)
            for count in range(min(settings.shots, len(own)), 0, -1):
                if count not in templates:
                    templates[count] = settings.template_for(tokenizer, count)
                tokens = filling_of(templates[count], row.inputs, own[:count]).tokens(tokenizer)
                if len(tokens) <= settings.max_prompt_tokens:
                    shots, prompt = tuple(own[:count]), Prompt(tokens, 0, shots=count)
                    break
        if row.options is not None:
            try:
                options = encode_options(tokenizer, templates[len(shots)], row.inputs, prompt, row.options, shots)
            except ValueError as error:
                raise UserError(f"row {row.id}: {error}") from error
            prompt = replace(prompt, options=options)
        found.append(prompt)
    return found


def answer_of(tokens: list[int], tokenizer: PreTrainedTokenizerBase, end: str | None = None) -> Answer:
    """The answer that the generated tokens of one row stand for. `end` is `GenerationSection.answer_end`."""
    return Answer(extract_answer(str(tokenizer.decode(tokens, skip_special_tokens=True)), end), len(tokens))


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
