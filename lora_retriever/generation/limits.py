"""The limits of a base model: how many positions and which tokens the base has, checked before the first batch.

The limits are read from the modules that a configuration builds, and not from the configuration's names: GPT-2 names
its positions `n_positions`, OPT has two more rows of positions than positions, and Llama's `max_position_embeddings`
limits nothing. `loading.skeleton` builds the modules without model weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_retriever.errors import UserError
from lora_retriever.generation.settings import GenerationSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed", "pos_encoding")
"""Names of the modules and buffers that hold one row for each position, in transformers' decoder models."""
OTHER_INPUTS = ("vision", "image", "audio", "encoder")
"""Parts of the names of modules that read no text; their tables of positions are not the text's."""


@dataclass(frozen=True)
class Limits:
    """The limits of a base model.

    Attributes:
        vocabulary: number of tokens that the base has an embedding for.
        table: number of positions in the base's table of positions, learned or computed once. A longer text makes the
            base fail. None: the base has no such table.
        trained: number of positions that the base was trained for, or made ready for by the scaling of its rotary
            embeddings. A longer text is possible, and answers get worse. None: the configuration does not say.
        window: number of tokens that every layer of the base attends to at most. None: at least one layer attends to
            all tokens.
    """

    vocabulary: int
    table: int | None
    trained: int | None
    window: int | None


def limits_of(model: PreTrainedModel) -> Limits:
    """The limits of a base model, or of its `loading.skeleton`: no model weights are read."""
    config = model.config.get_text_config(decoder=True)
    table = min(_tables(model), default=None)
    trained = _trained_positions(config)
    if config.model_type == "mpt":  # ALiBi, computed once for this many positions
        table = int(config.max_seq_len)
    if table is not None and trained is not None:
        table = min(table, trained)
    return Limits(vocabulary_of(model), table, trained, _window(config))


def vocabulary_of(base: PreTrainedModel) -> int:
    """The number of tokens that a base model has an embedding for."""
    from torch import Tensor

    embedding = base.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    return len(embedding)


def check_settings(limits: Limits, settings: GenerationSection) -> None:
    """Check that the longest prompt and its answer fit into the base's positions, and that the base has the padding.

    Raises:
        UserError: the text does not fit, and rows would fail; or the base has no such padding token.
    """
    padding = settings.pad_token_id
    if padding is not None and padding >= limits.vocabulary:
        raise UserError(
            f"generation.pad_token_id = {padding} is outside the base's vocabulary of {limits.vocabulary} tokens; "
            "choose a token of the base, or leave the setting out"
        )
    wanted = settings.max_prompt_tokens + settings.max_new_tokens
    if limits.table is not None and wanted > limits.table:
        raise UserError(
            f"generation.max_prompt_tokens + generation.max_new_tokens = {settings.max_prompt_tokens} + "
            f"{settings.max_new_tokens} = {wanted}, and the base has {limits.table} positions; lower one of the two"
        )


def length_warnings(limits: Limits, settings: GenerationSection) -> list[str]:
    """One line for each limit that the longest prompt and its answer exceed, and that makes no row fail."""
    wanted = settings.max_prompt_tokens + settings.max_new_tokens
    lines = []
    if limits.table is None and limits.trained is not None and wanted > limits.trained:
        lines.append(
            f"a prompt and its answer may have {wanted} tokens, and the base was trained for {limits.trained} "
            "positions; answers to longer prompts get worse. Prompts are cut where generation.max_prompt_tokens says"
        )
    if limits.window is not None and wanted > limits.window:
        lines.append(
            f"a prompt and its answer may have {wanted} tokens, and every layer of the base attends to the last "
            f"{limits.window} tokens only"
        )
    return lines


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Check that a base of `vocabulary` tokens has all tokens of a text.

    Raises:
        UserError: the base lacks a token.
    """
    outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise UserError(f"token {outside} is outside the base's vocabulary of {vocabulary}")


def check_text(tokens: Sequence[int], limits: Limits) -> None:
    """Check that a base can read a whole text: the base has all tokens of the text, and enough positions.

    Raises:
        UserError: the base lacks a token or positions.
    """
    check_tokens(tokens, limits.vocabulary)
    if limits.table is not None and len(tokens) > limits.table:
        raise UserError(
            f"{len(tokens)} tokens of prompt and answer are more than the {limits.table} positions of the base; lower "
            "the maximum length of prompts or of answers, or leave the example out"
        )


def _tables(model: PreTrainedModel) -> list[int]:
    """The number of positions in each table of positions of a model's text part."""
    from torch import nn

    found = []
    for name, module in model.named_modules():
        if _is_table(name) and isinstance(module, nn.Embedding):
            # Some families begin to count positions after the padding token, or at a fixed offset.
            first = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            found.append(module.num_embeddings - first)
    found += [buffer.shape[0] for name, buffer in model.named_buffers() if _is_table(name)]
    return found


def _is_table(name: str) -> bool:
    return name.rpartition(".")[2] in TABLES and not any(part in name for part in OTHER_INPUTS)


def _trained_positions(config: PretrainedConfig) -> int | None:
    """The number of positions that a configuration names, times the scaling of rotary embeddings if there is one."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if any(isinstance(kind, dict) for kind in rope.values()) else [rope]
    for kind in kinds:  # one for each type of layer
        factor = kind.get("factor")
        if isinstance(factor, int | float):
            original = kind.get("original_max_position_embeddings") or positions
            positions = max(positions, int(original * factor))
    return positions


def _window(config: PretrainedConfig) -> int | None:
    """The number of tokens that every layer attends to at most."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if not isinstance(window, int) or window < 1 or (layers and any(kind != "sliding_attention" for kind in layers)):
        return None
    return window
