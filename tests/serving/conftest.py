"""A server of the miniature in this process, which all tests of a file share."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tiny_runs import QUIET, tiny_profile

from lora_retriever.experiment.profile import Profile
from lora_retriever.serving.app import make_app
from lora_retriever.serving.changes import Changing
from lora_retriever.serving.loading import load_service
from lora_retriever.serving.metrics import Metrics
from lora_retriever.serving.prompts import Prompts
from lora_retriever.serving.state import Serving


class Running:
    """A server that listens.

    Attributes:
        url: where it listens.
        log: the lines of its access log.
    """

    def __init__(self, profile: Profile, keys: frozenset[bytes] = frozenset(), allows_changes: bool = False) -> None:
        metrics = Metrics()
        service = load_service(profile, QUIET, metrics.step)
        changing = Changing(service) if allows_changes else None
        self.serving = Serving(service, Prompts(service.generator), metrics, changing)
        self.log: list[str] = []
        app = make_app(self.serving, keys, self.log.append)
        config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream. The last one must be [DONE]."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join()
        self.serving.service.close()


@pytest.fixture(scope="session")
def server(tiny: Profile) -> Iterator[Running]:
    """The miniature, served. Tests change nothing of it."""
    running = Running(tiny)
    yield running
    running.close()


@pytest.fixture
def changing_server(tmp_path: Path) -> Iterator[Running]:
    """A server whose clients may add adapters from the folder `adapters` of the test's own folder."""
    (tmp_path / "adapters").mkdir()
    running = Running(tiny_profile(tmp_path, serve={"adapters": "./adapters"}), allows_changes=True)
    yield running
    running.close()
