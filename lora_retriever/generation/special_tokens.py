"""The special tokens that a base and its tokenizer name:

EOS tokens, padding, and special tokens of encoder-decoder bases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_retriever.errors import UserError
from lora_retriever.generation.tokenizing import frame_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def eos_token_ids(
    generation_config: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None = None,
) -> list[int]:
    """Every EOS token that the base or its tokenizer names, in ascending order. An answer ends at each of these tokens.

    Adapters are trained to end an answer with the tokenizer's EOS token; some published bases name another EOS token.
    """
    return sorted({*configured_eos_ids(generation_config, config), *_given(tokenizer.eos_token_id)})


def configured_eos_ids(generation_config: GenerationConfig | None, config: PretrainedConfig | None = None) -> list[int]:
    """The EOS tokens that the base names, in its generation configuration or in its configuration, in ascending order.

    Of a configuration with parts (text, images), the text model's part counts, too.

    Raises:
        ValueError: a configuration names something other than ids.
    """
    sources = [generation_config, config, None if config is None else config.get_text_config(decoder=True)]
    return sorted({id for source in sources for id in _given(getattr(source, "eos_token_id", None))})


def pad_token_id(tokenizer: PreTrainedTokenizerBase, vocabulary: int, configured: int | None = None) -> int:
    """The token that pads short rows: the token of the settings, the tokenizer's padding token, or the tokenizer's EOS
    token.

    Padding is masked, so any token of the base will do. A candidate outside the base's `vocabulary` (the number of
    rows of its embedding) is passed over; a `[PAD]` that was added to a tokenizer alone is such a token.
    """
    candidates = (configured, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None and 0 <= token < vocabulary), 0)


def prompt_end(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens after a prompt that an encoder reads: the tokens that the tokenizer puts after a text. A decoder-only
    base has none.
    """
    return frame_of(tokenizer).after if base.config.is_encoder_decoder else ()


def start_token_id(base: PreTrainedModel) -> int:
    """The token before the answer that a decoder of an encoder-decoder base makes.

    Raises:
        UserError: the base names no such token.
    """
    for config in (base.generation_config, base.config):
        if isinstance(token := getattr(config, "decoder_start_token_id", None), int):
            return token
    raise UserError(f"base model {base.name_or_path}: its configuration names no decoder_start_token_id")


def _given(ids: object) -> list[int]:
    """The ids that a configuration or a tokenizer gives: one id, several, or none.

    Raises:
        ValueError: something else is given.
    """
    found: list[Any] = [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in found):
        raise ValueError(f"eos_token_id is {ids!r:.80}; it must be a token's id, or a list of ids")
    return found
