"""The openai package asks the server, and every answer equals the evaluation's answer to the same row."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import openai
import pytest
from local_server import LocalServer
from tiny_runs import lines_of

pytestmark = pytest.mark.slow
AT_ONCE = 32


def test_answers_equal_those_of_an_evaluation(server: LocalServer, paper_runs: Path) -> None:
    """Rows of four methods, 32 at once, in random order, share batches."""
    methods = ("base", "selection", "fusion", "mixture")
    lines = [(method, line) for method in methods for line in lines_of(paper_runs, method)]
    random.Random(0).shuffle(lines)

    async def ask_all() -> list[str | None]:
        room = asyncio.Semaphore(AT_ONCE)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(model: str, text: str) -> str | None:
                async with room:
                    answer = await client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": text}]
                    )
                    return answer.choices[0].message.content

            return await asyncio.gather(*(ask(method, line["inputs"]) for method, line in lines))

    answers = asyncio.run(ask_all())
    differing = [(m, line["id"]) for (m, line), a in zip(lines, answers, strict=True) if a != line["predicted_answer"]]
    assert not differing


def test_the_plain_client_lists_streams_and_reads_log_probabilities(server: LocalServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert "mixture" in {model.id for model in client.models.list()}
        messages = [{"role": "user", "content": "what does Karin wear?"}]
        whole = client.chat.completions.create(
            model="mixture", messages=messages, logprobs=True, top_logprobs=2, extra_body={"lora": {"k": 2}}
        )  # type: ignore[call-overload]
        assert len(whole.lora["adapters"]) == 2
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        stream = client.chat.completions.create(
            model="mixture", messages=messages, stream=True, extra_body={"lora": {"k": 2}}
        )  # type: ignore[call-overload]
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole.choices[0].message.content
        echoed = client.completions.create(model="base", prompt="hello", max_tokens=2, echo=True, logprobs=1)
        assert echoed.choices[0].text.startswith("hello")
        assert echoed.choices[0].logprobs and echoed.choices[0].logprobs.token_logprobs[0] is None
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=messages)  # type: ignore[arg-type]
        assert missing.value.param == "model" and missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="base", messages=messages, temperature=-1)  # type: ignore[arg-type]


def test_a_client_that_hangs_up_frees_its_row(server: LocalServer) -> None:
    engine = server.serving.service.engine
    body = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 60, "stream": True}
    for _ in range(3):
        with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())  # and hang up
    for _ in range(200):
        if engine.open == 0:
            break
        engine.call(lambda: None).result()
    else:
        pytest.fail("rows of clients that are gone are still there")
    assert not server.serving.service.in_use
