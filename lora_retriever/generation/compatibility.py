"""The differences between a base model and its tokenizer that change prompts or answers, one line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_retriever.generation.special_tokens import configured_eos_ids, pad_token_id
from lora_retriever.generation.tokenizing import frame_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

SHOWN = 3
"""Maximum number of tokens that a line names."""


def differences(
    config: PretrainedConfig, generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Each difference between a base model and its tokenizer, with the way in which this project handles it.

    Args:
        config: the configuration of the base.
        generation_config: the base's generation configuration. None: the base has none.

    Returns:
        One line for each difference. An empty list: the base and its tokenizer agree.
    """
    return [
        *_eos_lines(configured_eos_ids(generation_config, config), tokenizer, bool(config.is_encoder_decoder)),
        *_bos_lines(config, tokenizer),
        *_vocabulary_lines(config, tokenizer),
    ]


def _eos_lines(configured: Collection[int], tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> list[str]:
    own = tokenizer.eos_token_id
    lines = []
    if own is None:
        lines.append("the tokenizer names no EOS token, so adapters cannot be trained and answers end at the base's")
    elif own not in configured:
        named = f"the base names {_shown(configured, tokenizer)}" if configured else "the base names none"
        lines.append(
            f"EOS tokens differ: {named}, the tokenizer {_shown([own], tokenizer)}; answers end at each of these tokens"
        )
    behind = frame_of(tokenizer).after
    if behind and not encoder_decoder:
        lines.append(
            f"the tokenizer puts {_shown(behind, tokenizer)} behind every text; prompts are made without this ending"
        )
    return lines


def _bos_lines(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    before, own = frame_of(tokenizer).before, tokenizer.bos_token_id
    configured = getattr(config.get_text_config(decoder=True), "bos_token_id", None)
    if own is None or configured is None:
        return []
    if own in before and own != configured:
        return [
            f"BOS tokens differ: the base names {_shown([configured], tokenizer)}, the tokenizer "
            f"{_shown([own], tokenizer)}; prompts begin with the tokenizer's"
        ]
    # Families whose prompts begin without a BOS token (GPT-2, GPT-NeoX) have one token for BOS and EOS.
    if not before and own == configured != tokenizer.eos_token_id:
        return [
            f"the base and the tokenizer name the BOS token {_shown([own], tokenizer)}, and the tokenizer puts none "
            "before a prompt; write it at the beginning of the template if the base was trained with it"
        ]
    return []


def _vocabulary_lines(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(size, int):
        return []
    outside = sorted(id for id in tokenizer.get_vocab().values() if id >= size)
    lines = []
    if outside:
        lines.append(
            f"the tokenizer has {len(outside)} tokens outside the base's vocabulary of {size}: "
            f"{_shown(outside, tokenizer)}; a row with such a token fails"
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
        filler = pad_token_id(tokenizer, size)
        lines.append(
            f"the padding token {_shown([tokenizer.pad_token_id], tokenizer)} is outside the base's vocabulary of "
            f"{size}; short rows are padded with {_shown([filler], tokenizer)}"
        )
    return lines


def _shown(ids: Collection[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The names of tokens in a message: the id, and the token's text if the tokenizer has the token."""
    ordered = list(ids)
    texts = [tokenizer.convert_ids_to_tokens(id) if 0 <= id < len(tokenizer) else None for id in ordered[:SHOWN]]
    shown = [f"{id} ({text!r})" if text is not None else str(id) for id, text in zip(ordered, texts, strict=False)]
    return " and ".join(shown) if len(ordered) == 2 else ", ".join(shown) + (", …" if len(ordered) > SHOWN else "")
