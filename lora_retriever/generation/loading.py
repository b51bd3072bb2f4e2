"""Loading a base model, its tokenizer and its adapters. No pickle is read, and no code of a checkpoint is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lora_retriever.errors import UserError
from lora_retriever.generation.batches import ran_out_of_memory
from lora_retriever.generation.encoder_decoder import KNOWN, is_known
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.heap import keep_freed_memory
from lora_retriever.generation.limits import check_settings, limits_of
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.generation.shape import check_layers
from lora_retriever.generation.special_tokens import configured_eos_ids
from peft_composition import AdapterError, ComposableModel

REASON_LENGTH = 300
"""Maximum length of the reason that a message gives for a failed loading, in characters."""

CHECKED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of parameters that are checked for NaN and infinity: all but the dtypes of quantised models."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ModelSource:
    """The folders of a base model and its adapters, with the settings for loading.

    The object can be sent to another process.
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
        UserError: the base or its tokenizer cannot be loaded, the base cannot be decoded by this project or has fewer
            positions than the settings ask for, or an adapter cannot be composed exactly.
    """
    if source.threads is not None:
        torch.set_num_threads(source.threads)
    keep_freed_memory()
    check_settings(limits_of(skeleton(source.base)), source.generation)  # before the model weights are read
    tokenizer = load_tokenizer(source.base)
    model = load_composable(source.base, source.adapters, source.torch_dtype, source.device, source.adapter_memory)
    return Generator(model, tokenizer, source.generation)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    return loaded(f"tokenizer {folder}", lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def load_config(folder: Path) -> PretrainedConfig:
    """The configuration of a base model.

    Raises:
        UserError: the configuration cannot be loaded, or names more layers than any model has.
    """

    def read() -> PretrainedConfig:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_layers(config)
        return config

    return loaded(f"base model {folder}", read)


def load_generation_config(folder: Path) -> GenerationConfig | None:
    """The generation configuration of a base model. None: the folder has no such file.

    Raises:
        UserError: the file cannot be read.
    """
    if not (folder / "generation_config.json").is_file():
        return None
    return loaded(f"base model {folder}", lambda: GenerationConfig.from_pretrained(folder))


def skeleton(folder: Path) -> PreTrainedModel:
    """A base model without model weights: its modules, their shapes, and its EOS tokens.

    Raises:
        UserError: the folder's configuration cannot be used, or rows are not answered with such a base.
    """
    config = load_config(folder)
    check_kind(folder, config)

    def build() -> PreTrainedModel:
        with torch.device("meta"):
            return kind_of(config).from_config(config, trust_remote_code=False)

    model = loaded(f"base model {folder}", build)
    generation_config = load_generation_config(folder)
    if generation_config is not None:  # without the file, the model takes the EOS tokens of its configuration
        model.generation_config = generation_config
    loaded(f"base model {folder}", lambda: configured_eos_ids(model.generation_config, config))
    return model


def check_kind(folder: Path, config: PretrainedConfig) -> None:
    """Check that rows can be answered with a base: a decoder-only model, or a kind of T5.

    Raises:
        UserError: the base is another encoder-decoder model.
    """
    if not is_known(config):
        raise UserError(
            f"base model {folder}: {config.model_type} is an encoder-decoder model; of these, rows are answered, and "
            f"weights are learned, with {', '.join(KNOWN)}. `lora-retriever compose` takes every encoder-decoder model"
        )


def kind_of(config: PretrainedConfig) -> Any:
    """The class of transformers that loads the base of a configuration."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def load_base(folder: Path, dtype: torch.dtype, device: str, every_kind: bool = False) -> PreTrainedModel:
    """A base model with its model weights, for evaluation.

    Args:
        device: a device of torch, or `balanced`: accelerate spreads the model over all GPUs.
        every_kind: whether an encoder-decoder model may also be another than T5.

    Raises:
        UserError: the base cannot be loaded, is of a kind that is not wanted, lacks a parameter, or has a parameter
            that is NaN or infinite.
    """
    config = load_config(folder)
    if not every_kind:
        check_kind(folder, config)
    if device != "cpu":
        settle_kernels()

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        return kind_of(config).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            device_map=device,
            trust_remote_code=False,
            output_loading_info=True,
        )

    model, report = loaded(f"base model {folder}", load)
    if missing := sorted(report["missing_keys"]):  # transformers fills these with random numbers
        raise UserError(
            f"base model {folder}: its files lack {len(missing)} of the weights that its configuration asks for, such "
            f"as {missing[0]}; get the files anew"
        )
    if name := _not_finite(model):
        raise UserError(f"base model {folder}: its weights hold NaN or infinity ({name}); get the files anew")
    return model.eval()


def settle_kernels() -> None:
    """Choose GPU kernels whose results and times depend as little as possible on the batch.

    cuDNN's attention makes a plan for every new number of rows and length of keys, so for every decoded token. Sums of
    16-bit products that are split and added in 16 bits depend on the shape of the product.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def load_composable(
    base: Path,
    adapters: Mapping[str, Path | str],
    dtype: torch.dtype,
    device: str,
    adapter_memory: int | None = None,
    every_kind: bool = False,
) -> ComposableModel:
    """Load a base model and its adapters, by the adapters' names.

    Args:
        device: a device of torch, or `balanced`: accelerate spreads the model over all GPUs.
        adapter_memory: maximum memory of adapters on a device, in bytes; the other adapters wait on disk. None: all
            adapters stay on the device.
        every_kind: whether an encoder-decoder model may also be another than T5.

    Raises:
        UserError: the base cannot be loaded, or an adapter cannot be composed exactly.
    """
    composable = ComposableModel(load_base(base, dtype, device, every_kind), adapter_memory)
    try:
        for name, folder in adapters.items():
            composable.load_adapter(folder, name=name)
    except AdapterError as error:
        raise UserError(str(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"the adapters do not fit into memory beside {base}; set adapters.memory") from error
    return composable


def loaded(subject: str, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives. Every exception of the libraries that read a checkpoint becomes one line.

    Args:
        subject: the name, in the message, of the thing that is loaded.

    Raises:
        UserError: the thing cannot be loaded.
    """
    try:
        return load()
    except Exception as error:  # files from elsewhere make the libraries raise anything
        raise UserError(f"{subject}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why something cannot be loaded, in one line."""
    text = str(error)
    if ran_out_of_memory(error):
        return "does not fit into memory"
    if "trust_remote_code" in text or "custom code" in text:
        return (
            "brings Python code of its own (`auto_map`), and code of a checkpoint is never run; choose a base whose "
            "model type transformers knows"
        )
    if isinstance(error, RecursionError):
        return "cannot be loaded: a file is nested too deeply"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if "Unrecognized configuration class" in first:
        return "cannot be loaded: transformers has no language model of this type"
    if len(first) > REASON_LENGTH:
        first = first[:REASON_LENGTH].rstrip() + " …"
    if not isinstance(error, OSError | ValueError) and lines:
        first = f"{type(error).__name__}: {first}"
    return f"cannot be loaded: {first}"


def _not_finite(model: PreTrainedModel) -> str | None:
    """The name of the first parameter that holds NaN or infinity, if there is one."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.numel() or parameter.dtype not in CHECKED:
            continue
        least, largest = parameter.detach().aminmax()  # both are NaN if one number is; no copy is made
        if not bool(least.isfinite() & largest.isfinite()):
            return name
    return None
