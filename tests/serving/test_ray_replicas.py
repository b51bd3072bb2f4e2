"""Replicas of Ray Serve answer like one server, and the death of a replica costs no request its answer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_server import CHAT, Listener, LocalServer, chat_body
from tiny_runs import tiny_profile

from lora_retriever.data.rows import Row
from lora_retriever.serving.front import Front
from lora_retriever.serving.guard import Guard
from lora_retriever.serving.metrics import Metrics

pytest.importorskip("ray", reason="the ray extra is not installed")
pytest.importorskip("ray.serve", reason="the ray extra is not installed")
from clusters import small_cluster

from lora_retriever.serving.ray_replicas import replicas_of

pytestmark = pytest.mark.long
TIME = 180  # seconds; a quiet machine takes a tenth


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """Two replicas of the miniature, and the app in front of the replicas."""
    profile = tiny_profile(tmp_path_factory.mktemp("ray"), backend="ray", ray={"workers": 2, "cpus": 0.4}, threads=1)
    with small_cluster(), replicas_of(profile) as (found, count):
        assert count == 2
        metrics = Metrics()
        listener = Listener(Guard(Front(found, metrics), (), 2**20, lambda: False, metrics, None))
        yield listener
        listener.close()


def content_of(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def processes() -> list[int]:
    """The process ids of the replicas."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::ServeReplica:lora-retriever"):
            found.append(int(folder.name))
    return found


def test_answers_and_refusals_are_those_of_one_server(
    replicas: Listener, server: LocalServer, tiny_rows: list[Row]
) -> None:
    assert replicas.client.get("/health").json() == server.client.get("/health").json()
    for row in tiny_rows[::150]:
        body = chat_body("mixture", row.inputs)
        one, other = (asked.post(CHAT, **body).json() for asked in (replicas, server))
        assert one["choices"] == other["choices"] and one["usage"] == other["usage"]
        used, expected = ([adapter["name"] for adapter in answer["lora"]["adapters"]] for answer in (one, other))
        assert used == expected
    message = [{"role": "user", "content": tiny_rows[0].inputs}]
    events = replicas.stream(CHAT, model="mixture", messages=message)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == content_of(server.post(CHAT, model="mixture", messages=message))
    for wrong in ({"model": "nobody", "messages": message}, {"model": "base", "messages": []}):
        one, other = (asked.post(CHAT, **wrong) for asked in (replicas, server))
        assert (one.status_code, one.json()) == (other.status_code, other.json())
    assert b"requests_total" in replicas.client.get("/metrics").content


def test_a_replica_that_is_killed_is_replaced_and_its_requests_are_answered(
    replicas: Listener, server: LocalServer, tiny_rows: list[Row]
) -> None:
    texts = [row.inputs for row in tiny_rows[::19]]
    expected = [content_of(server.post(CHAT, **chat_body("selection", text))) for text in texts]
    before = processes()
    assert len(before) == 2

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=replicas.url, timeout=TIME) as client:
            asked = [asyncio.ensure_future(client.post(CHAT, json=chat_body("selection", text))) for text in texts]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            os.kill(before[0], signal.SIGKILL)
            return list(await asyncio.gather(*asked))

    responses = asyncio.run(ask_all())
    assert all(response.status_code == 200 for response in responses), {r.text for r in responses if r.is_error}
    assert list(map(content_of, responses)) == expected
    deadline = time.monotonic() + TIME
    while before[0] in (now := processes()) or len(now) != 2:
        assert time.monotonic() < deadline, "the replica was not replaced"
        time.sleep(0.5)
