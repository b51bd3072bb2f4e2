"""Answering a batch of prompts with a composition each. Knows token ids and compositions, nothing of files or tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from lora_retriever.errors import UserError
from lora_retriever.methods import Composition, Mode
from lora_retriever.profile import GenerationSection
from lora_retriever.prompt import Prompt, encode_prompt, extract_answer
from peft_composition import AdapterError, ComposableModel


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt, and how many tokens the model made for it, the end mark included."""

    text: str
    generated_tokens: int


class Generator:
    """A base model with a pool of adapters, its tokenizer, and the settings by which it answers."""

    def __init__(self, model: ComposableModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSection) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self._pad_id = next(
            token
            for token in (settings.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
            if token is not None
        )
        end = model.base.generation_config.eos_token_id
        self._end_ids = end if isinstance(end, list) else [end] if end is not None else []
        # Built anew: a checkpoint's own defaults (Llama-2's sample) must not change the experiment.
        self._decoding = GenerationConfig(
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=self._pad_id,
            eos_token_id=end,
            bos_token_id=tokenizer.bos_token_id,
        )

    def prompt(self, inputs: str) -> Prompt:
        """The tokens of one input in the template, cut if it is too long.

        Raises:
            UserError: not even the template fits.
        """
        settings = self.settings
        try:
            return encode_prompt(self.tokenizer, settings.template_text, inputs, settings.max_prompt_tokens)
        except ValueError as error:
            raise UserError(f"generation.max_prompt_tokens is too small: {error}") from error

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt], compositions: Sequence[Composition], mode: Mode) -> list[Answer]:
        """Greedy answers, one per prompt, each under its own composition, all in one batch."""
        length = max(len(prompt.token_ids) for prompt in prompts)
        device = self.model.device
        ids = torch.tensor(
            [[self._pad_id] * (length - len(p.token_ids)) + p.token_ids for p in prompts], device=device
        )  # [batch, length]
        mask = torch.tensor(
            [[0] * (length - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts], device=device
        )  # [batch, length]
        names, weights = weight_matrix(compositions)
        with self.model.composed(names, weights, mode=mode) if names else nullcontext():
            sequences = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=self._decoding)
        generated = [self._until_end(row) for row in sequences[:, length:].tolist()]
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [Answer(extract_answer(text), len(row)) for text, row in zip(texts, generated, strict=True)]

    def _until_end(self, tokens: list[int]) -> list[int]:
        """The tokens up to the first end mark, it included; after it there is only padding."""
        for place, token in enumerate(tokens):
            if token in self._end_ids:
                return tokens[: place + 1]
        return tokens


def weight_matrix(compositions: Sequence[Composition]) -> tuple[list[str], torch.Tensor]:
    """The adapters of a batch and the paper's mapping matrix M [batch, adapters], float32."""
    names = sorted({name for composition in compositions for name in composition.adapters})
    columns = {name: column for column, name in enumerate(names)}
    weights = torch.zeros(len(compositions), len(names))
    for row, composition in enumerate(compositions):
        for name, weight in zip(composition.adapters, composition.weights, strict=True):
            weights[row, columns[name]] = weight
    return names, weights


def load_generator(
    base: Path, adapters: Mapping[str, Path], settings: GenerationSection, dtype: torch.dtype, device: str
) -> Generator:
    """Load a base model with its tokenizer and its adapters from local folders.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    model = load_composable(base, adapters, dtype, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"base model {base}: its tokenizer cannot be loaded: {error}") from error
    return Generator(model, tokenizer, settings)


def load_composable(base: Path, adapters: Mapping[str, Path | str], dtype: torch.dtype, device: str) -> ComposableModel:
    """Load a base model and its adapters by name; nothing is unpickled and no checkpoint's code is run.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True, device_map=device)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"base model {base}: cannot be loaded: {error}") from error
    composable = ComposableModel(model.eval())
    try:
        for name, folder in adapters.items():
            composable.load_adapter(folder, name=name)
    except AdapterError as error:
        raise UserError(str(error)) from error
    return composable
