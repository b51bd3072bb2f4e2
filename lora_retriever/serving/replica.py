"""`Replica`: a service and its app, without a port: requests come as calls, and responses go as messages."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from starlette.types import Message

from lora_retriever.experiment.profile import Profile
from lora_retriever.serving.app import make_app
from lora_retriever.serving.front import NOTED
from lora_retriever.serving.loading import load_service
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.prompts import Prompts
from lora_retriever.serving.state import Serving


class Replica:
    """One replica. `service`: what answers."""

    def __init__(self, profile: Profile, results: Path | None = None) -> None:
        """Load the profile. `results`: as for `load_service`.

        Raises:
            UserError: something cannot be loaded.
        """
        metrics = Metrics()
        self.service = load_service(profile, Console(file=io.StringIO()), metrics.step, results)
        self._app = make_app(Serving(self.service, Prompts(self.service.codec), metrics))

    async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
        """The messages of a response, in parts: all that are ready. The last is of the type `NOTED`."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return request.pop() if request else await asyncio.Future()  # the client is there until a cancellation

        async def run() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        running = asyncio.ensure_future(run())
        try:
            ended = False
            while not ended:
                ready = [await messages.get()]
                while not messages.empty():
                    ready.append(messages.get_nowait())
                ended = ready[-1] is None
                if part := [message for message in ready if message is not None]:
                    yield part
            await running
            route = getattr(scope.get("route"), "path", "other")
            yield [{"type": NOTED, "noted": scope["state"]["noted"], "route": route}]
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running

    def check_health(self) -> None:
        """Check that the device works. Ray Serve asks every few seconds, and starts a replica again that fails.

        Raises:
            RuntimeError: the device is broken.
        """
        if self.service.engine.broken is not None:
            raise RuntimeError(self.service.engine.broken)

    def close(self) -> None:
        """End the service."""
        self.service.close()
