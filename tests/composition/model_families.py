"""Tiny random models of the families that people adapt, and the functions that the tests of families share.

Each model has two layers, and parameters so large that its greedy tokens differ between compositions. Attention windows
are shorter than the prompts, so a row's cache is cut while the padding of other rows is still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

WINDOW = 4
COMMON = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
GEMMA = {"head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": WINDOW}
LLAMA_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """One kind of model: its differences from the configuration `COMMON`, and the usual target modules of adapters."""

    model_type: str
    targets: tuple[str, ...] = LLAMA_ATTENTION
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        torch.manual_seed(seed)
        config = AutoConfig.for_model(self.model_type, **{**COMMON, **self.settings})
        auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto.from_config(config).to(dtype).eval()


DECODERS = {
    "llama": Family("llama"),
    "mistral": Family("mistral", ("q_proj", "v_proj"), {"sliding_window": WINDOW}),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", settings={"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": Family("gemma2", settings=GEMMA),
    "gemma3": Family("gemma3_text", settings=GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": Family("phi3", ("qkv_proj", "o_proj")),
    "gpt_neox": Family("gpt_neox", ("query_key_value",)),
    "gpt2": Family("gpt2", ("c_attn",)),
    "opt": Family("opt", ("q_proj", "v_proj", "fc1"), {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3}),
    "falcon": Family("falcon", ("query_key_value", "dense")),
    "falcon_new": Family("falcon", ("query_key_value",), {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": Family("falcon", ("query_key_value",), {"alibi": True, "multi_query": False}),
}
T5 = Family(
    "t5",
    ("q", "v"),
    {
        "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0,
        "decoder_start_token_id": 0,
    },
)  # fmt: skip


class InDouble(ExitStack):
    """Keeps float64 where a model's code changes to float32 for its norms and softmaxes.

    Rounding to float32 would hide small differences, and a mask of the lowest float64 becomes -inf and NaN in float32.
    The class replaces the functions that change the dtype, because a TorchFunctionMode sees every function and is slow.
    """

    def __enter__(self) -> InDouble:
        for owner, name in ((Tensor, "float"), (Tensor, "to"), (functional, "softmax")):
            self.enter_context(patch.object(owner, name, _in_double(getattr(owner, name))))
        return self


def _in_double(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, but a tensor of float64 stays in float64 where the caller asks for float32."""

    @wraps(function)
    def wrapper(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.dtype == torch.float64:
            if function.__name__ == "float" or torch.float32 in args:
                return x
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return function(x, *args, **kwargs)

    return wrapper


def prompts_of(lengths: Sequence[int], seed: int = 3) -> list[list[int]]:
    """Random prompts of these lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 48, (length,), generator=generator).tolist() for length in lengths]


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, [rows, longest], padded on the left."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
