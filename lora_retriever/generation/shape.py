"""The shape of a decoder-only model, read from its loaded configuration under the names that Llama uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAMES: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
}
"""Llama's name of each number, and the names of other families. transformers maps most other names to Llama's."""
MOST_LAYERS = 10_000
"""More layers than any model has. Modules without weights also take time and memory: a billion layers never end."""
MLP_FACTOR = 4
"""Width of the MLP over the width of the model, in families that do not name the MLP's width (GPT-2, Bloom, MPT)."""


def shape_of(config: PretrainedConfig) -> dict[str, int]:
    """The numbers on which the memory of a model depends, under Llama's names (the keys of `NAMES`).

    Raises:
        UserError: the configuration does not tell one of the numbers, tells a number below 1, or belongs to an
            encoder-decoder model.
    """
    if config.is_encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder-decoder model")
    text = config.get_text_config(decoder=True)
    numbers = {name: _first(text, names) for name, names in NAMES.items()}
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        if numbers[name] is None:
            raise UserError(f"the configuration of a {config.model_type} model does not tell its {name}")
    shape = {name: number for name, number in numbers.items() if number is not None}
    if wrong := [name for name, number in shape.items() if number < 1]:
        raise UserError(f"the configuration says {wrong[0]} = {shape[wrong[0]]}; it must be at least 1")
    shape.setdefault("intermediate_size", MLP_FACTOR * shape["hidden_size"])
    multi_query = bool(getattr(text, "multi_query", False)) and not getattr(text, "new_decoder_architecture", False)
    if multi_query:
        shape["num_key_value_heads"] = 1
    shape.setdefault("num_key_value_heads", shape["num_attention_heads"])
    shape.setdefault("head_dim", max(1, shape["hidden_size"] // shape["num_attention_heads"]))
    return shape


def check_layers(config: PretrainedConfig) -> None:
    """Check that a model of this configuration can be built.

    Raises:
        UserError: the configuration names more layers than any model has.
    """
    for name in ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"):
        number = _first(config.get_text_config(decoder=True), (name,))
        if number is not None and number > MOST_LAYERS:
            raise UserError(f"the configuration says {name} = {number}; no model has more than {MOST_LAYERS}")


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of some attributes that a configuration has as a whole number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)
