"""Prompts: the template around an input, and its tokens, cut where the input is too long.

Knows text and tokenizers; knows nothing of models, adapters or batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{inputs}\n\n### Response:\n"
)
TEMPLATES = {"alpaca": ALPACA, "none": "{inputs}"}
RESPONSE_MARK = "### Response:\n"


def check_template(template: str) -> str:
    """Return `template` if it is a template's name or a text with `{inputs}` in it.

    Raises:
        ValueError: the template is neither.
    """
    if "{inputs}" not in template and template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r} (known: {', '.join(TEMPLATES)}, or a text with {{inputs}})")
    return template


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt, and by how many tokens its input was shortened to fit (0: not at all)."""

    token_ids: list[int]
    truncated_tokens: int


def encode_prompt(tokenizer: PreTrainedTokenizerBase, template: str, inputs: str, max_tokens: int) -> Prompt:
    """Tokens of `template` filled with `inputs`, at most `max_tokens` of them.

    An over-long input loses its end, never the template's: the longest beginning of the input is kept with which the
    whole prompt fits (the original passes `max_length=512` without truncation, so its long prompts are not cut at all).

    Raises:
        ValueError: not even the empty template fits.
    """

    def tokens(kept_characters: int) -> list[int]:
        # Not str.format: braces in a user's input are text.
        return tokenizer(template.replace("{inputs}", inputs[:kept_characters]))["input_ids"]

    whole = tokens(len(inputs))
    if len(whole) <= max_tokens:
        return Prompt(whole, 0)
    if len(tokens(0)) > max_tokens:
        raise ValueError(f"the prompt template alone has {len(tokens(0))} tokens, more than the {max_tokens} allowed")
    fits, too_many = 0, len(inputs)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if len(tokens(middle)) <= max_tokens:
            fits = middle
        else:
            too_many = middle
    kept = tokens(fits)
    return Prompt(kept, len(whole) - len(kept))


def extract_answer(generated: str) -> str:
    """The answer in a generated text: stripped, and what follows the last response mark if there is one.

    The original cuts prompt and answer together at the last mark, which comes to the same, except that it takes the
    whole prompt for the answer where nothing was generated; here that is the empty answer.
    """
    return generated.strip().rpartition(RESPONSE_MARK)[2].strip()
