"""A server in this process, for tests and measurements: `LocalServer`, and `Listener` for any app."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from rich.console import Console
from starlette.types import ASGIApp

from lora_retriever.experiment.profile import Profile
from lora_retriever.serving.app import make_app
from lora_retriever.serving.changes import Changing
from lora_retriever.serving.loading import load_service
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.prompts import Prompts
from lora_retriever.serving.state import Serving

CHAT = "/v1/chat/completions"


class Listener:
    """An app that listens at a free port of this machine, in a thread of its own.

    Attributes:
        url: the server's address.
        client: a client of the server.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Listen."""
        config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=120)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The response to a request."""
        return self.client.post(path, json=body)

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, without the last, which must be `[DONE]`."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                raise AssertionError(response.read())
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines[-1] == "[DONE]", lines[-1]
        return [json.loads(line) for line in lines[:-1]]

    def close(self) -> None:
        """End the server."""
        self.client.close()
        self._server.should_exit = True
        self._thread.join()


class LocalServer(Listener):
    """A profile that is served in this process. `log`: the lines of its access log."""

    def __init__(
        self,
        profile: Profile,
        keys: Collection[bytes] = (),
        allows_changes: bool = False,
        results: Path | None = None,
    ) -> None:
        """Load a profile, and listen."""
        metrics = Metrics()
        service = load_service(profile, Console(file=io.StringIO()), metrics.step, results)
        changing = Changing(service) if allows_changes else None
        self.serving = Serving(service, Prompts(service.codec), metrics, changing)
        self.log: list[str] = []
        super().__init__(make_app(self.serving, keys, self.log.append))

    def close(self) -> None:
        """End the server, and free the service."""
        super().close()
        self.serving.service.close()


def chat_body(model: str, text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat of one message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


async def chat(client: httpx.AsyncClient, model: str, text: str, **fields: Any) -> str:
    """The answer to a message.

    Raises:
        AssertionError: the server refuses the request.
    """
    response = await client.post(CHAT, json=chat_body(model, text, **fields))
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])
