"""From a request to prompts: a completion's prompt does not change, and a chat is put into the profile's template."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from lora_retriever.errors import UserError
from lora_retriever.generation.chat import conversation_tokens
from lora_retriever.generation.limits import Limits, check_tokens
from lora_retriever.generation.prompt import CHAT, TEMPLATES, Prompt, encode_prompt
from lora_retriever.generation.tokenizing import INPUTS, prompt_tokens
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.schemas import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.generation.settings import GenerationSection


class Codec(Protocol):
    """The base's tokenizer and limits, and a profile's settings: texts become tokens, and tokens become texts."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base."""

    @property
    def limits(self) -> Limits:
        """The limits of the base."""

    @property
    def settings(self) -> GenerationSection:
        """How prompts are made and answered."""


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt.

    Attributes:
        token_ids: the prompt's tokens.
        text: the text of the prompt, for `echo`. Empty for a chat.
        searched: the text for which adapters are searched: the input without the template.
        truncated_tokens: how many tokens the input lost because the prompt was too long. Completions lose none.
    """

    token_ids: list[int]
    text: str
    searched: str
    truncated_tokens: int = 0


class Prompts:
    """Makes prompts with the profile's template and the base's tokenizer."""

    def __init__(self, codec: Codec) -> None:
        """Read the template.

        Raises:
            UserError: the tokenizer lacks the template.
        """
        self._codec = codec
        self._tokenizer = deepcopy(codec.tokenizer)  # prompts are made beside the thread that decodes answers
        self._lock = Lock()
        self._settings = codec.settings
        self._template = codec.settings.template_for(codec.tokenizer)

    @property
    def default_tokens(self) -> int:
        """The length of an answer for which a client names no length: the profile's, in tokens."""
        return self._settings.max_new_tokens

    def of_completion(self, prompt: str | Sequence[int]) -> AskedPrompt:
        """The prompt of a completion: a text or token ids, unchanged.

        If the text is the profile's template around an input, adapters are searched for the input alone.

        Raises:
            ApiError: the prompt is empty, or has a token that the base lacks.
        """
        if isinstance(prompt, str):
            with self._lock:
                tokens = prompt_tokens(self._tokenizer, INPUTS, prompt)
            text, bare = prompt, prompt
        else:
            tokens = list(prompt)
            self._check(tokens)
            text, bare = (str(self._tokenizer.decode(tokens, skip_special_tokens=skips)) for skips in (False, True))
        if not tokens:
            raise ApiError(400, "`prompt`: is empty, and this base has no token to begin with", "prompt")
        self._check(tokens)
        return AskedPrompt(tokens, text, self._input_within(bare))

    def of_chat(self, messages: Sequence[Message]) -> AskedPrompt:
        """The prompt of a conversation, whose last message is the user's: adapters are searched for this message.

        A single message is treated as the input of a benchmark's row.

        Raises:
            ApiError: the template has no room for these messages.
        """
        turns = [("system" if m.role == "developer" else m.role, m.text) for m in messages]
        role, text = turns[-1]
        if role != "user" or not text.strip():
            raise ApiError(400, "`messages`: the last message must be the user's, and not blank", "messages")
        try:
            with self._lock:
                if len(turns) == 1:
                    most = self._settings.max_prompt_tokens
                    prompt = encode_prompt(self._tokenizer, self._template, text, most)
                else:
                    prompt = self._conversation(turns)
        except (UserError, ValueError) as error:
            raise ApiError(400, f"`messages`: {error}", "messages") from error
        return AskedPrompt(prompt.token_ids, "", text, prompt.truncated_tokens)

    def check_length(self, prompt: AskedPrompt, new_tokens: int) -> None:
        """Check that a prompt and its answer fit.

        Raises:
            ApiError: the base has fewer positions.
        """
        limits = self._codec.limits
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

    def _conversation(self, turns: Sequence[tuple[str, str]]) -> Prompt:
        """The prompt of several messages, of which none is cut.

        Raises:
            UserError: the template is no chat template, or the conversation does not fit.
        """
        if self._settings.template != CHAT:
            raise UserError(
                "the profile's template has room for one message of the user; write everything into it, or serve a "
                "profile with template: chat"
            )
        own = self._settings.system
        given = turns if own is None or turns[0][0] == "system" else [("system", own), *turns]
        prompt = Prompt(conversation_tokens(self._tokenizer, given), 0)
        most = self._settings.max_prompt_tokens
        if len(prompt.token_ids) > most:
            raise UserError(
                f"the conversation has {len(prompt.token_ids)} tokens, more than {most}; leave messages out"
            )
        return prompt

    def _check(self, tokens: Sequence[int]) -> None:
        try:
            check_tokens(tokens, self._codec.limits.vocabulary)
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
