"""The chat template of a tokenizer, read as texts around an input.

A chat template is a jinja template that comes with a checkpoint. transformers renders the template in a sandbox. The
template is rendered with a mark in place of each message, and never with the text of a row: so the text of a row stays
text, as in every other template.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from typing import TYPE_CHECKING

from lora_retriever.errors import UserError, one_line_of
from lora_retriever.generation.tokenizing import Filling, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.data.rows import Sample

DAY = date(2024, 7, 26)
"""The day that a chat template writes as today, so that prompts do not depend on the day. Llama 3.2's own default."""
TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)
"""The changes that a chat template may make to the white space around a message."""
_PROBE = ' \n{0}\n\n  "quoted" \\n <b>{{x}}</b> \t É & 1.\n{0} \n '
"""A message that shows how a chat template changes messages; `{0}` is the mark."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with everything but the messages filled in.

    The messages are the inputs and the targets of the examples, in turn, and at the end the input of the row.

    Attributes:
        parts: the texts before, between and after the messages. Special tokens are written out.
        places: the number of the message that stands after each part but the last, counted from 0.
        trims: how the chat template changes the white space around a message of the user, and around an answer.
    """

    parts: tuple[str, ...]
    places: tuple[int, ...]
    trims: tuple[Callable[[str], str], Callable[[str], str]]

    def filling(self, inputs: str, shots: Sequence[Sample] = ()) -> Filling:
        """The text of a prompt. A special token in a message is text; the tokenizer adds no token of its own."""
        messages = [text for shot in shots for text in (shot.inputs, shot.target)] + [inputs]
        fills = tuple(self.trims[place % 2](messages[place]) for place in self.places)
        return Filling(self.parts, fills, framed=False)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, inputs: str) -> list[int]:
        """The tokens of a prompt without examples."""
        return self.filling(inputs).tokens(tokenizer)


def chat_template_of(tokenizer: PreTrainedTokenizerBase, system: str | None = None, shots: int = 0) -> ChatTemplate:
    """The tokenizer's chat template for one message of a user, up to the beginning of the answer.

    Args:
        shots: number of examples before the message: messages of the user with their answers.
        system: the system prompt. None: the chat template's own system prompt, if it has a system prompt.

    Raises:
        UserError: the tokenizer has no chat template, or the chat template cannot be rendered, refuses or leaves out
            the system prompt, or changes messages. The message begins with the field at fault, `template` or `system`.
    """
    name = tokenizer.name_or_path
    source = _source_of(tokenizer)

    def render(messages: Sequence[str], system: str | None) -> str:
        head = [] if system is None else [{"role": "system", "content": system}]
        roles = ("user", "assistant")
        turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(messages)]
        return str(
            tokenizer.apply_chat_template(
                [*head, *turns], chat_template=source, tokenize=False, add_generation_prompt=True
            )
        )

    code = uuid.uuid4().hex  # no row, system prompt or template has this text
    marks = [f"{code}{place:04}" for place in range(2 * shots + 1)]
    probes = [_PROBE.format(mark) for mark in marks]
    try:
        render(marks, None)
        render(probes, None)
    except Exception as error:  # a template may fail in any way
        raise UserError(f"template: the chat template of {name} cannot be rendered: {one_line_of(error)}") from error
    try:
        filled, shown = render(marks, system), render(probes, system)
    except Exception as error:
        raise UserError(
            f"system: the chat template of {name} refuses a system prompt ({one_line_of(error)}); remove the field"
        ) from error
    if system is not None and system.strip() not in filled:
        raise UserError(f"system: the chat template of {name} leaves the system prompt out; remove the field")
    pieces = re.split(f"({code}[0-9]{{4}})", filled)
    parts, places = tuple(pieces[::2]), tuple(marks.index(mark) for mark in pieces[1::2])
    for trims in product(TRIMS, TRIMS if shots else TRIMS[:1]):
        fills = tuple(trims[place % 2](probes[place]) for place in places)
        if Filling(parts, fills).text == shown and len(set(places)) == len(marks):
            return ChatTemplate(parts, places, trims)
    done = "leaves messages out" if len(set(places)) < len(marks) else "changes the text of messages"
    raise UserError(f"template: the chat template of {name} {done}; write a text with {{inputs}} in it instead")


def _source_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template of a tokenizer, with a clock that always says `DAY`.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    try:
        source = str(tokenizer.get_chat_template())
    except (ValueError, AttributeError) as error:  # no chat template, several without a default, no chat at all
        raise UserError(
            f"template: chat needs a chat template, and the tokenizer {tokenizer.name_or_path} has none; "
            "write alpaca, none, or a text with {inputs} in it"
        ) from error
    return _fixed_clock() + source if "strftime_now" in source else source


def conversation_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> list[int]:
    """The tokens of a conversation in the tokenizer's chat template, up to the beginning of the next answer.

    Args:
        messages: role (`system`, `user` or `assistant`) and text of each message.

    Raises:
        UserError: the tokenizer has no chat template, the chat template refuses the conversation, or a message has the
            text of a special token, which the tokenizer would read as the special token.
    """
    for _, text in messages:
        if written := next((token for token in special_tokens(tokenizer) if token in text), None):
            raise UserError(f"a message of a conversation has the special token {written!r} in it; leave it out")
    source = _source_of(tokenizer)
    conversation = [{"role": role, "content": text} for role, text in messages]
    try:
        text = str(
            tokenizer.apply_chat_template(
                conversation, chat_template=source, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # a template may fail in any way
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses the conversation: {one_line_of(error)}"
        ) from error
    return Filling((text,), (), framed=False).tokens(tokenizer)


def _fixed_clock() -> str:
    """Jinja for the beginning of a template: `strftime_now`, the clock of chat templates, always says `DAY`."""
    words = {f"%{letter}": DAY.strftime(f"%{letter}") for letter in "AaBbdHIjMmpSwYy"}
    words |= {"%-d": str(DAY.day), "%e": str(DAY.day), "%-m": str(DAY.month), "%F": DAY.isoformat()}
    replaced = "".join(f" | replace({directive!r}, {word!r})" for directive, word in words.items())
    # The empty text at the end keeps a line end that follows: jinja removes the line end after a block.
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}"
