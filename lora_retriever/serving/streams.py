"""Responses that belong to a running answer: whole or as a stream, and ended early if the client hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lora_retriever.serving.errors import ApiError

Result = TypeVar("Result")


class EventStream(StreamingResponse):
    """A stream of server-sent events. When the stream ends, or if the stream never begins, `held` is closed."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], held: AsyncExitStack) -> None:
        """`events` are sent as JSON, and `[DONE]` after the last event. `held` is closed at the end."""
        super().__init__(_encoded(events))
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._held.aclose()


async def _encoded(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event_of(event)
    except ApiError as error:
        yield event_of(error.body)
    yield b"data: [DONE]\n\n"


def event_of(content: dict[str, Any]) -> bytes:
    """A server-sent event of JSON."""
    return b"data: " + json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives. If the client hangs up meanwhile, the work is cancelled.

    Raises:
        ApiError: the client is gone; nobody reads the response.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(hung_up(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client hung up", code="client_gone")
        return task.result()
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one


async def hung_up(receive: Receive) -> None:
    """Wait until the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
