"""From a request to prompts: a completion's prompt is taken as it is, a chat is put into the profile's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_retriever.errors import UserError
from lora_retriever.generation.chat import ChatTemplate, chat_template_of
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.limits import check_tokens
from lora_retriever.generation.prompt import CHAT, TEMPLATES, encode_prompt
from lora_retriever.generation.tokenizing import INPUTS, prompt_tokens
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.schemas import Message


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt.

    Attributes:
        token_ids: the prompt's tokens.
        text: the prompt as it is echoed. Empty for a chat.
        searched: the text for which adapters are searched: the input without the template.
        truncated_tokens: how many tokens the input lost because the prompt was too long. Completions lose none.
    """

    token_ids: list[int]
    text: str
    searched: str
    truncated_tokens: int = 0


class Prompts:
    """Makes prompts with the profile's template and the base's tokenizer."""

    def __init__(self, generator: Generator) -> None:
        """Read the template.

        Raises:
            UserError: the tokenizer lacks the template.
        """
        self._generator = generator
        self._tokenizer = generator.tokenizer
        self._settings = generator.settings
        self._template = generator.settings.template_for(generator.tokenizer)

    @property
    def default_tokens(self) -> int:
        """The length of an answer for which a client names no length: the profile's, in tokens."""
        return self._settings.max_new_tokens

    def of_completion(self, prompt: str | Sequence[int]) -> AskedPrompt:
        """The prompt of a completion: a text or token ids, as they are.

        If the text is the profile's template around an input, adapters are searched for the input alone.

        Raises:
            ApiError: the prompt is empty, or has a token that the base lacks.
        """
        if isinstance(prompt, str):
            tokens, text, bare = prompt_tokens(self._tokenizer, INPUTS, prompt), prompt, prompt
        else:
            tokens = list(prompt)
            self._check(tokens)
            text, bare = (str(self._tokenizer.decode(tokens, skip_special_tokens=skips)) for skips in (False, True))
        if not tokens:
            raise ApiError(400, "`prompt`: is empty, and this base has no token to begin with", "prompt")
        self._check(tokens)
        return AskedPrompt(tokens, text, self._input_within(bare))

    def of_chat(self, messages: Sequence[Message]) -> AskedPrompt:
        """The prompt of a conversation. A single message of the user is treated as the input of a benchmark's row.

        Raises:
            ApiError: the template has no room for these messages.
        """
        system = "\n\n".join(m.text for m in messages if m.role in ("system", "developer")) or None
        turns = [message for message in messages if message.role in ("user", "assistant")]
        if not turns or turns[-1].role != "user":
            raise ApiError(400, "`messages`: the last message must be the user's", "messages")
        if len(turns) > 1:
            raise ApiError(
                400,
                "`messages`: the prompt has room for one message of the user (and a system prompt under `template: "
                "chat`); write what came before into this message",
                "messages",
            )
        text = turns[0].text
        if not text.strip():
            raise ApiError(400, "`messages`: the message is blank", "messages")
        try:
            prompt = encode_prompt(self._tokenizer, self._template_with(system), text, self._settings.max_prompt_tokens)
        except (UserError, ValueError) as error:
            raise ApiError(400, f"`messages`: {error}", "messages") from error
        return AskedPrompt(prompt.token_ids, "", text, prompt.truncated_tokens)

    def check_length(self, prompt: AskedPrompt, new_tokens: int) -> None:
        """Check that a prompt and its answer fit.

        Raises:
            ApiError: the base has fewer positions.
        """
        limits = self._generator.limits
        positions = limits.table or limits.trained
        wanted = len(prompt.token_ids) + new_tokens
        if positions is not None and wanted > positions:
            raise ApiError(
                400,
                f"the prompt has {len(prompt.token_ids)} tokens and the answer may have {new_tokens}; this base has "
                f"{positions} positions. Shorten the prompt, or lower max_tokens",
                "max_tokens",
                "context_length_exceeded",
            )

    def _template_with(self, system: str | None) -> str | ChatTemplate:
        if system is None:
            return self._template
        if self._settings.template != CHAT:
            raise ApiError(400, "`messages`: the profile's template has no place for a system prompt", "messages")
        return chat_template_of(self._tokenizer, system)

    def _check(self, tokens: Sequence[int]) -> None:
        try:
            check_tokens(tokens, self._generator.limits.vocabulary)
        except UserError as error:
            raise ApiError(400, f"`prompt`: {error}", "prompt") from error

    def _input_within(self, text: str) -> str:
        """The input, if the text is the template around an input; else the whole text."""
        template = TEMPLATES.get(self._settings.template, self._settings.template)
        before, mark, after = template.partition(INPUTS)
        if not mark or INPUTS in after or not text.strip().startswith(before.strip()):
            return text
        inner = text.strip().removeprefix(before.strip())
        end = after.strip()
        if end and not inner.rstrip().endswith(end):
            return text
        inner = inner.rstrip().removesuffix(end) if end else inner
        return inner.strip() or text
