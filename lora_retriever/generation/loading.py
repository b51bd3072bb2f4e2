"""Loading a base model, its tokenizer and its adapters. No pickle is read, and no code of a checkpoint is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lora_retriever.errors import UserError
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.settings import GenerationSection
from peft_composition import AdapterError, ComposableModel


@dataclass(frozen=True)
class ModelSource:
    """The folders of a base model and its adapters, and how to load them. It can be sent to another process.

    Attributes:
        base: the folder of the base model and its tokenizer.
        adapters: the folder of each adapter, by the adapter's name.
        generation: how prompts are made and answered.
        dtype: the name of torch's dtype, such as `float32`.
        device: a device of torch, or `balanced`: accelerate spreads the model over all GPUs.
        adapter_memory: maximum memory of adapters on a device, in bytes; the other adapters wait on disk. None: all
            adapters stay on the device.
        threads: torch's threads on a CPU. None: as many as there are cores.
    """

    base: Path
    adapters: Mapping[str, Path]
    generation: GenerationSection
    dtype: str = "float32"
    device: str = "cpu"
    adapter_memory: int | None = None
    threads: int | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's own object."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


def load_generator(source: ModelSource) -> Generator:
    """Load everything that answers prompts: base model, adapters, tokenizer.

    Raises:
        UserError: the base or its tokenizer cannot be loaded, the base cannot be decoded by this project, or an
            adapter cannot be composed exactly.
    """
    if source.threads is not None:
        torch.set_num_threads(source.threads)
    model = load_composable(source.base, source.adapters, source.torch_dtype, source.device, source.adapter_memory)
    return Generator(model, load_tokenizer(source.base), source.generation)


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        UserError: the tokenizer cannot be loaded.
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
    """Load a base model and its adapters, by the adapters' names.

    Args:
        device: a device of torch, or `balanced`: accelerate spreads the model over all GPUs.
        adapter_memory: maximum memory of adapters on a device, in bytes; the other adapters wait on disk. None: all
            adapters stay on the device.

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
