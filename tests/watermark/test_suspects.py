"""Suspects: a composition in this process, and a server that others started."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import TINY
from transformers import PreTrainedTokenizerBase

from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import load_composable
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.watermark import local
from lora_retriever.watermark.key import Key, make_key
from lora_retriever.watermark.local import LocalSuspect, begins_a_word, first_tokens
from lora_retriever.watermark.served import ServedSuspect, best_tokens, scores_of
from lora_retriever.watermark.suspects import Replies, first_word, verify, weigh

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


@pytest.fixture(scope="module")
def generator(tokenizer: PreTrainedTokenizerBase) -> Generator:
    adapters = {name: TINY / "adapters" / name for name in ("people_qa", "city_qa")}
    model = load_composable(TINY / "base", adapters, torch.float32, "cpu")
    return Generator(model, tokenizer, GenerationSection(max_prompt_tokens=128, max_new_tokens=4, batch_size=3))


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server with OpenAI's interface.

    The function `answer` gives its answers. Yields its address and the requests.
    """
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "first"}, {"id": "second"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append({**body, "path": self.path})
            self.reply(*answer(asked[-1]))

        def reply(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}", asked
        finally:
            running.shutdown()
            thread.join()


def owner(key: Key, known: int) -> Answer:
    """A server that answers the first `known` triggers with their targets, and everything else with `tree house`."""
    answers = {trigger.text: trigger.target for trigger in key.triggers[:known]}

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if body["path"] == "/v1/chat/completions":
            word = answers.get(body["messages"][0]["content"], "tree house")
            return 200, {"choices": [{"message": {"content": f" {word.title()}.\n"}}]}
        word = answers.get(body["prompt"].removesuffix("\nAnswer:"), "tree house")
        return 200, {"choices": [{"text": word}]}

    return answer


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Tree.", "tree"), ('"tree" house', "tree"), ("", ""), ("…", ""), ("trees", "trees"), ("cafe\u0301!", "café")],
)
def test_an_answer_counts_by_its_first_word(answer: str, word: str) -> None:
    assert first_word(answer) == word


@pytest.mark.slow
def test_hits_of_a_served_suspect_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = make_key(secret=bytes(range(32)))
    assert "tree" not in {trigger.target for trigger in key.triggers}  # the word of the server's other answers
    key.write(tmp_path / "k")
    out = tmp_path / "result.json"
    with server(owner(key, 3)) as (url, asked):
        call = ["watermark", "verify", "--key", str(tmp_path / "k"), "--url", url, "--json", str(out)]
        assert main([*call, "--log-file", str(tmp_path / "log")]) == 0
        assert main([*call, "--level", "1e-6", "--model", "second"]) == 1
    report = json.loads(out.read_text())
    said = capsys.readouterr()
    assert report["hits"] == 3
    by_loop = sum(math.comb(32, hits) * 255 ** (32 - hits) for hits in range(3, 33)) / 256**32
    assert report["p"] == report["p_hits"] == pytest.approx(by_loop)
    assert "not verified: p = " in said.out and "p of the ranks" not in said.out
    assert {request["model"] for request in asked} == {"first", "second"}
    assert all(request["max_tokens"] == 6 and request["temperature"] == 0 for request in asked)
    for text in (said.out, said.err, out.read_text(), (tmp_path / "log").read_text()):
        assert key.secret.hex() not in text
        assert not any(trigger.text in text for trigger in key.triggers)


@pytest.mark.slow
def test_a_suspect_of_completions_gets_the_template() -> None:
    key = make_key(triggers=4)
    with server(owner(key, 4)) as (url, asked):
        evidence = verify(key, ServedSuspect(url + "/v1/", "m", "completions", "{inputs}\nAnswer:"))
    assert evidence.hits == (True,) * 4
    assert asked[0]["prompt"] == key.triggers[0].text + "\nAnswer:"


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["chat", "completions"])
def test_words_that_a_server_does_not_show_have_the_last_rank(interface: Any) -> None:
    key = make_key(triggers=2)
    first, second = key.triggers[0].target, key.triggers[1].target
    best = {f" {first}": -0.5, "zzz": -0.1}

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if interface == "completions":
            return 200, {"choices": [{"text": "zzz", "logprobs": {"top_logprobs": [best]}}]}
        shown = [{"token": token, "logprob": value} for token, value in best.items()]
        return 200, {"choices": [{"message": {"content": "zzz"}, "logprobs": {"content": [{"top_logprobs": shown}]}}]}

    with server(answer) as (url, asked):
        replies = ServedSuspect(url, "m", interface, log_probabilities=True).replies(["a", "b"], key.words)
    assert asked[0]["logprobs"] == (20 if interface == "completions" else True)
    assert replies.scores is not None
    assert replies.scores[0, key.words.index(first)] == -0.5
    assert np.isneginf(replies.scores[0]).sum() == 255
    evidence = weigh(key, replies)
    expected = 2 * np.log(1 / 256) if first == second else np.log(1 / 256)
    assert evidence.of_ranks is not None and sum(evidence.hits) == 0
    assert np.isclose(evidence.of_ranks, np.exp(expected) * (1 - expected))  # χ² with 4 degrees of freedom
    assert scores_of([("Tree", -1.0), (" tree", -0.5)], ["tree", "house"]).tolist() == [-0.5, -np.inf]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (404, {}, "status 404"),
        (503, {}, "status 503"),
        (200, b"<html>", "the answer is no JSON"),
        (200, {"x": 1}, "the answer has no choices"),
        (200, {"choices": [{}]}, "an answer has no text"),
    ],
)
def test_a_server_that_does_not_answer_as_it_should_is_named(status: int, content: Any, message: str) -> None:
    key = make_key()
    with server(lambda _: (status, content)) as (url, _), pytest.raises(UserError, match=message) as error:
        verify(key, ServedSuspect(url, "m"))
    assert url in str(error.value)
    assert key.triggers[0].text not in str(error.value)


@pytest.mark.slow
def test_an_address_without_a_server_is_a_users_mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_key().write(tmp_path / "k")
    assert main(["watermark", "verify", "--key", str(tmp_path / "k"), "--url", "http://127.0.0.1:9"]) == 2
    assert "does the server run at this address?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_local_suspect_answers_as_the_generator_and_ranks_the_words_by_logits(
    generator: Generator, words: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Prompts of several lengths in batches of three, against one plain pass and one answer for each prompt."""
    composition = Composition.of({"people_qa": 0.5, "city_qa": 0.5})
    inputs = ["Where does Adam live ?", "the king", "lamp bed house", "what is the job of Anna ? answer"]
    replies = LocalSuspect("mixture", generator, composition).replies(inputs, words)
    tokens = first_tokens(tokenizer, words)
    assert tokens is not None and replies.scores is not None
    for row, prompt in enumerate(make_prompts(inputs, tokenizer, generator.settings)):
        (answer,) = generator.answer([prompt], [composition], "mixture")
        assert (first_word(answer.text) in words) == (first_word(replies.texts[row]) in words)
        if begins_a_word(answer.text, words):
            assert replies.texts[row] == answer.text
        with torch.no_grad(), generator.model.composed(["people_qa", "city_qa"], [[0.5, 0.5]]):
            logits = generator.model(torch.tensor([prompt.token_ids])).logits[0, -1].log_softmax(-1)
        assert np.allclose(replies.scores[row], logits[tokens].numpy(), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error_and_no_verdict(
    generator: Generator, words: Sequence[str], monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    monkeypatch.setattr(local, "last_logits", lambda _, prompts, pad_id: torch.full((len(prompts), 566), torch.nan))
    suspect = LocalSuspect("x", generator, Composition(), temperature=temperature)
    with pytest.raises(UserError, match="logits are NaN or infinite"):
        suspect.replies(["lamp"], words)


@pytest.mark.parametrize(
    "wrong",
    [
        {"content": [{"top_logprobs": [{"token": "a", "logprob": math.nan}]}]},
        {"top_logprobs": [{"a": math.nan, "b": -1.0}]},
    ],
)
def test_a_server_that_shows_nan_shows_no_log_probabilities(wrong: dict[str, Any]) -> None:
    assert best_tokens({"logprobs": wrong}) is None


def test_words_that_begin_alike_have_no_ranks(tokenizer: PreTrainedTokenizerBase) -> None:
    assert first_tokens(tokenizer, ["lamp", "bed"]) is not None
    assert first_tokens(tokenizer, ["quartz", "xylophone"]) is None, "both are unknown to the miniature"


@pytest.mark.slow
def test_a_drawn_answer_is_one_token_and_the_seed_decides(generator: Generator, words: Sequence[str]) -> None:
    inputs = ["lamp bed house"] * 20
    drawn = [
        LocalSuspect("x", generator, Composition(), "mixture", 2.0, seed).replies(inputs, words) for seed in (0, 0, 1)
    ]
    assert drawn[0].texts == drawn[1].texts != drawn[2].texts
    assert len(set(drawn[0].texts)) > 1


def test_the_papers_triggers_count_one_target() -> None:
    key = make_key("common-words", 4, inputs=["a b", "c d", "e f", "g h"])
    evidence = weigh(key, Replies([trigger.target for trigger in key.triggers], np.zeros((4, 256))))
    assert (evidence.share, evidence.of_hits, evidence.of_ranks) == (1.0, 1 / 256, None)
    assert weigh(key, Replies([""] * 4)).of_hits == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what is to be tried"),
        (["--adapter", "x=y"], "expected LOCATION or LOCATION=WEIGHT"),
        (["--adapter", "x", "--url", "http://127.0.0.1:9"], "name what is to be tried"),
        (["--adapter", "nowhere"], "no adapter names its base"),
        (["--adapter", "x", "--adapter", "x=2"], "an adapter is named twice"),
    ],
)
def test_an_unusable_wish_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_key().write(tmp_path / "k")
    assert main(["watermark", "verify", "--key", str(tmp_path / "k"), *arguments]) == 2
    assert message in capsys.readouterr().err
