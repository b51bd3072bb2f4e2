"""Completions and chats in OpenAI's form: the fields, the streams, and the refused requests."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from local_server import LocalServer

from lora_retriever.data.rows import Row

pytestmark = pytest.mark.slow

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def chat(server: LocalServer, text: str, model: str = "mixture", **fields: Any) -> dict[str, Any]:
    response = server.post(CHAT, model=model, messages=[{"role": "user", "content": text}], **fields)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def content_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_a_chat_is_answered_and_says_with_which_adapters(server: LocalServer, tiny_rows: list[Row]) -> None:
    answer = chat(server, tiny_rows[0].inputs)
    assert answer["object"] == "chat.completion" and answer["model"] == "mixture"
    lora = answer["lora"]
    assert lora["method"] == "mixture" and len(lora["adapters"]) == 3 and len(lora["retrieved"]) == 8
    assert sum(adapter["weight"] for adapter in lora["adapters"]) == pytest.approx(1)
    assert lora["retrieved"][0]["name"] == lora["adapters"][0]["name"]
    assert all(0 <= hit["probability"] <= 1 for hit in lora["retrieved"])
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_gives_the_same_text_in_pieces(server: LocalServer, tiny_rows: list[Row]) -> None:
    for row in tiny_rows[::80]:
        message = [{"role": "user", "content": row.inputs}]
        events = server.stream(CHAT, model="fusion", messages=message, stream_options={"include_usage": True})
        pieces = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
        whole = chat(server, row.inputs, "fusion")
        assert "".join(pieces) == content_of(whole)
        assert events[0]["lora"] == whole["lora"]
        assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]


def test_models_are_methods_adapters_and_compositions(server: LocalServer, tiny_rows: list[Row]) -> None:
    listed = {model["id"]: model["lora"]["kind"] for model in server.client.get("/v1/models").json()["data"]}
    assert listed["mixture"] == listed["arrow"] == "method" and "best_selection" not in listed
    adapters = [name for name, kind in listed.items() if kind == "adapter"]
    assert len(adapters) == 19
    first, second = adapters[:2]
    text = tiny_rows[0].inputs
    assert chat(server, text, first)["lora"]["adapters"][0]["name"] == first
    written = chat(server, text, f"{first}:0.75+{second}:0.25")
    given = chat(server, text, "mixture", lora={"adapters": {first: 0.75, second: 0.25}})
    assert content_of(written) == content_of(given)
    assert {one["name"]: one["weight"] for one in written["lora"]["adapters"]} == {first: 0.75, second: 0.25}
    assert server.client.get(f"/v1/models/{first}").json()["id"] == first


@pytest.mark.parametrize("model", ["base", "calibrated", "arrow", "uniform", "lorauter", "adaptersoup", "ties"])
def test_every_kind_of_method_answers(server: LocalServer, tiny_rows: list[Row], model: str) -> None:
    assert chat(server, tiny_rows[5].inputs, model)["lora"]["method"] == model


def test_wishes_change_what_is_found(server: LocalServer, tiny_rows: list[Row]) -> None:
    text = tiny_rows[0].inputs
    best = chat(server, text)["lora"]["retrieved"][0]["name"]
    wished = chat(server, text, lora={"k": 5, "exclude": [best], "scorer": "nearest", "temperature": 0.5})["lora"]
    assert len(wished["adapters"]) == 5
    assert best not in {hit["name"] for hit in wished["retrieved"]}
    weights = [adapter["weight"] for adapter in wished["adapters"]]
    assert weights == sorted(weights, reverse=True) and weights[0] > weights[-1]


def test_a_completion_goes_on_with_its_prompt(server: LocalServer, tiny_rows: list[Row]) -> None:
    template = server.serving.service.codec.settings.template_text
    prompt = template.replace("{inputs}", tiny_rows[0].inputs)
    answer = server.post(TEXT, model="mixture", prompt=prompt, echo=True, max_tokens=24).json()
    assert answer["choices"][0]["text"].startswith(prompt)
    assert answer["choices"][0]["text"].removeprefix(prompt).strip() == content_of(chat(server, tiny_rows[0].inputs))
    tokens = server.serving.prompts.of_completion(prompt).token_ids
    again = server.post(TEXT, model="mixture", prompt=[tokens, tokens], max_tokens=24).json()
    assert [prompt + choice["text"] for choice in again["choices"]] == [answer["choices"][0]["text"]] * 2
    assert again["choices"][1]["lora"] == answer["lora"]


def test_stop_texts_end_an_answer_and_are_not_part_of_it(server: LocalServer, tiny_rows: list[Row]) -> None:
    row = next(row for row in tiny_rows if row.task == "event_text")  # with answers of nine words
    whole = content_of(chat(server, row.inputs, "selection"))
    stop = whole.split()[2]
    expected = whole[: whole.index(stop)].strip()
    stopped = chat(server, row.inputs, "selection", stop=[stop, "never"])
    assert content_of(stopped) == expected and stopped["choices"][0]["finish_reason"] == "stop"
    message = [{"role": "user", "content": row.inputs}]
    events = server.stream(CHAT, model="selection", messages=message, stop=stop)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == expected


def test_several_answers_differ_by_seed_and_a_seed_repeats(server: LocalServer, tiny_rows: list[Row]) -> None:
    def drawn(**fields: Any) -> list[str]:
        answer = chat(server, tiny_rows[0].inputs, "base", n=4, temperature=5.0, **fields)
        return [choice["message"]["content"] for choice in answer["choices"]]

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert len(set(drawn(seed=1))) > 1


def test_log_probabilities_of_a_chat_are_those_of_its_tokens(server: LocalServer, tiny_rows: list[Row]) -> None:
    answer = chat(server, tiny_rows[0].inputs, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for token in content:
        best = [other["logprob"] for other in token["top_logprobs"]]
        assert len(best) == 3 and best == sorted(best, reverse=True)
        assert token["logprob"] == pytest.approx(best[0], abs=1e-5)  # greedy


def test_echoed_log_probabilities_agree_with_those_of_generation(server: LocalServer, tiny_rows: list[Row]) -> None:
    prompt = tiny_rows[0].inputs
    made = server.post(TEXT, model="mixture", prompt=prompt, max_tokens=4, logprobs=1).json()["choices"][0]
    tokens = server.serving.prompts.of_completion(prompt).token_ids
    names = [hit["name"] for hit in server.post("/v1/retrieve", input=prompt, k=3).json()["data"][0]["adapters"]]
    model = "+".join(f"{name}:{1 / 3}" for name in names)
    ids = server.serving.service.codec.tokenizer(made["text"], add_special_tokens=False).input_ids
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
    echoed = server.post(TEXT, model=model, prompt=[*tokens, *ids], **fields).json()["choices"][0]["logprobs"]
    assert echoed["token_logprobs"][0] is None and echoed["top_logprobs"][0] is None
    if len(ids) == len(made["logprobs"]["token_logprobs"]):
        assert echoed["token_logprobs"][len(tokens) :] == pytest.approx(made["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"model": "nobody"}, "model", 404),
        ({"model": "a:1+b"}, "model", 404),
        ({"model": None}, "model", 400),
        ({"messages": []}, "messages", 400),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, 400),
        ({"temprature": 1}, "temprature", 400),
        ({"temperature": "1"}, "temperature", 400),
        ({"temperature": -1}, "temperature", 400),
        ({"max_tokens": 10**6}, "max_tokens", 400),
        ({"n": 1000}, "n", 400),
        ({"tools": [{"type": "function"}]}, None, 400),
        ({"lora": {"k": 100}}, "lora.k", 400),
        ({"lora": {"scorer": "os:system"}}, "lora.scorer", 400),
        ({"lora": {"exclude": ["nobody"]}}, "lora.exclude", 400),
        ({"lora": {"adapters": {"nobody": 1.0}}}, "lora.adapters", 400),
        ({"lora": {"kk": 1}}, "lora.kk", 400),
        ({"model": "selection", "lora": {"k": 2}}, "lora.k", 400),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_form(
    server: LocalServer, fields: dict[str, Any], param: str | None, status: int
) -> None:
    body = {"model": "mixture", "messages": [{"role": "user", "content": "hello"}], **fields}
    response = server.post(CHAT, **body)
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert error["message"] and error["type"] in ("invalid_request_error", "not_found_error")
    assert param is None or error["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"model": "\\ud800", "messages": []}', b"[" * 5000, b"\xff\xfe"])
def test_malformed_bodies_are_no_fault_of_the_server(server: LocalServer, body: bytes) -> None:
    response = server.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (b'"model": "base", "model": "mixture"', "field 'model' is there more than once"),
        (b'"model": "base", "lora": {"k": 1, "k": 2}', "field 'k' is there more than once"),
        (b'"model": "base", "seed": ' + b"7" * 5000, "a number of 5,000 digits"),
        (b'"model": ' + b"[" * 90_000 + b"]" * 90_000, "nested too deeply"),
    ],
)
def test_a_body_that_could_mean_two_things_is_refused(server: LocalServer, part: bytes, reason: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "hello"}], ' + part + b"}"
    response = server.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]


def test_a_full_queue_and_a_request_that_takes_too_long(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service, body = server.serving.service, {"model": "base", "messages": [{"role": "user", "content": "hello"}]}
    with monkeypatch.context() as patch:
        patch.setattr(service.engine, "_limit", 0)
        full = server.post(CHAT, **body)
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
    hasty = service.profile.serve.model_copy(update={"seconds": 1e-9})
    monkeypatch.setattr(service, "profile", service.profile.model_copy(update={"serve": hasty}))
    late = server.post(CHAT, **body)
    assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
    service.engine.call(lambda: None).result()
    assert service.engine.open == 0


def test_harmless_fields_of_openai_are_taken(server: LocalServer) -> None:
    fields: dict[str, Any] = {"user": "me", "presence_penalty": 0, "tools": [], "response_format": {"type": "text"}}
    chat(server, "hello", max_tokens=1, **fields)
    refused = server.post(CHAT, model="base", messages=[{"role": "user", "content": "hello"}], presence_penalty=1)
    assert refused.status_code == 400


def test_retrieve_finds_adapters_without_answers(server: LocalServer, tiny_rows: list[Row]) -> None:
    texts = [row.inputs for row in tiny_rows[:3]]
    found = server.post("/v1/retrieve", input=texts, k=4).json()
    assert [len(one["adapters"]) for one in found["data"]] == [4, 4, 4]
    assert 0 <= found["data"][0]["presence"] <= 1
    best = found["data"][0]["adapters"][0]["name"]
    without = server.post("/v1/retrieve", input=texts[0], k=18, exclude=[best]).json()["data"][0]["adapters"]
    assert best not in {hit["name"] for hit in without}
    assert server.post("/v1/retrieve", input=texts[0], k=19, exclude=[best]).status_code == 400


def test_health_metrics_and_the_log_tell_of_requests_and_show_no_text(server: LocalServer) -> None:
    chat(server, "a secret text", max_tokens=1)
    assert server.client.get("/health").json()["status"] == "ready"
    metrics = server.client.get("/metrics").text
    assert 'lora_retriever_requests_total{route="/v1/chat/completions",status="200"}' in metrics
    assert "lora_retriever_answer_tokens_total" in metrics
    if sys.platform == "linux":
        assert "process_cpu_seconds_total" in metrics
    assert '"path": "/v1/chat/completions"' in server.log[-1] and '"adapters"' in server.log[-1]
    assert not any("secret" in line for line in server.log)
