"""Prompts: the template around an input, and the prompt's tokens, cut where the input is too long.

The module reads texts and tokenizers only: it uses no model, adapter or batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_retriever.escaping import quoted
from lora_retriever.generation.chat import ChatTemplate, chat_template_of
from lora_retriever.generation.tokenizing import Filling, template_filling, text_tokens
from lora_retriever.hub import WANTED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.data.rows import Sample

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{inputs}\n\n### Response:\n"
)
TEMPLATES = {"alpaca": ALPACA, "none": "{inputs}"}
CHAT = "chat"
"""The name of the template that is the tokenizer's own chat template."""
RESPONSE_MARK = "### Response:\n"
BETWEEN_SHOTS = "\n\n"
"""The text after each example of a prompt, except in a chat template."""


def check_template(template: str) -> str:
    """Return `template` if it is a template's name or a text with `{inputs}` in it.

    Raises:
        ValueError: `template` is not a template's name, and has no `{inputs}`.
    """
    names = (*TEMPLATES, CHAT)
    if "{inputs}" not in template and template not in names:
        raise ValueError(f"unknown template {quoted(template)} (known: {', '.join(names)}, or a text with {{inputs}})")
    return template


def check_system(system: str | None, template: str) -> str | None:
    """Return the system prompt `system` if the template takes a system prompt, or if `system` is None.

    Raises:
        ValueError: the template is not `chat`, or the system prompt is blank.
    """
    if system is not None and template != CHAT:
        raise ValueError("only the template chat takes a system prompt; write the text into the template")
    if system is not None and not system.strip():
        raise ValueError("the system prompt is blank; leave the system prompt out")
    return system


def files_wanted(template: str, wanted: Sequence[str] = WANTED) -> Sequence[str]:
    """The files of a base on the Hub that are fetched for a template: `wanted`, and for `chat` the chat template.

    Under other templates the chat template is not fetched: one more file would change the hash of the base.
    """
    return (*wanted, "*.jinja") if template == CHAT else wanted


def template_of(
    tokenizer: PreTrainedTokenizerBase, template: str, system: str | None = None, shots: int = 0
) -> str | ChatTemplate:
    """The template that a name or a text means: a text with `{inputs}` in it, or the tokenizer's chat template.

    Args:
        shots: number of examples before the input, which a chat template has its own places for.

    Raises:
        UserError: as for `chat_template_of`.
    """
    return chat_template_of(tokenizer, system, shots) if template == CHAT else TEMPLATES.get(template, template)


@dataclass(frozen=True)
class ScoredOption:
    """An option of a row, as the model reads the option.

    Attributes:
        token_ids: the tokens of the prompt and the option.
        scored: number of tokens at the end whose probabilities make the likelihood of the option.
        alone: the tokens of the option as a text of its own, for the decoder of an encoder-decoder base.
    """

    token_ids: tuple[int, ...]
    scored: int
    alone: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """The tokens of one prompt.

    Attributes:
        token_ids: the prompt's tokens.
        truncated_tokens: how many tokens the input lost because the prompt was too long.
        truncated_text: the end of the input that was cut.
        options: the options of the row. Empty: the prompt is answered by decoding.
        shots: number of examples before the input. None: the settings ask for none.
    """

    token_ids: list[int]
    truncated_tokens: int
    truncated_text: str = ""
    options: tuple[ScoredOption, ...] = ()
    shots: int | None = None


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, template: str | ChatTemplate, inputs: str, max_tokens: int
) -> Prompt:
    """The prompt of `inputs` in `template`, of at most `max_tokens` tokens.

    A prompt that is too long loses the end of its input, and keeps the template whole: the prompt has the longest
    beginning of the input that fits. (The original passes `max_length=512` without truncation, and cuts no prompt.)

    Raises:
        ValueError: the template without any input is too long.
    """

    def tokens(kept_characters: int) -> list[int]:
        return filling_of(template, inputs[:kept_characters]).tokens(tokenizer)

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
    return Prompt(kept, len(whole) - len(kept), inputs[fits:])


def filling_of(template: str | ChatTemplate, inputs: str, shots: Sequence[Sample] = ()) -> Filling:
    """The text of a prompt that is not cut, with examples before the input.

    In a text template, an example is the filled template, followed by the example's target. If the filled template does
    not end in white space, a space stands between the two.
    """
    if isinstance(template, ChatTemplate):
        return template.filling(inputs, shots)
    filling = Filling(("",), ())
    for shot in shots:
        asked = template_filling(template, shot.inputs)
        space = "" if asked.text[-1:].isspace() else " "
        answered = asked.then(Filling((space, BETWEEN_SHOTS), (shot.target,)))
        filling = filling.then(answered)
    return filling.then(template_filling(template, inputs))


def encode_options(
    tokenizer: PreTrainedTokenizerBase,
    template: str | ChatTemplate,
    inputs: str,
    prompt: Prompt,
    options: Sequence[str],
    shots: Sequence[Sample] = (),
) -> tuple[ScoredOption, ...]:
    """The options of a row after the row's prompt, tokenised by the rules of lm-evaluation-harness.

    The option follows the prompt directly, and both are tokenised together. White space at the end of the prompt
    belongs to the option (`_encode_pair` of lm-evaluation-harness). So a template that ends in a space gives the
    harness' default, which puts a space before an option.

    Args:
        prompt: the prompt that was made of the same template, inputs and examples.
        shots: the examples of the prompt.

    Raises:
        ValueError: an option adds no token to the prompt.
    """
    kept = inputs[: len(inputs) - len(prompt.truncated_text)]
    filling = filling_of(template, kept, shots)
    context = filling.without_space_at_end().tokens(tokenizer)
    scored = []
    for option in options:
        own = filling.followed_by(option).tokens(tokenizer)[len(context) :]
        if not own:
            raise ValueError(f"option {quoted(option)} adds no token to the prompt")
        scored.append(ScoredOption((*context, *own), len(own), tuple(text_tokens(tokenizer, option))))
    return tuple(scored)


def extract_answer(generated: str, end: str | None = None) -> str:
    """The answer in a generated text: the text after the last response mark, or the whole text; stripped.

    Args:
        end: the beginning of another example, where the answer ends. None: the prompt has no examples.

    The original cuts the prompt and the generated text together at the last mark. The result is the same, unless the
    generated text is empty: the original then takes the whole prompt as the answer, and this function gives ''.
    """
    if end is not None:
        generated = generated.strip().partition(end)[0]
    return generated.strip().rpartition(RESPONSE_MARK)[2].strip()
