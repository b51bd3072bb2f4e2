"""`POST /v1/completions` and `POST /v1/chat/completions`: OpenAI's interface, answered by methods and adapters."""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request, Response

from lora_retriever.generation.loop import Sampling, Token
from lora_retriever.serving.answers import (
    Choice,
    chat_logprobs,
    chat_text,
    completion_logprobs,
    described,
    usage_of,
)
from lora_retriever.serving.asking import Answering, Wanted, answering
from lora_retriever.serving.bodies import BodyRoute
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.naming import Asked, asked_of
from lora_retriever.serving.prompts import AskedPrompt
from lora_retriever.serving.responses import Json
from lora_retriever.serving.schemas import Asking, ChatRequest, CompletionRequest
from lora_retriever.serving.state import Serving, serving_of
from lora_retriever.serving.streams import EventStream, unless_gone

router = APIRouter(route_class=BodyRoute)
Body = dict[str, Any]


@router.post("/v1/completions", response_class=Json)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts, without a template and without a change."""
    make = serving_of(request).prompts.of_completion
    prompts = await asyncio.to_thread(lambda: [make(prompt) for prompt in body.prompts])
    return await _respond(_Completion(body, request, prompts, body.max_tokens, body.logprobs))


@router.post("/v1/chat/completions", response_class=Json)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a message, which is put into the profile's template as an input of a benchmark is."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "`top_logprobs`: needs `logprobs: true`", "top_logprobs")
    prompts = [await asyncio.to_thread(serving_of(request).prompts.of_chat, body.messages)]
    limit = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    if limit == 0:
        raise ApiError(400, "`max_tokens`: must be 1 or more", "max_tokens")
    return await _respond(_Chat(body, request, prompts, limit, (body.top_logprobs or 0) if body.logprobs else None))


class _Form(ABC):
    """One request, and the form of its response: the part that completions and chats have in common.

    Attributes:
        prefix: how the ids of responses begin.
        object, chunk: OpenAI's names of a response, and of an event of a stream.
    """

    prefix: str
    object: str
    chunk: str

    def __init__(
        self, body: Asking, request: Request, prompts: Sequence[AskedPrompt], limit: int | None, logprobs: int | None
    ) -> None:
        serving: Serving = serving_of(request)
        service, settings = serving.service, serving.service.profile.serve
        self.body, self.request, self.prompts, self.serving = body, request, prompts, serving
        self.tokenizer = service.codec.tokenizer
        self.logprobs = logprobs
        self.domains = service.pool.current.domains
        self.asked: Asked = asked_of(
            body.model, body.lora, service.methods, service.pool.current.entries.keys(), service.profile
        )
        new_tokens = serving.prompts.default_tokens if limit is None else limit
        if new_tokens > settings.max_new_tokens and limit is not None:
            raise ApiError(
                400, f"`max_tokens`: at most {settings.max_new_tokens} tokens are made at this server", "max_tokens"
            )
        if len(prompts) * (body.n or 1) > settings.answers:
            raise ApiError(400, f"`n`: at most {settings.answers} answers are made for one request", "n")
        for prompt in prompts:
            serving.prompts.check_length(prompt, new_tokens)
        temperature = body.temperature or 0.0
        sampling = Sampling(
            max_new_tokens=new_tokens,
            temperature=temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=None if body.seed is None else body.seed % 2**63,
            stop=body.stops,
            logprobs=logprobs,
        )
        self.wanted = Wanted(sampling, body.n or 1, streams=bool(body.stream), **self.wishes())
        self.head: Body = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }

    def wishes(self) -> dict[str, bool]:
        """The part of `Wanted` that depends on the form."""
        return {}

    @abstractmethod
    def choice(self, choice: Choice) -> Body:
        """A whole answer."""

    @abstractmethod
    def first(self, choice: Choice) -> Body | None:
        """The event of a stream that comes before the text of an answer. None: nothing."""

    @abstractmethod
    def part(self, choice: Choice, piece: str, tokens: Sequence[Token]) -> Body:
        """A part of an answer."""

    def lora(self, choice: Choice) -> Body:
        """The field `lora` of an answer."""
        return described(self.asked, choice, self.domains)

    def finish(self, answers: Answering) -> None:
        """Count and log the answers."""
        metrics, usage = self.serving.metrics, usage_of(answers.choices)
        kind = "method" if self.asked.method or self.asked.name in self.serving.service.methods else "composition"
        for choice in answers.choices:
            metrics.models.labels(kind, self.asked.name if kind == "method" else "").inc()
            if self.asked.gate is None:
                metrics.used(choice.composition.weights)
        metrics.read.inc(usage["prompt_tokens"])
        metrics.made.inc(usage["completion_tokens"])
        metrics.finding.observe(answers.seconds)
        if answers.first_token is not None:
            metrics.first.observe(answers.first_token)
        used = {name: None for choice in answers.choices for name in choice.composition.weights}
        self.request.state.noted.update(
            model=self.asked.name,
            answers=len(answers.choices),
            adapters=list(used) if self.asked.gate is None else len(used),
            routing_ms=round(1000 * answers.seconds, 1),
            first_token_ms=None if answers.first_token is None else round(1000 * answers.first_token, 1),
            **usage,
        )


class _Completion(_Form):
    """The form of `/v1/completions`."""

    prefix = "cmpl"
    object = chunk = "text_completion"
    body: CompletionRequest

    def wishes(self) -> dict[str, bool]:
        return {"scores_prompt": bool(self.body.echo) and self.logprobs is not None, "continues": True}

    def choice(self, choice: Choice) -> Body:
        echoed = choice.prompt.text if self.body.echo else ""
        logprobs = None
        if self.logprobs is not None:
            offset = 0 if choice.scored else len(echoed)
            logprobs = completion_logprobs([*choice.scored, *_kept(choice)], self.tokenizer, self.logprobs, offset)
        return {
            "index": choice.place,
            "text": echoed + choice.stream.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }

    def first(self, choice: Choice) -> Body | None:
        if not self.body.echo:
            return None
        return {"index": choice.place, "text": choice.prompt.text, "logprobs": None, "finish_reason": None}

    def part(self, choice: Choice, piece: str, tokens: Sequence[Token]) -> Body:
        logprobs = None
        if self.logprobs is not None and tokens:
            logprobs = completion_logprobs(tokens, self.tokenizer, self.logprobs, len(choice.stream.text) - len(piece))
        return {"index": choice.place, "text": piece, "logprobs": logprobs, "finish_reason": choice.finish}


class _Chat(_Form):
    """The form of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk = "chat.completion.chunk"

    def wishes(self) -> dict[str, bool]:
        return {"trims": True}

    def choice(self, choice: Choice) -> Body:
        logprobs = None if self.logprobs is None else chat_logprobs(_kept(choice), self.tokenizer, self.logprobs)
        return {
            "index": choice.place,
            "message": {"role": "assistant", "content": chat_text(choice, self.tokenizer), "refusal": None},
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }

    def first(self, choice: Choice) -> Body | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": choice.place, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, choice: Choice, piece: str, tokens: Sequence[Token]) -> Body:
        logprobs = None
        if self.logprobs is not None and tokens:
            logprobs = chat_logprobs(tokens, self.tokenizer, self.logprobs)
        delta = {"content": piece} if piece else {}
        return {"index": choice.place, "delta": delta, "logprobs": logprobs, "finish_reason": choice.finish}


def _kept(choice: Choice) -> list[Token]:
    """The tokens of an answer, whose log-probabilities are told."""
    return choice.tokens


async def _respond(form: _Form) -> Response:
    """Answer a request, as a whole or as a stream."""
    held = AsyncExitStack()
    try:
        work = held.enter_async_context(answering(form.serving.service, form.asked, form.prompts, form.wanted))
        answers = await unless_gone(form.request, work)
        if form.body.stream:
            return EventStream(_events(form, answers), held.pop_all())
        await unless_gone(form.request, answers.whole())
        form.finish(answers)
        several = len(form.prompts) > 1
        choices = [{**form.choice(c), **({"lora": form.lora(c)} if several else {})} for c in answers.choices]
        lora = {} if several else {"lora": form.lora(answers.choices[0])}
        return Json(
            {**form.head, "object": form.object, "choices": choices, "usage": usage_of(answers.choices), **lora}
        )
    finally:
        await held.aclose()


async def _events(form: _Form, answers: Answering) -> AsyncIterator[Body]:
    """The events of a stream: first the adapters found, then the text piece by piece, then the usage if wanted."""
    head = {**form.head, "object": form.chunk}
    for choice in answers.choices:
        first = form.first(choice) or form.part(choice, "", [])
        yield {**head, "choices": [first], "lora": form.lora(choice)}
    async for choice, piece, tokens in answers.pieces():
        if piece or choice.finish or (tokens and form.logprobs is not None):
            yield {**head, "choices": [form.part(choice, piece, tokens)]}
    form.finish(answers)
    options = form.body.stream_options
    if options is not None and options.include_usage:
        yield {**head, "choices": [], "usage": usage_of(answers.choices)}
