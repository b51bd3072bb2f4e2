"""Answering a batch of prompts with a composition each. Knows token ids and compositions, nothing of files or tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lora_retriever.decoding import check_cache, decode
from lora_retriever.errors import UserError
from lora_retriever.methods.base import Composition
from lora_retriever.profile import GenerationSection
from lora_retriever.prompt import Prompt, encode_prompt, extract_answer
from peft_composition import AdapterError, ComposableModel, Composer, Gate


@dataclass(frozen=True)
class GateUse:
    """How a gate weighed the adapters of one row: means over its tokens, the prompt's and the answer's, and modules.

    Attributes:
        entropy: of a token's weights, scaled to sum to 1, in nats.
    """

    weights: dict[str, float]
    entropy: float


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt, and how many tokens the model made for it, the end mark included."""

    text: str
    generated_tokens: int
    gate: GateUse | None = None


class Generator:
    """A base model with a pool of adapters, its tokenizer, and the settings by which it answers."""

    def __init__(self, model: ComposableModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSection) -> None:
        """Raises `UserError` for a base whose state decoding would lose."""
        check_cache(model)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        # The one thing taken from the checkpoint's own defaults: others (Llama-2 samples) would change the experiment.
        end = model.base.generation_config.eos_token_id
        self.end_ids = end if isinstance(end, list) else [end] if end is not None else []

    def answer(
        self,
        prompts: Sequence[Prompt],
        compositions: Sequence[Composition],
        mode: str | Composer,
        gate: Gate | None = None,
    ) -> list[Answer]:
        """Greedy answers, one per prompt, each under its own composition, all in one batch."""
        names, weights = weight_matrix(compositions)
        uses: list[GateUse] | list[None] = [None] * len(prompts)
        with self.model.composed(names, weights, mode=mode, gate=gate) if names else nullcontext():
            tokens = decode(
                self.model,
                [prompt.token_ids for prompt in prompts],
                self.end_ids,
                pad_id(self.tokenizer, self.settings),
                self.settings.max_new_tokens,
            )
            if names and gate is not None:
                uses = gate_uses(self.model, names)
        return [replace(answer_of(row, self.tokenizer), gate=use) for row, use in zip(tokens, uses, strict=True)]


def gate_uses(model: ComposableModel, names: Sequence[str]) -> list[GateUse]:
    """How the gate of the composition under way weighed the adapters `names`, for every row."""
    usage = model.gate_usage()  # [batch, adapters], [batch]
    return [
        GateUse({name: round(w, 6) for name, w in zip(names, row, strict=True)}, round(entropy, 6))
        for row, entropy in zip(usage.weights.tolist(), usage.entropy.tolist(), strict=True)
    ]


def answer_of(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """What the generated tokens of one row say."""
    return Answer(extract_answer(str(tokenizer.decode(tokens, skip_special_tokens=True))), len(tokens))


def pad_id(tokenizer: PreTrainedTokenizerBase, settings: GenerationSection) -> int:
    """The token that fills short rows up: the settings', the tokenizer's, or for want of both its end mark."""
    candidates = (settings.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None), 0)  # any would do: it is masked


def make_prompts(
    inputs: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: GenerationSection
) -> list[Prompt]:
    """The tokens of every input in the template, cut where it is too long.

    Raises:
        UserError: not even the template fits.
    """
    try:
        return [encode_prompt(tokenizer, settings.template_text, text, settings.max_prompt_tokens) for text in inputs]
    except ValueError as error:
        raise UserError(f"generation.max_prompt_tokens is too small: {error}") from error


def adapters_of(compositions: Sequence[Composition]) -> list[str]:
    """The adapters that a batch uses, each once."""
    return sorted({name for composition in compositions for name in composition.adapters})


def weight_matrix(compositions: Sequence[Composition]) -> tuple[list[str], torch.Tensor]:
    """The adapters of a batch and the paper's mapping matrix M [batch, adapters], float32."""
    names = adapters_of(compositions)
    columns = {name: column for column, name in enumerate(names)}
    weights = torch.zeros(len(compositions), len(names))
    for row, composition in enumerate(compositions):
        for name, weight in zip(composition.adapters, composition.weights, strict=True):
            weights[row, columns[name]] = weight
    return names, weights


def load_generator(
    base: Path,
    adapters: Mapping[str, Path],
    settings: GenerationSection,
    dtype: torch.dtype,
    device: str,
    adapter_memory: int | None = None,
) -> Generator:
    """Load everything that answers: base model, adapters, tokenizer.

    Raises:
        UserError: the base or its tokenizer cannot be loaded, the base cannot be decoded here, or an adapter cannot be
            composed exactly.
    """
    model = load_composable(base, adapters, dtype, device, adapter_memory)
    return Generator(model, load_tokenizer(base), settings)


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"base model {base}: its tokenizer cannot be loaded: {error}") from error
    return tokenizer


def load_composable(
    base: Path,
    adapters: Mapping[str, Path | str],
    dtype: torch.dtype,
    device: str,
    adapter_memory: int | None = None,
) -> ComposableModel:
    """Load a base model and its adapters by name; nothing is unpickled and no checkpoint's code is run.

    Args:
        device: a device of torch's, or `balanced`: spread over all GPUs by accelerate, for a model larger than one.
        adapter_memory: bytes that adapters may take on a device; the others wait on disk. None: all are resident.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True, device_map=device)
    except (OSError, ValueError, KeyError, SafetensorError, torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"base model {base}: cannot be loaded: {error}") from error
    composable = ComposableModel(model.eval(), adapter_memory)
    try:
        for name, folder in adapters.items():
            composable.load_adapter(folder, name=name)
    except AdapterError as error:
        raise UserError(str(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"the adapters do not fit into memory beside {base}; set adapters.memory") from error
    return composable
