"""`Front`: an app that lets replicas of the server answer. This module does not know where the replicas are.

A request that a lost replica was answering is given to another replica, as long as the client has seen nothing of the
answer. Every request may be given twice, because a server with replicas takes no changes of the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from types import SimpleNamespace
from typing import Any, Protocol

from starlette.types import Message, Receive, Scope, Send

from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.streams import event_of, hung_up

ATTEMPTS = 3
"""Maximum number of replicas to which a request is given if one replica after another is lost."""
PAUSE = 0.5
"""Time before a request is given to another replica, in seconds."""
PASSED = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
)
"""The parts of a request's scope that a replica is given."""
NOTED = "lora-retriever.noted"
"""The type of a replica's last message, which has the request's entry for the access log."""


class LostError(Exception):
    """The replica that answered is gone."""


class Replicas(Protocol):
    """Anything that answers requests."""

    def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The messages of a response, and a message of the type `NOTED` at the end.

        Raises:
            LostError: the replica is gone.
            ApiError: there is no room for the request.
        """
        ...


class Front:
    """The app. `ending`: whether the server takes no more requests."""

    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self.ending = False
        self._replicas = replicas
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. If the client hangs up, the replica is told."""
        if scope["path"] == "/metrics":  # the numbers of this process; Ray shows the numbers of the replicas
            await self._metrics.response()(scope, receive, send)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answering = asyncio.ensure_future(self._answer(scope, body, send))
        gone = asyncio.ensure_future(hung_up(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        began = streams = False
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE)
            try:
                asked = {part: scope[part] for part in PASSED if part in scope}
                async with aclosing(self._replicas.respond(asked, body)) as messages:  # type: ignore[type-var]
                    async for message in messages:
                        if message["type"] == NOTED:
                            scope["state"]["noted"].update(message["noted"])
                            scope["route"] = SimpleNamespace(path=message["route"])
                            continue
                        began = True
                        if message["type"] == "http.response.start":
                            streams = any(b"text/event-stream" in value for _, value in message["headers"])
                        await send(message)
                return
            except LostError:
                if began:
                    break
        lost = ApiError(
            503, "the replica that answered was lost; send the request again", code="lost", headers={"Retry-After": "5"}
        )
        if not began:
            raise lost
        if not streams:
            raise RuntimeError("a replica was lost in the middle of a response")
        await send({"type": "http.response.body", "body": event_of(lost.body) + b"data: [DONE]\n\n"})
