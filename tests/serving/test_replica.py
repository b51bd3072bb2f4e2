"""A replica without Ray, behind the app that lets replicas answer, answers like a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from local_server import CHAT, Listener, LocalServer, chat_body
from starlette.types import Message

from lora_retriever.data.rows import Row
from lora_retriever.experiment.profile import Profile
from lora_retriever.serving.front import Front
from lora_retriever.serving.guard import Guard
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.replica import Replica

pytestmark = pytest.mark.slow


class OneReplica:
    """A replica of this process, with the interface that `Front` uses."""

    def __init__(self, profile: Profile) -> None:
        self.replica = Replica(profile)

    async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        async for part in self.replica.respond(scope, body):
            for message in part:
                yield message


@pytest.fixture(scope="module")
def one(tiny: Profile) -> Iterator[tuple[Listener, OneReplica, list[str]]]:
    replicas, metrics, log = OneReplica(tiny), Metrics(), []
    listener = Listener(Guard(Front(replicas, metrics), (), 2**20, lambda: False, metrics, log.append))
    yield listener, replicas, log
    listener.close()
    replicas.replica.close()


def test_answers_refusals_and_the_log_are_those_of_one_server(
    one: tuple[Listener, OneReplica, list[str]], server: LocalServer, tiny_rows: list[Row]
) -> None:
    listener, replicas, log = one
    replicas.replica.check_health()
    assert listener.client.get("/health").json() == server.client.get("/health").json()
    body = chat_body("mixture", tiny_rows[0].inputs)
    answer, expected = (asked.post(CHAT, **body).json() for asked in (listener, server))
    assert answer["choices"] == expected["choices"] and answer["usage"] == expected["usage"]
    assert '"adapters": [' in log[-1] and '"path": "/v1/chat/completions"' in log[-1]
    events = listener.stream(CHAT, **body)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == expected["choices"][0]["message"]["content"]
    for wrong in (chat_body("nobody", "x"), {"model": "base", "messages": []}):
        refused, other = (asked.post(CHAT, **wrong) for asked in (listener, server))
        assert (refused.status_code, refused.json()) == (other.status_code, other.json())
    assert 'route="/v1/chat/completions",status="404"' in listener.client.get("/metrics").text


def test_a_client_that_hangs_up_frees_its_row_at_the_replica(one: tuple[Listener, OneReplica, list[str]]) -> None:
    listener, replicas, _ = one
    body = {**chat_body("base", "hello"), "max_tokens": 60, "stream": True}
    with listener.client.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())  # and hang up
    engine = replicas.replica.service.engine
    for _ in range(1000):
        if engine.open == 0:
            break
        engine.call(lambda: None).result()
    assert engine.open == 0
