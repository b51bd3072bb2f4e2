"""The server on vLLM itself, beside the server on the project's own engine. Skipped where vLLM is not installed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_server import CHAT, LocalServer, chat_body
from places import TINY
from tiny_runs import tiny_profile

from lora_retriever.data.rows import Row

if importlib.util.find_spec("vllm") is None:
    reason = "vLLM is not installed; scripts/backends/test_vllm.sh VENV installs vLLM and runs these tests"
    pytest.skip(reason, allow_module_level=True)
pytestmark = pytest.mark.long

TEXT = "/v1/completions"
MODELS = ("base", "selection", "mixture", "fusion", "people_qa", "people_qa:0.75+city_qa:0.25")
TIME = 180  # seconds; vLLM starts in half a minute


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which clients of the server on vLLM may add adapters."""
    folder = tmp_path_factory.mktemp("vllm") / "adapters"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def servers(server: LocalServer, adapters: Path) -> Iterator[tuple[LocalServer, LocalServer]]:
    """The miniature, served by the project's own engine, and by vLLM."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    profile = tiny_profile(adapters.parent, backend="vllm", serve={"adapters": str(adapters)})
    served = LocalServer(profile, allows_changes=True)
    yield server, served
    served.close()


def answers(server: LocalServer, rows: list[Row], **fields: Any) -> list[list[Any]]:
    """The text, the log-probabilities and the end of each answer to each row under each model, all asked at once."""

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=TIME, limits=limits) as client:
            asked = (client.post(CHAT, json=chat_body(m, row.inputs, **fields)) for row in rows for m in MODELS)
            return list(await asyncio.gather(*asked))

    made = []
    for response in asyncio.run(ask_all()):
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        tokens = choice["logprobs"]["content"] if choice["logprobs"] else []
        logprobs = [token["logprob"] for token in tokens]
        made.append([choice["message"]["content"], logprobs, choice["finish_reason"]])
    return made


def test_answers_of_all_compositions_in_one_batch_are_those_of_the_projects_own_engine(
    servers: tuple[LocalServer, LocalServer], tiny_rows: list[Row]
) -> None:
    rows = tiny_rows[::30]
    assert len({row.task for row in rows}) == len(rows) == 19
    local, served = (answers(server, rows, logprobs=True) for server in servers)
    assert len(local) == 19 * len(MODELS)
    for expected, answer in zip(local, served, strict=True):
        assert [answer[0], answer[2]] == [expected[0], expected[2]]
        assert answer[1] == pytest.approx(expected[1], abs=1e-3)
    assert len({text for text, _, _ in local}) > 40


def test_wishes_of_a_request_count_as_with_the_projects_own_engine(
    servers: tuple[LocalServer, LocalServer], tiny_rows: list[Row]
) -> None:
    rows = tiny_rows[::100]
    for fields in ({"max_tokens": 2}, {"stop": ["e", "t"]}, {"logprobs": True, "top_logprobs": 3}):
        local, served = (answers(server, rows, **fields) for server in servers)
        assert [(text, end) for text, _, end in served] == [(text, end) for text, _, end in local]
    prompt = tiny_rows[0].inputs
    for fields in ({"echo": True, "logprobs": 2, "max_tokens": 0}, {"echo": True, "logprobs": 0, "max_tokens": 3}):
        one, other = (server.post(TEXT, model="mixture", prompt=prompt, **fields).json() for server in servers)
        (expected,), (answer,) = one["choices"], other["choices"]
        assert (answer["text"], answer["finish_reason"]) == (expected["text"], expected["finish_reason"])
        assert answer["logprobs"]["tokens"] == expected["logprobs"]["tokens"]
        found, wanted = (choice["logprobs"]["token_logprobs"] for choice in (answer, expected))
        assert found[0] is wanted[0] is None and found[1:] == pytest.approx(wanted[1:], abs=1e-3)
        tops = zip(answer["logprobs"]["top_logprobs"][1:], expected["logprobs"]["top_logprobs"][1:], strict=True)
        assert all(found == pytest.approx(wanted, abs=1e-3) for found, wanted in tops)


def test_drawn_answers_differ_by_seed_and_a_seed_repeats(
    servers: tuple[LocalServer, LocalServer], tiny_rows: list[Row]
) -> None:
    def drawn(**fields: Any) -> list[str]:
        body = chat_body("mixture", tiny_rows[0].inputs, n=4, temperature=2.0, **fields)
        return [choice["message"]["content"] for choice in servers[1].post(CHAT, **body).json()["choices"]]

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert len(set(drawn())) > 1


def test_a_client_that_hangs_up_frees_its_rows(servers: tuple[LocalServer, LocalServer], tiny_rows: list[Row]) -> None:
    server = servers[1]
    bodies = [chat_body("selection", row.inputs, max_tokens=200, temperature=2.0) for row in tiny_rows[:40]]

    async def hang_up() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            asked = [asyncio.ensure_future(client.post(CHAT, json=body)) for body in bodies]
            await asyncio.sleep(0.3)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(hang_up())
    deadline = time.monotonic() + TIME
    while server.serving.service.engine.open:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.post(CHAT, **chat_body("selection", tiny_rows[0].inputs)).status_code == 200


def test_an_added_adapter_answers_as_the_adapter_that_it_copies(
    servers: tuple[LocalServer, LocalServer], adapters: Path, tiny_rows: list[Row]
) -> None:
    server, text = servers[1], tiny_rows[0].inputs
    shutil.copytree(TINY / "adapters" / "people_qa", adapters / "mine")
    samples = [{"inputs": "sing a song of sixpence", "targets": "a pocket"}] * 2
    assert server.post("/v1/adapters", name="mine", domain="new", samples=samples).status_code == 201
    added, copied = (server.post(CHAT, **chat_body(model, text)).json()["choices"] for model in ("mine", "people_qa"))
    assert added == copied
    assert server.client.delete("/v1/adapters/mine").status_code == 200
    assert server.post(CHAT, **chat_body("mine", text)).status_code == 404


def living(group: int) -> list[int]:
    """The processes of a group, without those that have ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


def test_sigterm_finishes_what_runs_and_leaves_no_process(tiny_rows: list[Row]) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lora_retriever", "serve", "--backend", "vllm", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIME) as client:
            deadline = time.monotonic() + TIME
            while True:
                try:
                    assert client.get("/health").status_code == 200
                    break
                except httpx.TransportError:
                    assert server.poll() is None and time.monotonic() < deadline
                    time.sleep(0.5)
            with client.stream("POST", CHAT, json=chat_body("mixture", tiny_rows[0].inputs, stream=True)) as response:
                events = response.iter_lines()
                assert next(events).startswith("data: ")
                server.send_signal(signal.SIGTERM)
                assert [line for line in events if line][-1] == "data: [DONE]"
        assert server.wait(TIME) == 0
        deadline = time.monotonic() + TIME
        while living(server.pid):  # Python's own process that watches semaphores ends a moment later
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for process in living(server.pid):
            os.kill(process, signal.SIGKILL)
