"""The vLLM backend: with vLLM where it is installed, and everywhere else with an engine that stands in for it."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from places import TINY
from rich.console import Console
from transformers import AutoModelForCausalLM

from lora_retriever.backends import memory_folder
from lora_retriever.backends.base import Outcome
from lora_retriever.backends.checkpoints import Served, allowed_rank
from lora_retriever.backends.memory_folder import MemoryFolder, remove_abandoned
from lora_retriever.backends.vllm import (
    BATCHES_IN_CHUNK,
    EngineError,
    VllmBackend,
    load,
    plan_chunks,
)
from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import PROFILES, Profile, load_profile
from lora_retriever.generation.batches import Request
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import load_composable, skeleton
from lora_retriever.generation.prompt import Prompt
from lora_retriever.methods import Composition, registered
from lora_retriever.running.evaluate import evaluate
from peft_composition import CompositionWriter

POOL = ("animal_qa", "city_qa", "passive", "to_velan")
MIXED = Composition({"passive": 0.5, "animal_qa": 0.3, "to_velan": 0.2})
MIXED_OTHERWISE = Composition({"animal_qa": 0.3, "to_velan": 0.2, "passive": 0.5})
ONE = Composition({"city_qa": 1.0})
BASE = Composition()


class UpstreamEngine:
    """An engine without vLLM: upstream PEFT on the miniature's base, one row at a time."""

    def __init__(self, max_rank: int) -> None:
        self.max_rank = max_rank
        self.running = True
        self.batches: list[list[Served | None]] = []
        self.folders: list[set[str]] = []  # the files in the folder at each call
        self.fails = False
        self.model: Any = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32).eval()

    def generate(self, prompts: Sequence[list[int]], compositions: Sequence[Served | None]) -> list[list[int]]:
        assert self.running
        self.batches.append(list(compositions))
        self.folders.append({path.name for c in compositions if c for path in c.path.parent.iterdir()})
        if self.fails:
            raise EngineError("vLLM failed: the engine is dead")
        return [self.row(prompt, composition) for prompt, composition in zip(prompts, compositions, strict=True)]

    def row(self, prompt: list[int], composition: Served | None) -> list[int]:
        model = deepcopy(self.model)
        if composition is not None:
            assert composition.rank <= self.max_rank
            model = PeftModel.from_pretrained(model, str(composition.path))
        with torch.inference_mode():
            ids = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        return ids[0, len(prompt) :].tolist()

    def shutdown(self) -> None:
        self.running = False


class Setup:
    """A backend on the stand-in, with the engines that it started."""

    def __init__(self, tokenizer: Any, batch_size: int = 8, adapters_of_a_row: int = 3) -> None:
        self.engines: list[UpstreamEngine] = []
        writer = CompositionWriter(skeleton(TINY / "base"), torch.float32)
        for name in POOL:
            writer.load_adapter(TINY / "adapters" / name, name)
        self.backend = VllmBackend(self.start, writer, tokenizer, batch_size, adapters_of_a_row, 566)

    def start(self, max_rank: int) -> UpstreamEngine:
        self.engines.append(UpstreamEngine(max_rank))
        return self.engines[-1]


@pytest.fixture(autouse=True)
def _own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compositions go to a folder of the test's own; the backend reads no other folder."""
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path_factory.mktemp("memory"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("disk")))


@pytest.fixture
def setup(tokenizer: Any) -> Iterator[Setup]:
    made = Setup(tokenizer, batch_size=1)
    yield made
    made.backend.close()


def tiny_requests(
    tiny: Profile, tokenizer: Any, rows: Sequence[Row], compositions: Sequence[Composition]
) -> list[Request]:
    """Requests of the miniature's rows, with the compositions in turn."""
    prompts = make_prompts([row.inputs for row in rows], tokenizer, tiny.generation)
    return [
        Request(row.id, prompt, compositions[place % len(compositions)])
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]


def together(outcomes: Iterator[Outcome]) -> Outcome:
    whole = Outcome()
    for outcome in outcomes:
        whole |= outcome
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_answers_are_the_local_engines(setup, tiny, tokenizer, tiny_rows, mode):
    requests = tiny_requests(tiny, tokenizer, tiny_rows[::40][:8], [MIXED, BASE, ONE])
    local = Generator(
        load_composable(TINY / "base", {name: TINY / "adapters" / name for name in POOL}, torch.float32, "cpu"),
        tokenizer,
        tiny.generation,
    )
    expected = local.answer([r.prompt for r in requests], [r.composition for r in requests], mode)
    outcome = together(setup.backend.answers(requests, mode, done=[]))
    assert outcome.failures == {}
    assert outcome.answers == {request.id: answer for request, answer in zip(requests, expected, strict=True)}


def test_rows_without_adapters_never_share_a_chunk_with_others():
    requests = [Request(id, Prompt([1], 0), [MIXED, BASE, ONE, MIXED_OTHERWISE][id % 4]) for id in range(40)]
    chunks = plan_chunks(requests, size=4)
    assert sorted(request.id for chunk in chunks for request in chunk) == list(range(40))
    assert all(len({bool(request.composition.adapters) for request in chunk}) == 1 for chunk in chunks)
    assert max(len(chunk) for chunk in chunks) == 4


@pytest.mark.slow
def test_shared_compositions_are_written_once_and_removed_after_their_last_row(setup, tiny, tokenizer, tiny_rows):
    compositions = [MIXED, BASE, ONE, MIXED_OTHERWISE]
    requests = tiny_requests(tiny, tokenizer, tiny_rows[:4] * 5, compositions)
    requests = [Request(place, request.prompt, request.composition) for place, request in enumerate(requests)]
    folder = setup.backend._checkpoints.path
    outcomes = setup.backend.answers(requests, "mixture", done=[])
    answered = [set(next(outcomes).answers) for _ in range(2)]
    assert answered == [{1, 5, 9, 13}, {17}], "the base alone, in chunks of four batches of one row"
    assert list(folder.iterdir()) == []
    together(outcomes)
    engine = setup.engines[0]
    assert [[served and served.number for served in batch] for batch in engine.batches] == [
        [None] * 4, [None], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2]
    ]  # fmt: skip
    assert engine.folders[2:] == [{"1"}, {"1"}, {"1", "2"}, {"2"}]
    assert list(folder.iterdir()) == []
    setup.backend.close()
    assert not folder.exists() and not engine.running


@pytest.mark.slow
def test_what_is_done_is_not_done_again(setup, tiny, tokenizer, tiny_rows):
    requests = tiny_requests(tiny, tokenizer, tiny_rows[:8], [ONE])
    outcome = together(setup.backend.answers(requests, "mixture", done=[r.id for r in requests[:4]]))
    assert set(outcome.answers) == {request.id for request in requests[4:]}


@pytest.mark.slow
def test_a_composition_that_cannot_be_written_fails_alone(setup, tiny, tokenizer, tiny_rows):
    unknown = Composition({"nowhere": 1.0})
    requests = tiny_requests(tiny, tokenizer, tiny_rows[:2], [ONE, unknown])
    outcome = together(setup.backend.answers(requests, "mixture", done=[]))
    assert set(outcome.answers) == {requests[0].id}
    assert outcome.failures[requests[1].id].startswith("its composition could not be written: adapter 'nowhere'")


def test_a_gate_is_refused_before_anything_is_written(setup, tiny, tokenizer, tiny_rows):
    requests = tiny_requests(tiny, tokenizer, tiny_rows[:2], [ONE])
    with pytest.raises(UserError, match=r"cannot be weighed by token; use backend: local"):
        next(setup.backend.answers(requests, "mixture", done=[], gate=registered()["arrow"].gate))
    assert setup.engines[0].batches == []


@pytest.mark.slow
def test_an_engine_that_fails_costs_its_chunk_alone(setup, tiny, tokenizer, tiny_rows):
    requests = tiny_requests(tiny, tokenizer, tiny_rows[:8], [ONE])
    setup.engines[0].fails = True
    outcome = together(setup.backend.answers(requests, "mixture", done=[]))
    assert set(outcome.failures.values()) == {"vLLM failed: the engine is dead"}
    assert (len(outcome.failures), len(outcome.answers)) == (BATCHES_IN_CHUNK, 4)
    assert [engine.running for engine in setup.engines] == [False, True]


@pytest.mark.slow
def test_a_row_with_a_token_that_the_base_lacks_fails_alone(setup, tokenizer, tiny, tiny_rows):
    good, bad = tiny_requests(tiny, tokenizer, tiny_rows[:2], [ONE, ONE])
    outcome = together(setup.backend.answers([good, replace(bad, prompt=Prompt([1, 566], 0))], "mixture", done=[]))
    assert outcome.failures == {bad.id: "token 566 is outside the base's vocabulary of 566"}
    assert outcome.answers.keys() == {good.id}


@pytest.mark.slow
def test_the_engine_serves_the_pools_largest_mixtures_and_grows_for_a_sweep(tokenizer, tiny, tiny_rows):
    setup = Setup(tokenizer, adapters_of_a_row=1)
    assert [engine.max_rank for engine in setup.engines] == [8]
    requests = tiny_requests(tiny, tokenizer, tiny_rows[:2], [ONE, MIXED])
    assert len(together(setup.backend.answers(requests, "mixture", done=[])).answers) == 2
    assert [(engine.max_rank, engine.running) for engine in setup.engines] == [(8, False), (32, True)]
    setup.backend.close()
    assert [allowed_rank(rank) for rank in (0, 8, 9, 300, 1000)] == [8, 8, 16, 320, 512]


def test_the_skeleton_ends_where_the_model_does(tmp_path):
    base = skeleton(TINY / "base")
    assert base.device.type == "meta"
    assert base.generation_config.eos_token_id == 2
    (tmp_path / "config.json").write_text((TINY / "base" / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert skeleton(tmp_path).generation_config.eos_token_id == [2, 7]
    with pytest.raises(UserError, match=r"base model .*nowhere: cannot be loaded: "):
        skeleton(tmp_path / "nowhere")


@pytest.mark.slow
def test_without_vllm_the_extra_is_named(monkeypatch, tiny):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(UserError, match=r"backend: vllm needs the vllm extra: pip install -e peft/ -e '\.\[vllm\]'"):
        load(tiny, open_benchmark(tiny, limit=1))


def test_folders_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_folder, "MEMORY", tmp_path)
    abandoned = tmp_path / f"{memory_folder.PREFIX}dead"
    abandoned.mkdir()
    (abandoned / "1").touch()
    (tmp_path / "lora-retriever-main").mkdir()
    living = tmp_path / f"{memory_folder.PREFIX}living"
    living.mkdir()
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = MemoryFolder(room=1)
    assert {path.name for path in tmp_path.iterdir()} == {living.name, folder.path.name, "lora-retriever-main"}
    remove_abandoned(tmp_path)
    assert folder.path.is_dir(), "its own lock keeps it"
    folder.close()
    os.close(lock)
    assert {path.name for path in tmp_path.iterdir()} == {living.name, "lora-retriever-main"}


def test_the_folder_is_on_disk_where_memory_has_no_room(tmp_path, monkeypatch):
    disk, memory = tmp_path / "disk", tmp_path / "memory"
    disk.mkdir()
    memory.mkdir()
    monkeypatch.setattr(memory_folder, "MEMORY", memory)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    for room, place in ((1, memory), (2**60, disk)):
        folder = MemoryFolder(room)
        assert folder.path.parent == place
        folder.close()


def test_vllm_answers_as_the_local_backend(tmp_path, monkeypatch):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; scripts/backends/test_vllm.sh VENV installs vLLM and runs this test")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    methods = ["base", "best_selection", "fusion", "mixture", "mixture_ood"]
    answers = {}
    for backend in ("local", "vllm"):
        text = (PROFILES / "tiny.yaml").read_text().replace("./tiny/", f"{TINY}/")
        file = tmp_path / f"{backend}.yaml"
        file.write_text(f"{text}\nbackend: {backend}\n")
        assert set(yaml.safe_load(file.read_text())) - set(yaml.safe_load(text)) == {"backend"}
        results = tmp_path / backend
        evaluate(load_profile(str(file)), methods, results, limit=2, console=Console(file=io.StringIO()))
        lines = [json.loads(line) for name in methods for line in (results / f"{name}.jsonl").open(encoding="utf-8")]
        answers[backend] = [(line["predicted_answer"], line["generated_tokens"]) for line in lines]
    assert len(answers["local"]) == len(methods) * 38
    different = [pair for pair in zip(answers["local"], answers["vllm"], strict=True) if pair[0] != pair[1]]
    assert different == []
