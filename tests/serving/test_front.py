"""The app that lets replicas answer: a lost replica costs no request that another replica can answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message

from lora_retriever.serving import front
from lora_retriever.serving.front import ATTEMPTS, NOTED, Front, LostError
from lora_retriever.serving.guard import Guard
from lora_retriever.serving.metrics import Metrics

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


class FailingReplicas:
    """Replicas of which the first `losses` calls are lost after some messages."""

    def __init__(self, losses: int, after: int = 0, headers: Any = ()) -> None:
        self.losses, self.after, self.headers = losses, after, headers
        self.asked: list[tuple[str, bytes]] = []
        self.left = 0  # number of responses that the front gave up

    async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        self.asked.append((scope["path"], body))
        messages: list[Message] = [
            {"type": "http.response.start", "status": 200, "headers": list(self.headers)},
            {"type": "http.response.body", "body": b"one ", "more_body": True},
            {"type": "http.response.body", "body": b"two"},
            {"type": NOTED, "noted": {"model": "mixture"}, "route": "/v1/models"},
        ]
        try:
            for place, message in enumerate(messages):
                if place == self.after and len(self.asked) <= self.losses:
                    raise LostError("killed")
                yield message
        finally:
            self.left += 1


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "PAUSE", 0)


def asked(replicas: FailingReplicas, log: list[str] | None = None) -> httpx.Response:
    guard = Guard(Front(replicas, Metrics()), (), 100, lambda: False, Metrics(), None if log is None else log.append)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as client:
            return await client.post("/v1/models", content=b"the body")

    return asyncio.run(ask())


def test_a_request_of_a_lost_replica_is_given_to_another() -> None:
    log: list[str] = []
    replicas = FailingReplicas(ATTEMPTS - 1)
    response = asked(replicas, log)
    assert response.status_code == 200 and response.text == "one two"
    assert replicas.asked == [("/v1/models", b"the body")] * ATTEMPTS
    assert json.loads(log[0])["model"] == "mixture"


def test_a_request_is_refused_when_replica_after_replica_is_lost() -> None:
    response = asked(FailingReplicas(ATTEMPTS))
    assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == "lost"


def test_a_stream_that_breaks_off_says_so_and_is_not_begun_again() -> None:
    replicas = FailingReplicas(1, after=2, headers=STREAM)
    response = asked(replicas)
    text, error, done = response.text.partition("data: ")[0], *response.text.split("data: ")[1:]
    assert text == "one " and json.loads(error)["error"]["code"] == "lost" and done.strip() == "[DONE]"
    assert len(replicas.asked) == 1


def test_a_response_that_breaks_off_has_no_whole_looking_end() -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        asked(FailingReplicas(1, after=2))


def test_a_client_that_hangs_up_ends_the_replicas_work() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Slow:
        async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
            try:
                begun.set()
                await asyncio.Future()
                yield {}
            finally:
                ended.set()

    async def hang_up() -> None:
        messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b""}]

        async def receive() -> Message:
            if len(messages) == 1:
                await begun.wait()
            return messages.pop()

        scope = {"type": "http", "path": "/v1/models", "method": "GET", "headers": [], "state": {"noted": {}}}
        await Front(Slow(), Metrics())(scope, receive, lambda message: asyncio.sleep(0))

    asyncio.run(asyncio.wait_for(hang_up(), 5))
    assert ended.is_set()
