"""The bodies that clients send: OpenAI's fields, and the field `lora`. Unknown fields and wrong types are refused.

Fields of OpenAI's interface that change nothing here are taken and not used. Fields that would change the answer, and
that this server does not have, are taken only with the value that changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lora_retriever.data.rows import Sample
from lora_retriever.settings import plain_text

MAX_NAME = 1000
MAX_LIST = 1024
MAX_TOP = 20
"""Maximum number of most likely tokens that are returned for each token."""

Text = Annotated[str, AfterValidator(plain_text)]
Name = Annotated[str, AfterValidator(plain_text), Field(min_length=1, max_length=MAX_NAME)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""OpenAI's fields that this server does not have, each with the values that change nothing."""


class Strict(BaseModel):
    """A body, or a part of a body. Types are not converted, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Wishes(Strict):
    """The field `lora`: how adapters are found and composed.

    Attributes:
        k: how many adapters the input gets. None: the profile's.
        scorer: by which retrieval orders adapters. None: the profile's.
        temperature: makes weights of retrieval scores, as `retrieval.temperature` of a profile. None: the profile's.
        exclude: adapters that must not be used.
        adapters: the weights of the client's own adapters, in place of the adapters that the method finds. `model`
            names the mode.
    """

    k: int | None = Field(None, ge=1, le=MAX_LIST)
    scorer: Name | None = None
    temperature: Finite | None = Field(None, gt=0)
    exclude: list[Name] = Field([], max_length=MAX_LIST)
    adapters: dict[Name, Finite] | None = Field(None, min_length=1, max_length=MAX_LIST)


class StreamOptions(Strict):
    """The options of a stream: the contents beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Asking(Strict):
    """The fields that completions and chats have in common.

    Attributes:
        temperature: 0 always takes the most likely token. OpenAI's default is 1; here the default is 0, as in an
            evaluation.
        n: number of answers to each prompt.
        lora: wishes about adapters.
    """

    model: Name
    max_tokens: int | None = Field(None, ge=0, le=2**20)
    temperature: Finite | None = Field(None, ge=0, le=100)
    top_p: Finite | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str, AfterValidator(plain_text)] | list[Annotated[Text, Field(min_length=1)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    lora: Wishes | None = None
    # Taken and not used.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Taken with the value that changes nothing.
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    logit_bias: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_only_neutral_values(cls, content: Any) -> Any:
        for name, values in NEUTRAL.items():
            given = content.get(name) if isinstance(content, dict) else None
            if given is not None and name in cls.model_fields and given not in values:
                raise ValueError(f"`{name}` is not offered by this server; leave the field out")
        return content

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)


class CompletionRequest(Asking):
    """The body of `/v1/completions`.

    The prompt does not change: a text, token ids, or a list of texts or of token ids.
    """

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_LIST)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_LIST)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [[token for token in given if isinstance(token, int)]]
        return [prompt for prompt in given if not isinstance(prompt, int)]


class TextPart(Strict):
    """A part of a message. Only texts are taken."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_LIST)]
    name: str | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Asking):
    """The body of `/v1/chat/completions`. The conversation is put into the profile's template."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_LIST)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    # Taken with the value that changes nothing.
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    parallel_tool_calls: bool | None = None


class RetrieveRequest(Strict):
    """The body of `/v1/retrieve`: the adapters for texts, without answers."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_LIST)]
    k: int | None = Field(None, ge=1, le=MAX_LIST)
    scorer: Name | None = None
    exclude: list[Name] = Field([], max_length=MAX_LIST)

    @property
    def texts(self) -> list[str]:
        """The texts, one by one."""
        return [self.input] if isinstance(self.input, str) else self.input


class NewAdapter(Strict):
    """The body of `POST /v1/adapters`: an adapter below the profile's `serve.adapters`, and its samples.

    Attributes:
        folder: the adapter's folder, relative to `serve.adapters`. None: the folder of the adapter's name.
    """

    name: Name
    domain: Name = "added"
    folder: Name | None = None
    samples: list[Sample] = Field(min_length=1, max_length=MAX_LIST)
