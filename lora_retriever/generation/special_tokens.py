"""The tokens that end an answer and the token that pads short rows: what the model and its tokenizer name."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def eos_token_ids(configuration: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every EOS token that the model's generation configuration or the tokenizer names, in ascending order.

    Adapters are trained to end an answer with the tokenizer's EOS token; some published bases name another one.
    """
    return sorted({*configured_eos_ids(configuration), *_given(tokenizer.eos_token_id)})


def configured_eos_ids(configuration: GenerationConfig | None) -> list[int]:
    """The EOS tokens that the model's generation configuration names."""
    return list(_given(None if configuration is None else configuration.eos_token_id))


def pad_token_id(tokenizer: PreTrainedTokenizerBase, vocabulary: int, configured: int | None = None) -> int:
    """The token that pads short rows: the configured one, the tokenizer's padding token, or its EOS token.

    Padding is masked, so any token that the base has will do. A candidate outside the base's `vocabulary` (number of
    rows of its embedding) is passed over; a `[PAD]` that was added to a tokenizer alone is such a token.
    """
    candidates = (configured, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None and 0 <= token < vocabulary), 0)


def _given(ids: int | Collection[int] | None) -> Collection[int]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids
