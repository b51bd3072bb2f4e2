"""The `generation` section of a profile: the template, the limits in tokens, and the size of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from lora_retriever.errors import UserError
from lora_retriever.generation.prompt import (
    BETWEEN_SHOTS,
    CHAT,
    TEMPLATES,
    check_system,
    check_template,
    template_of,
)
from lora_retriever.generation.tokenizing import INPUTS
from lora_retriever.settings import MAX_COUNT, Section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_retriever.generation.chat import ChatTemplate

MAX_BATCH_TOKENS = 2**31
"""Maximum of `batch_tokens`."""
MAX_SHOTS = 1000
"""Maximum of `shots`."""
MAX_TOKEN_ID = 2**31 - 1
"""Maximum of a token's id; an id is a number of 32 bits or more in every model."""

READ_TOKENS = 512
"""Maximum number of prompt tokens that the loop reads in one step, unless the caller names another number."""
SHARE_READ = 1 / 4
"""Share of the tokens of a batch that the loop reads in one step in an evaluation, if these are more tokens."""
SHARE_KEPT = 1 / 8
"""Maximum number of tokens whose keys and values are kept as beginnings, as a share of the tokens of a batch."""


class GenerationSection(Section):
    """How prompts are made and answered. Decoding is greedy.

    Attributes:
        template: the name of a template (`alpaca`, `none`, or `chat`: the tokenizer's own chat template), or a text
            with `{inputs}` in it.
        system: the system prompt of the template `chat`. None: the chat template's own, if there is one.
        shots: maximum number of examples before the input: the first samples of the row's own adapter in the pool.
        max_prompt_tokens: maximum length of a prompt, in tokens. A longer input is cut at its end.
        max_new_tokens: maximum length of an answer, in tokens.
        batch_size: maximum number of rows in a batch.
        batch_tokens: maximum number of tokens in a batch, with padding and new tokens. This number bounds the memory
            for keys and values. None: only `batch_size` bounds a batch.
        pad_token_id: the token that pads short rows. None: the tokenizer's.
        share_prefix: whether rows of one composition whose prompts begin alike share the reading of that beginning.
    """

    template: str = "alpaca"
    system: str | None = None
    shots: int = Field(0, ge=0, le=MAX_SHOTS)
    max_prompt_tokens: int = Field(512, ge=1, le=MAX_COUNT)
    max_new_tokens: int = Field(50, ge=1, le=MAX_COUNT)
    batch_size: int = Field(8, ge=1, le=MAX_COUNT)
    batch_tokens: int | None = Field(None, ge=1, le=MAX_BATCH_TOKENS)
    pad_token_id: int | None = Field(None, ge=0, le=MAX_TOKEN_ID)
    share_prefix: bool = True

    @field_validator("template")
    @classmethod
    def _known(cls, template: str) -> str:
        return check_template(template)

    @field_validator("system")
    @classmethod
    def _for_chat(cls, system: str | None, info: ValidationInfo) -> str | None:
        # The template is not there if the template itself is wrong, which has a message of its own.
        return check_system(system, info.data.get("template", CHAT))

    @property
    def template_text(self) -> str:
        """The template with `{inputs}` in it, or `chat`."""
        return TEMPLATES.get(self.template, self.template)

    @property
    def answer_end(self) -> str | None:
        """The text at which an answer ends: the beginning of another example. None: prompts have no examples."""
        if not self.shots or self.template == CHAT:
            return None
        return BETWEEN_SHOTS + self.template_text.partition(INPUTS)[0]

    def template_for(self, tokenizer: PreTrainedTokenizerBase, shots: int = 0) -> str | ChatTemplate:
        """The template as `encode_prompt` takes the template, with places for examples.

        Raises:
            UserError: as for `chat_template_of`; the message names the field of the profile.
        """
        try:
            return template_of(tokenizer, self.template, self.system, shots)
        except UserError as error:
            raise UserError(f"generation.{error}") from error

    def recorded(self) -> dict[str, Any]:
        """The settings as a run's configuration records them.

        A setting that was added to the project later appears only where a profile sets the setting.
        """
        defaults = {"batch_tokens": None, "system": None, "shots": 0, "share_prefix": True}
        return self.model_dump(exclude={name for name, value in defaults.items() if getattr(self, name) == value})

    def tokens_held(self, longest: int) -> int:
        """Maximum number of tokens in a batch whose longest prompt has `longest` tokens: room for at least one row."""
        row = longest + self.max_new_tokens
        return max(row, self.batch_size * row if self.batch_tokens is None else self.batch_tokens)

    def tokens_kept(self, held: int) -> int:
        """Maximum number of tokens of beginnings that are kept beside a batch that holds `held` tokens."""
        return int(SHARE_KEPT * held) if self.share_prefix else 0

    def tokens_read(self, longest: int) -> int:
        """Maximum number of prompt tokens that an evaluation reads at once, in a batch as for `tokens_held`.

        The keys and values of prompts that are read exist twice for a while. So the prompts of a large batch are not
        all read at once.
        """
        return max(READ_TOKENS, int(SHARE_READ * self.tokens_held(longest)))

    def rows_that_fit(self, longest: int) -> int:
        """Maximum number of rows in a batch whose longest prompt has `longest` tokens; at least one."""
        return self.texts_that_fit(longest + self.max_new_tokens)

    def texts_that_fit(self, longest: int) -> int:
        """Maximum number of texts in a batch whose longest text has `longest` tokens; at least one."""
        if self.batch_tokens is None:
            return self.batch_size
        return max(1, min(self.batch_size, self.batch_tokens // longest))
