"""Methods that learn before they answer learn once, beside the requests, and answer as in an evaluation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_server import CHAT, LocalServer, chat_body
from places import TINY
from tiny_runs import QUIET, lines_of, tiny_profile

from lora_retriever.errors import UserError
from lora_retriever.running.evaluate import evaluate
from lora_retriever.serving.learning import Learning
from lora_retriever.serving.loading import load_service

pytestmark = pytest.mark.long
TIME = 120  # seconds; a quiet machine takes a twentieth
QUICK = {
    "lorahub": {"steps": 2, "adapters": 3, "samples": 1},
    "moe_top3": {"samples": 1, "epochs": 1},
    "layerwise": {"samples": 1},
}
TEXT = "please answer this question: what does Karin wear?"


def when_ready(server: LocalServer, model: str, text: str = TEXT) -> httpx.Response:
    """The response once the method has learned."""
    deadline = time.monotonic() + TIME
    while (response := server.post(CHAT, **chat_body(model, text))).status_code == 503:
        assert response.json()["error"]["code"] == "learning" and int(response.headers["retry-after"]) > 0
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return response


def used(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [adapter["name"] for adapter in response.json()["lora"]["adapters"]]


def test_answers_are_those_of_an_evaluation_and_what_it_learned_is_used(tmp_path: Path) -> None:
    profile, results = tiny_profile(tmp_path, options=QUICK, serve={"methods": ["moe_top3"]}), tmp_path / "results"
    methods = ["lorahub", "logo", "layerwise", "moe_top3"]
    evaluate(profile, methods, results, 1, QUIET)
    before = sorted(folder.name for folder in (results / "learned").iterdir())
    server = LocalServer(profile, results=results)
    listed = {model["id"]: model["lora"] for model in server.client.get("/v1/models").json()["data"]}
    assert [listed[method]["ready"] for method in methods] == [False, False, False, True]
    for method in methods:
        for line in lines_of(results, method)[::6]:
            answer = when_ready(server, method, line["inputs"]).json()
            assert answer["choices"][0]["message"]["content"] == line["predicted_answer"], method
    server.close()
    assert sorted(folder.name for folder in (results / "learned").iterdir()) == before


@pytest.fixture
def learning_server(tmp_path: Path) -> Iterator[LocalServer]:
    """A server that has learned nothing, and whose clients may add adapters."""
    shutil.copytree(TINY / "adapters" / "people_qa", tmp_path / "adapters" / "mine")
    profile = tiny_profile(tmp_path, options=QUICK, serve={"adapters": "./adapters"})
    running = LocalServer(profile, allows_changes=True, results=tmp_path / "results")
    yield running
    running.close()


def test_a_changed_pool_is_learned_anew_while_answers_go_on(learning_server: LocalServer) -> None:
    server = learning_server
    first = used(when_ready(server, "nearest_weights"))
    offered = when_ready(server, "layerwise").json()["lora"]["offered"]
    new = {"name": "mine", "samples": [{"inputs": "sing", "targets": "a song"}] * 2}
    assert server.client.post("/v1/adapters", json=new).status_code == 201
    assert server.client.delete(f"/v1/adapters/{first[0]}").status_code == 200
    # No request waits: the methods answer with the old result, without the adapter that was removed.
    response = server.post(CHAT, **chat_body("nearest_weights", TEXT))
    assert used(response) and first[0] not in used(response)
    deadline = time.monotonic() + TIME
    while server.post(CHAT, **chat_body("layerwise", TEXT)).json()["lora"]["offered"] == offered - 1:
        assert time.monotonic() < deadline, "the method did not learn anew"
        time.sleep(0.1)
    answer = server.post(CHAT, **chat_body("layerwise", TEXT)).json()
    assert answer["lora"]["offered"] == offered
    without = server.post(CHAT, **chat_body("nearest_weights", TEXT, lora={"exclude": used(response)}))
    assert used(without) and used(without) != used(response)


def test_a_method_that_cannot_learn_says_why(learning_server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("the samples are gone")

    monkeypatch.setattr(Learning, "_learned", fail)
    deadline = time.monotonic() + TIME
    while (response := learning_server.post(CHAT, **chat_body("lorahub", TEXT))).headers.get("retry-after"):
        assert time.monotonic() < deadline
    error = response.json()["error"]
    assert response.status_code == 503 and error["code"] == "learning_failed" and "are gone" in error["message"]
    refused = learning_server.post(CHAT, **chat_body("lorahub", TEXT, lora={"k": 2}))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "lora.k"


def test_a_method_that_does_not_learn_is_no_method_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"serve.methods: 'mixture' does not learn"):
        load_service(tiny_profile(tmp_path, serve={"methods": ["mixture"]}), QUIET)
