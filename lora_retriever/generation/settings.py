"""The `generation` section of a profile: the template, the limits in tokens, and the size of batches."""

from __future__ import annotations

from pydantic import Field, field_validator

from lora_retriever.generation.prompt import TEMPLATES, check_template
from lora_retriever.settings import MAX_COUNT, Section

MAX_BATCH_TOKENS = 2**31
"""Maximum of `batch_tokens`."""
MAX_TOKEN_ID = 2**31 - 1
"""Maximum of a token's id; an id is a number of 32 bits or more in every model."""


class GenerationSection(Section):
    """How prompts are made and answered. Decoding is greedy.

    Attributes:
        template: the name of a template, or a text with `{inputs}` in it.
        max_prompt_tokens: maximum length of a prompt, in tokens. A longer input is cut at its end.
        max_new_tokens: maximum length of an answer, in tokens.
        batch_size: maximum number of rows in a batch.
        batch_tokens: maximum number of tokens in a batch, with padding and new tokens. This number bounds the memory
            for keys and values. None: only `batch_size` bounds a batch.
        pad_token_id: the token that pads short rows. None: the tokenizer's.
    """

    template: str = "alpaca"
    max_prompt_tokens: int = Field(512, ge=1, le=MAX_COUNT)
    max_new_tokens: int = Field(50, ge=1, le=MAX_COUNT)
    batch_size: int = Field(8, ge=1, le=MAX_COUNT)
    batch_tokens: int | None = Field(None, ge=1, le=MAX_BATCH_TOKENS)
    pad_token_id: int | None = Field(None, ge=0, le=MAX_TOKEN_ID)

    @field_validator("template")
    @classmethod
    def _known(cls, template: str) -> str:
        return check_template(template)

    @property
    def template_text(self) -> str:
        """The template itself, with `{inputs}` in it."""
        return TEMPLATES.get(self.template, self.template)

    def rows_that_fit(self, longest: int) -> int:
        """Maximum number of rows in a batch whose longest prompt has `longest` tokens; at least one."""
        if self.batch_tokens is None:
            return self.batch_size
        return max(1, min(self.batch_size, self.batch_tokens // (longest + self.max_new_tokens)))
