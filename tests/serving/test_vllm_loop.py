"""The loop around vLLM, with an engine that stands in for vLLM: compositions on disk, and the events of jobs."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any

import pytest
import torch
from local_server import CHAT, LocalServer, chat_body
from places import TINY
from rich.console import Console
from safetensors.torch import load_file

from lora_retriever.backends import memory_folder
from lora_retriever.backends.checkpoints import Served
from lora_retriever.backends.vllm import EngineError, Parts
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.limits import limits_of
from lora_retriever.generation.loading import ModelSource, skeleton
from lora_retriever.generation.loop import Event, Job, Sampling, Token
from lora_retriever.serving import loading, vllm_loop
from lora_retriever.serving.engine import Engine, RefusedError
from lora_retriever.serving.vllm_batcher import is_broken_engine
from lora_retriever.serving.vllm_loop import VllmLoop
from peft_composition import AdapterError, CompositionWriter

POOL = ("animal_qa", "city_qa", "passive")
BASE = Composition()
ONE = Composition({"city_qa": 1.0})
TWO = Composition({"city_qa": 0.5, "passive": 0.5})
TWO_OTHERWISE = Composition({"passive": 0.5, "city_qa": 0.5})
ALL = Composition(dict.fromkeys(POOL, 1 / 3))
BATCH = 2


class ScriptedBatcher:
    """An engine that answers every prompt with the same tokens."""

    max_rank, max_tokens = 16, 100

    def __init__(self, answer: Sequence[int] = (5, 6, 7)) -> None:
        self.answer = tuple(answer)
        self.jobs: dict[int, tuple[list[int], Sampling, list[int]]] = {}  # prompt, sampling, tokens so far
        self.served: dict[int, Served] = {}
        self.aborted: list[int] = []
        self.refuses: set[str] = set()  # modules that this engine cannot serve
        self.dead = False

    def add(self, id: int, prompt: Sequence[int], sampling: Sampling, scored: bool, served: Served) -> None:
        assert served.path.is_dir() and served.rank <= self.max_rank
        self.jobs[id] = list(prompt) if scored else [], sampling, []
        self.served[id] = served

    def step(self) -> list[Event]:
        if self.dead:
            raise EngineError("vLLM failed: the engine is dead")
        assert all(self.served[id].path.is_dir() for id in self.jobs), "a checkpoint in use is on disk"
        events = []
        for id, (prompt, sampling, tokens) in list(self.jobs.items()):
            told = tuple(Token(token, -1.0) for token in prompt) if not tokens else ()
            tokens.append(self.answer[len(tokens)])
            ended = "stop" if len(tokens) == len(self.answer) else None
            ended = "length" if ended is None and len(tokens) == sampling.max_new_tokens else ended
            events.append(Event(id, (Token(tokens[-1]),), ended, told))
            if ended is not None:
                del self.jobs[id]
        return events

    def abort(self, id: int) -> None:
        self.jobs.pop(id, None)
        self.aborted.append(id)

    def check(self, served: Served) -> None:
        names = load_file(served.path / "adapter_model.safetensors")
        if any(part in name for part in self.refuses for name in names):
            raise EngineError("vLLM failed: unexpected modules")

    def settle(self) -> None:
        pass

    def shutdown(self) -> None:
        self.dead = True


@pytest.fixture(autouse=True)
def _own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compositions go to a folder of the test's own."""
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path_factory.mktemp("memory"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("disk")))


@pytest.fixture
def parts(tiny: Profile, tokenizer: Any) -> Parts:
    base = skeleton(TINY / "base")
    writer = CompositionWriter(base, torch.float32)
    for name in POOL:
        writer.load_adapter(TINY / "adapters" / name, name)
    settings = tiny.generation.model_copy(update={"batch_size": BATCH})
    source = ModelSource(TINY / "base", {}, settings, "float32", "cpu", None, None)
    return Parts(source, tokenizer, limits_of(base), [2], writer)


@pytest.fixture
def batcher() -> ScriptedBatcher:
    return ScriptedBatcher()


@pytest.fixture
def loop(batcher: ScriptedBatcher, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmLoop]:
    monkeypatch.setattr(vllm_loop, "LORAS", 1)  # one unused composition stays
    made = VllmLoop(batcher, parts)
    yield made
    made.close()


def job(composition: Composition = ONE, mode: str = "mixture", **fields: Any) -> Job:
    sampling = Sampling(**{"max_new_tokens": 10, **fields})
    return Job([1, 9], composition, mode, sampling)


def answered(loop: VllmLoop) -> dict[int, list[Event]]:
    """The events of every job until no job is left."""
    events: dict[int, list[Event]] = {}
    while loop.waiting or loop.running:
        for event in loop.step():
            events.setdefault(event.id, []).append(event)
    return events


def on_disk(loop: VllmLoop) -> set[int]:
    return {int(path.name) for path in loop._checkpoints._checkpoints.path.iterdir()}


@pytest.mark.slow
def test_jobs_that_are_composed_alike_share_a_checkpoint(loop: VllmLoop, batcher: ScriptedBatcher) -> None:
    ids = [loop.add(job(composition)) for composition in (TWO, TWO_OTHERWISE, ONE)]
    events = answered(loop)
    first, second, third = (batcher.served[id].number for id in ids)
    assert first == second != third
    assert [[token.id for event in events[id] for token in event.tokens] for id in ids] == [[5, 6, 7]] * 3
    assert [events[id][-1].ended for id in ids] == ["stop"] * 3


@pytest.mark.slow
def test_another_mode_is_another_checkpoint(loop: VllmLoop, batcher: ScriptedBatcher) -> None:
    ids = [loop.add(job(TWO, mode)) for mode in ("mixture", "fusion")]
    answered(loop)
    assert [batcher.served[id].rank for id in ids] == [16, 8]


def test_rows_without_adapters_get_a_checkpoint_that_adds_zero_everywhere(
    loop: VllmLoop, batcher: ScriptedBatcher
) -> None:
    ids = [loop.add(job(BASE, mode)) for mode in ("mixture", "fusion")] + [loop.add(job(TWO))]
    answered(loop)
    none, also_none, two = (batcher.served[id] for id in ids)
    assert none == also_none
    zeros, tensors = (load_file(served.path / "adapter_model.safetensors") for served in (none, two))
    assert zeros.keys() >= tensors.keys() and not any(tensor.any() for tensor in zeros.values())


@pytest.mark.slow
def test_checkpoints_stay_while_jobs_use_them_and_the_last_used_a_little_longer(
    loop: VllmLoop, batcher: ScriptedBatcher
) -> None:
    (zeros,) = on_disk(loop)
    first = loop.add(job(ONE))
    loop.step()
    other = loop.add(job(TWO, max_new_tokens=1))
    loop.step()  # the second job has ended, the first goes on
    numbers = [batcher.served[id].number for id in (first, other)]
    assert on_disk(loop) == {zeros, *numbers}
    answered(loop)
    assert on_disk(loop) == {zeros, numbers[0]}, "one unused checkpoint stays"
    again = loop.add(job(ONE))
    answered(loop)
    assert batcher.served[again].number == numbers[0]


@pytest.mark.slow
def test_a_cancelled_job_frees_its_place_and_its_checkpoint(loop: VllmLoop, batcher: ScriptedBatcher) -> None:
    given, alike, waiting = loop.add(job(ONE)), loop.add(job(ONE)), loop.add(job(TWO))
    loop.step()
    loop.cancel(given)
    loop.cancel(given)  # again, which changes nothing
    assert batcher.aborted == [given]
    number = batcher.served[alike].number
    assert number in on_disk(loop), "the other job uses the checkpoint"
    loop.cancel(alike)
    assert answered(loop).keys() == {waiting}
    assert number not in on_disk(loop)


def test_jobs_wait_until_the_engine_has_room(loop: VllmLoop, batcher: ScriptedBatcher) -> None:
    ids = [loop.add(job(ONE)) for _ in range(3 * BATCH)]
    loop.step()
    assert list(batcher.jobs) == ids[: 2 * BATCH]
    assert (loop.waiting, loop.running) == (BATCH, 2 * BATCH)
    loop.cancel(ids[-1])
    assert answered(loop).keys() == set(ids[:-1])


def test_few_compositions_are_written_between_two_steps(
    loop: VllmLoop, batcher: ScriptedBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_loop, "WRITTEN", 1)
    one, alike, two = loop.add(job(ONE)), loop.add(job(ONE)), loop.add(job(TWO))
    loop.step()
    assert batcher.jobs.keys() == {one, alike}
    loop.step()
    assert batcher.jobs.keys() == {one, alike, two}


def test_a_composition_that_cannot_be_served_is_refused_alone(loop: VllmLoop) -> None:
    refused, good = loop.add(job(ALL)), loop.add(job(ONE))  # ranks 24 and 8, and the engine takes 16
    events = answered(loop)
    (event,) = events[refused]
    assert isinstance(event.error, RefusedError) and event.error.param == "model"
    assert "rank 24, and the highest allowed is 16" in str(event.error)
    assert events[good][-1].ended == "stop"


def test_jobs_that_can_never_be_answered_are_refused_at_once(loop: VllmLoop) -> None:
    cases = {
        "the prompt is empty": Job([], ONE, "mixture", Sampling(1)),
        "outside the base's vocabulary": Job([10**6], ONE, "mixture", Sampling(1)),
        "prompt and new tokens are 102 tokens, and vLLM takes 100": job(max_new_tokens=100),
        "`temperature`: vLLM takes at most 2": job(temperature=2.5),
    }
    for reason, one in cases.items():
        with pytest.raises(UserError, match=reason):
            loop.add(one)
    assert not loop.waiting


def test_a_stop_text_ends_an_answer_at_its_token(loop: VllmLoop, batcher: ScriptedBatcher, tokenizer: Any) -> None:
    stop = tokenizer.decode([6]).strip()
    id = loop.add(job(stop=(stop,)))
    events = answered(loop)[id]
    assert [token.id for event in events for token in event.tokens] == [5, 6]
    assert events[-1].ended == "stop" and batcher.aborted == [id]


def test_a_job_that_wants_no_token_gets_none(loop: VllmLoop, batcher: ScriptedBatcher) -> None:
    plain = loop.add(job(max_new_tokens=0))
    scored = loop.add(Job([1, 9, 8], ONE, "mixture", Sampling(0), scored=2))
    events = answered(loop)
    assert events[plain] == [Event(plain, ended="length")] and batcher.served.keys() == {scored}
    (event,) = events[scored]
    assert (event.ended, event.tokens, [token.id for token in event.prompt]) == ("length", (), [9, 8])


def test_an_engine_that_dies_ends_its_jobs_and_is_told(loop: VllmLoop, batcher: ScriptedBatcher) -> None:
    engine = Engine(loop, 9, is_fatal=is_broken_engine)
    queue: Queue[tuple[int, Any]] = Queue()
    into: Callable[[int, Any], None] = lambda place, event: queue.put((place, event))  # noqa: E731
    batcher.dead = True
    engine.submit([job(ONE), job(BASE)], into)
    ended = [queue.get(timeout=5)[1].ended for _ in range(2)]
    assert ended == ["error: EngineError: vLLM failed: the engine is dead"] * 2
    assert engine.broken == "EngineError: vLLM failed: the engine is dead"
    engine.close()
    assert not loop._checkpoints._checkpoints.path.exists()


def test_modules_that_the_engine_cannot_serve_are_told_at_the_start(batcher: ScriptedBatcher, parts: Parts) -> None:
    batcher.refuses = {"q_proj"}
    with pytest.raises(UserError, match="vLLM cannot serve the adapters of the pool: vLLM failed: unexpected modules"):
        VllmLoop(batcher, parts)
    assert batcher.dead


@pytest.mark.slow
def test_an_adapter_is_loaded_as_a_whole_or_not_at_all(loop: VllmLoop, batcher: ScriptedBatcher, parts: Parts) -> None:
    batcher.refuses = {"q_proj"}
    before = on_disk(loop)
    with pytest.raises(AdapterError, match="adapter 'more': vLLM cannot serve it at this server"):
        loop.load_adapter(TINY / "adapters" / "people_qa", "more")
    assert "more" not in parts.writer.ranks and on_disk(loop) == before
    batcher.refuses = set()
    loop.load_adapter(TINY / "adapters" / "people_qa", "more")
    answered_with = loop.add(job(Composition({"more": 1.0})))
    answered(loop)
    assert batcher.served[answered_with].number in on_disk(loop)
    loop.unload_adapter("more")
    assert "more" not in parts.writer.ranks and on_disk(loop) == before, "another adapter may get the name"


@pytest.mark.slow
def test_the_server_offers_what_checkpoints_can_do_and_refuses_the_rest_by_name(
    tiny: Profile, batcher: ScriptedBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "check_vllm", lambda profile: None)
    monkeypatch.setattr(loading, "VllmBatcher", lambda parts, profile: batcher)
    lexical = tiny.retrieval.model_copy(update={"scorer": "lexical"})
    server = LocalServer(tiny.model_copy(update={"backend": "vllm", "encoder": None, "retrieval": lexical}))
    try:
        listed = {model["id"] for model in server.client.get("/v1/models").json()["data"]}
        assert {"base", "selection", "fusion", "ties", "people_qa"} <= listed
        assert not listed & {"arrow", "lorahub", "logo", "phatgoose"}
        for model, reason in {"arrow": "weighs adapters by token", "logo": "looks into the model"}.items():
            refused = server.post(CHAT, **chat_body(model, "hello"))
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "model"
            assert f"`model`: {model} {reason}, and backend: vllm serves checkpoints" in refused.text
        three = server.post(CHAT, **chat_body("mixture", "hello"))
        assert three.status_code == 400 and three.json()["error"]["param"] == "model"
        hot = server.post(CHAT, **chat_body("selection", "hello", temperature=3.0))
        assert hot.status_code == 400 and hot.json()["error"]["param"] == "temperature"
        assert server.post(CHAT, **chat_body("selection", "hello")).json()["usage"]["completion_tokens"] == 3
        batcher.dead = True
        assert server.post(CHAT, **chat_body("selection", "hello")).status_code == 500
        health = server.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "broken")
    finally:
        server.close()


def test_without_vllm_the_extra_is_named_before_anything_is_loaded(
    tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(UserError, match=r"backend: vllm needs the vllm extra: pip install"):
        loading.load_service(tiny.model_copy(update={"backend": "vllm"}), Console(file=io.StringIO()))


def test_methods_that_learn_before_the_start_are_refused(tiny: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = tiny.serve.model_copy(update={"methods": ("lorahub",)})
    profile = tiny.model_copy(update={"backend": "vllm", "serve": serve})
    with pytest.raises(UserError, match=r"serve\.methods: no method learns with backend: vllm"):
        loading._vllm_answerer(profile, None, None)  # type: ignore[arg-type]
