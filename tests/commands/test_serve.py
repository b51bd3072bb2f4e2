"""`serve` and `ask`, called as by a user: messages, signals, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from nasty_names import NASTY_NAMES

from lora_retriever.cli import main
from lora_retriever.commands.ask import _bars
from lora_retriever.escaping import visible
from lora_retriever.serving import server

INPUT = "please answer this question: what does Karin wear?"


def test_arguments_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--allow-changes"]) == 2
    assert "--api-key-file" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another" in capsys.readouterr().err


def test_who_reads_ready_can_connect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The address is printed before uvicorn begins to listen by itself."""

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        assert "ready: http://127.0.0.1" in capsys.readouterr().err
        socket.create_connection(sockets[0].getsockname(), timeout=5).close()

    monkeypatch.setitem(server.APPS, "local", lambda *given: nullcontext((None, SimpleNamespace(ending=False), "all")))
    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "--port", "0"]) == 0


@pytest.mark.slow
def test_ask_shows_adapters_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", INPUT, "--method", "base,mixture,people_qa", "--k", "2", "--json"]) == 0
    answers = {answer["method"]: answer for answer in json.loads(capsys.readouterr().out)["answers"]}
    assert len(answers["mixture"]["lora"]["adapters"]) == 2 and not answers["base"]["lora"]["adapters"]
    assert answers["people_qa"]["answer"]
    assert main(["ask", INPUT, "--method", "selection,arrow"]) == 0
    shown = capsys.readouterr().out
    assert "adapters found" in shown and " %" in shown and "selection  (" in shown and "19 of 19 adapters" in shown
    assert main(["ask", INPUT, "--method", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["M\udcfcller"], "TEXT: has half of a surrogate pair, \\udcfc, at character 2"),  # a byte of Latin-1
        (["x", "--k", "99999"], "--k: Input should be less than or equal to 1024"),
        (["x", "--exclude", "\udcfc"], "--exclude.0: has half of a surrogate pair"),
    ],
)
def test_an_unusable_question_is_refused_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_retriever.serving.loading.load_service", None)
    assert main(["ask", *arguments]) == 2
    assert f"lora-retriever: {message}" in capsys.readouterr().err


def test_names_of_adapters_do_nothing_to_a_terminal() -> None:
    hits = [{"name": name, "domain": name, "probability": 0.5, "score": 1.0} for name in NASTY_NAMES]
    lines = _bars(hits)
    assert len(lines) == len(NASTY_NAMES) and all(visible(line) == line for line in lines)


@pytest.mark.slow
def test_a_signal_lets_a_running_answer_end_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: dict[str, Any] = {}
    ended = threading.Event()

    def ask() -> None:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        body = {"model": "base", "messages": [{"role": "user", "content": INPUT}], "stream": True, "max_tokens": 100}
        try:
            while not ended.is_set():
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                os.kill(os.getpid(), signal.SIGTERM)
                found["last"] = [line for line in lines if line][-1]
            try:
                found["refused"] = client.get("/v1/models").status_code
            except httpx.TransportError:
                found["refused"] = "no connection"
        finally:
            if "last" not in found and not ended.is_set():  # the test has failed, but the server must end
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    status = main(["serve", "--port", str(port)])
    ended.set()
    thread.join()
    assert status == 0
    assert found["last"] == "data: [DONE]" and found["refused"] in (503, "no connection")
    said = capsys.readouterr()
    assert "ready: http://127.0.0.1" in said.err and '"path": "/v1/chat/completions"' in said.out
