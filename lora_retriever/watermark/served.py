"""A suspect behind OpenAI's interface: a server that somebody else started. The server sees ordinary requests only."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import numpy as np
from numpy.typing import NDArray

from lora_retriever.errors import UserError
from lora_retriever.watermark.suspects import ANSWER_TOKENS, Replies, first_word

Interface = Literal["chat", "completions"]
KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the server's password, if the server wants a password."""
SECONDS = 120.0
"""Maximum time of one request, in seconds."""
ATTEMPTS = 4
"""Maximum number of times that one request is made: a server may be busy, or starting."""
LONGEST_WAIT = 30.0
"""Maximum time between two attempts, in seconds."""
ALTERNATIVES = 20
"""Number of best tokens whose log-probabilities are asked for: the most that OpenAI's interface gives."""


class ServedSuspect:
    """A model of a server.

    Attributes:
        name: the model's name at the server.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        interface: Interface = "chat",
        template: str = "{inputs}",
        log_probabilities: bool = False,
    ) -> None:
        """Find the model.

        Args:
            url: address of the server, with or without `/v1`.
            model: the model's name. None: the first of the server's list.
            interface: `chat`: the input is the user's message, and the server makes the prompt. `completions`: the
                prompt is made here, of `template`.
            log_probabilities: whether log-probabilities of the best tokens are asked for. Some servers refuse.

        Raises:
            UserError: the server does not answer, or lists no model.
        """
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._interface, self._template = interface, template
        self._log_probabilities = log_probabilities
        password = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {password}"} if password else {}
        self._client = httpx.Client(timeout=SECONDS, headers=headers)
        self.name = self._first_model() if model is None else model

    def replies(self, inputs: Sequence[str], words: Sequence[str]) -> Replies:
        """The answers, one request each, and the log-probabilities of the words among the best tokens if asked for."""
        texts, scores = [], np.full((len(inputs), len(words)), -np.inf)
        shown = self._log_probabilities
        for row, text in enumerate(inputs):
            choice = self._asked(text)
            texts.append(self._text(choice))
            best = best_tokens(choice)
            shown = shown and best is not None
            if best is not None:
                scores[row] = scores_of(best, words)
        return Replies(texts, scores if shown else None)

    def _first_model(self) -> str:
        content = self._request("GET", "/models")
        try:
            return str(content["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}/models: lists no model; name one with --model") from error

    def _asked(self, text: str) -> Any:
        """The first choice of the server's answer to one input."""
        body: dict[str, Any] = {"model": self.name, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        if self._interface == "chat":
            body["messages"] = [{"role": "user", "content": text}]
            path, more = "/chat/completions", {"logprobs": True, "top_logprobs": ALTERNATIVES}
        else:
            body["prompt"] = self._template.replace("{inputs}", text)
            path, more = "/completions", {"logprobs": ALTERNATIVES}
        content = self._request("POST", path, body | (more if self._log_probabilities else {}))
        try:
            return content["choices"][0]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}{path}: the answer has no choices; is this OpenAI's interface?") from error

    def _text(self, choice: Any) -> str:
        try:
            text = choice["message"]["content"] if self._interface == "chat" else choice["text"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{self._url}: an answer has no text; is this OpenAI's interface?") from error
        return str(text or "")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers with. A message of an error shows no part of the request."""
        reason = ""
        for attempt in range(ATTEMPTS):
            with self._reported(path):
                response = self._client.request(method, self._url + path, json=body)
            if response.is_success:
                try:
                    return response.json()
                except ValueError as error:
                    raise UserError(f"{self._url}{path}: the answer is no JSON; is this OpenAI's interface?") from error
            reason = f"status {response.status_code}"
            if (response.status_code != 429 and response.status_code < 500) or attempt + 1 == ATTEMPTS:
                break
            time.sleep(wait_of(response, attempt))
        raise UserError(f"{self._url}{path}: {reason}; look at the server's log, at --model and at {KEY_VARIABLE}")

    @contextmanager
    def _reported(self, path: str) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise UserError(f"{self._url}{path}: no answer ({reason}); does the server run at this address?") from error


def wait_of(response: httpx.Response, attempt: int) -> float:
    """Seconds until the next attempt: the number that the server states, or 1, 2, 4 …; at most `LONGEST_WAIT`."""
    try:
        asked = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        asked = 2.0**attempt
    return min(max(asked, 0.0), LONGEST_WAIT)


def best_tokens(choice: Any) -> list[tuple[str, float]] | None:
    """The best first tokens of an answer with their log-probabilities, in nats.

    None: the server shows none, or shows NaN, which has no rank.
    """
    shown: Any = choice.get("logprobs") if isinstance(choice, dict) else None
    try:
        if "content" in shown:
            best = [(entry["token"], float(entry["logprob"])) for entry in shown["content"][0]["top_logprobs"]]
        else:
            best = [(token, float(value)) for token, value in shown["top_logprobs"][0].items()]
        return None if any(math.isnan(value) for _, value in best) else best
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def scores_of(best: Sequence[tuple[str, float]], words: Sequence[str]) -> NDArray[np.float64]:
    """The log-probability of each word [M], −inf for words that are none of the tokens shown.

    Words that are not shown share the last rank, so the p-value of the ranks still holds.
    """
    by_word: dict[str, float] = {}
    for token, value in best:
        word = first_word(token)
        by_word[word] = max(value, by_word.get(word, -np.inf))
    return np.array([by_word.get(word, -np.inf) for word in words])
