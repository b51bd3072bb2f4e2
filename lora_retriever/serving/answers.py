"""The answers of one request, from the engine's events to OpenAI's objects. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_retriever.generation.composition import Composition
from lora_retriever.generation.loop import Event, Job, Token
from lora_retriever.generation.prompt import extract_answer
from lora_retriever.generation.text import TextStream
from lora_retriever.serving.naming import Asked
from lora_retriever.serving.prompts import AskedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ERROR = "error"
"""How `Event.ended` begins if a row failed."""


@dataclass
class Choice:
    """One answer that is made.

    Attributes:
        place: the answer's place in the response.
        prompt: the prompt that is answered.
        composition: the adapters that answer the prompt.
        job: the engine's job.
        stream: the answer's text.
        defers: whether the text is made when the answer has ended, because nobody reads it before.
        tokens: the answer's tokens so far, the EOS token included.
        finish: why the answer ended: "stop" or "length". None: the answer has not ended.
        error: why the answer failed.
        scored: the prompt's tokens with their log-probabilities. Empty: not asked for.
    """

    place: int
    prompt: AskedPrompt
    composition: Composition
    job: Job
    stream: TextStream
    defers: bool = False
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    scored: list[Token] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.finish is not None or self.error is not None

    def take(self, event: Event) -> tuple[str, list[Token]]:
        """Take an event of the engine; return the new text that is certain, and the new tokens."""
        if self.ended:
            return "", []
        new = list(event.tokens)
        self.scored += event.prompt
        self.tokens += new
        if self.defers and event.ended is None:
            return "", new
        piece = self.stream.push([token.id for token in (self.tokens if self.defers else new)])
        if event.ended is not None and event.ended.startswith(ERROR):
            self.error = event.ended.partition(": ")[2] or event.ended
        elif self.stream.stopped:
            self.finish = "stop"
        elif event.ended is not None:
            piece += self.stream.finish()
            self.finish = event.ended if not self.stream.stopped else "stop"
        return piece, new


def chat_text(choice: Choice, tokenizer: PreTrainedTokenizerBase) -> str:
    """The answer of a chat, which is the answer that an evaluation writes for the same tokens."""
    if choice.stream.stopped:
        return extract_answer(choice.stream.text)
    return extract_answer(str(tokenizer.decode([token.id for token in choice.tokens], skip_special_tokens=True)))


def described(asked: Asked, choice: Choice, domains: Mapping[str, str]) -> dict[str, Any]:
    """The field `lora` of an answer: the adapters that were found, with scores and probabilities, and the adapters that
    were used."""
    composition, found = choice.composition, choice.composition.retrieved
    chances = {} if found is None else dict(zip(found.adapters, found.probabilities, strict=False))
    used = [
        {
            "name": name,
            "domain": domains.get(name, ""),
            "weight": weight,
            "score": composition.scores.get(name),
            "probability": chances.get(name),
        }
        for name, weight in composition.weights.items()
    ]
    lora: dict[str, Any] = {
        "method": asked.name,
        "mode": asked.mode if isinstance(asked.mode, str) else type(asked.mode).__name__,
        "adapters": used if asked.gate is None else [],
    }
    if asked.gate is not None:
        lora |= {"gate": type(asked.gate).__name__, "offered": len(used)}
    if found is not None:
        lora["retrieved"] = hits_of(found.adapters, found.scores, found.probabilities, domains)
    if choice.prompt.truncated_tokens:
        lora["truncated_tokens"] = choice.prompt.truncated_tokens
    return lora


def hits_of(
    names: Sequence[str], scores: Sequence[float], chances: Sequence[float], domains: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The hits of a search, best first, each with its score and its probability (None: not known)."""
    known = list(chances) + [None] * (len(names) - len(chances))
    return [
        {"name": name, "domain": domains.get(name, ""), "score": score, "probability": chance}
        for name, score, chance in zip(names, scores, known, strict=True)
    ]


def token_text(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """The text of one token, special tokens written out."""
    return str(tokenizer.decode([id], skip_special_tokens=False))


def completion_logprobs(
    tokens: Sequence[Token], tokenizer: PreTrainedTokenizerBase, top: int, offset: int
) -> dict[str, Any]:
    """The log-probabilities of a completion's tokens, in nats, in the form of `/v1/completions`.

    Args:
        offset: number of characters before the first token.
    """
    texts = [token_text(tokenizer, token.id) for token in tokens]
    offsets, best = [], []
    for text, token in zip(texts, tokens, strict=True):
        offsets.append(offset)
        offset += len(text)
        pairs: dict[str, float] = {}
        for id, logprob in token.top[:top]:  # the best first: of two tokens with equal texts, the better counts
            pairs.setdefault(token_text(tokenizer, id), logprob)
        if token.logprob is not None:  # the chosen token is always among these tokens
            pairs.setdefault(text, token.logprob)
        best.append(pairs if token.logprob is not None else None)
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": best,
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[Token], tokenizer: PreTrainedTokenizerBase, top: int) -> dict[str, Any]:
    """The log-probabilities of a chat's tokens, in nats, in the form of `/v1/chat/completions`."""

    def one(id: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    return {
        "content": [
            {**one(token.id, token.logprob), "top_logprobs": [one(*pair) for pair in token.top[:top]]}
            for token in tokens
        ],
        "refusal": None,
    }


def usage_of(choices: Sequence[Choice]) -> dict[str, int]:
    """The tokens that were read and made. A prompt with several answers is counted once."""
    prompts = {id(choice.prompt): len(choice.prompt.token_ids) for choice in choices}
    read, made = sum(prompts.values()), sum(len(choice.tokens) for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
