"""The tokens that end an answer and the token that pads short rows: the tokens that a base and its tokenizer name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


def eos_token_ids(
    generation_config: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None = None,
) -> list[int]:
    """Every EOS token that the base or its tokenizer names, in ascending order. An answer ends at each of them.

    Adapters are trained to end an answer with the tokenizer's EOS token; some published bases name another one.
    """
    return sorted({*configured_eos_ids(generation_config, config), *_given(tokenizer.eos_token_id)})


def configured_eos_ids(generation_config: GenerationConfig | None, config: PretrainedConfig | None = None) -> list[int]:
    """The EOS tokens that the base names, in its generation configuration or in its configuration, in ascending order.

    Of a configuration with parts (text, images), the text model's part counts, too.

    Raises:
        ValueError: a configuration names something else than ids.
    """
    sources = [generation_config, config, None if config is None else config.get_text_config(decoder=True)]
    return sorted({id for source in sources for id in _given(getattr(source, "eos_token_id", None))})


def pad_token_id(tokenizer: PreTrainedTokenizerBase, vocabulary: int, configured: int | None = None) -> int:
    """The token that pads short rows: the configured one, the tokenizer's padding token, or its EOS token.

    Padding is masked, so any token of the base will do. A candidate outside the base's `vocabulary` (the number of
    rows of its embedding) is passed over; a `[PAD]` that was added to a tokenizer alone is such a token.
    """
    candidates = (configured, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None and 0 <= token < vocabulary), 0)


def _given(ids: object) -> list[int]:
    """The ids that a configuration or a tokenizer gives: one id, several, or none.

    Raises:
        ValueError: something else is given.
    """
    found: list[Any] = [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in found):
        raise ValueError(f"eos_token_id is {ids!r:.80}; it must be a token's id, or a list of ids")
    return found
