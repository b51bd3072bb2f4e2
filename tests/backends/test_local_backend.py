"""The local backend: batches that do not fit are divided, adapters come and go, and no answer is made twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TINY
from tiny_runs import QUIET, answers_of, lines_of

from lora_retriever.backends.local import LocalBackend
from lora_retriever.data.rows import Row
from lora_retriever.errors import RowsFailedError, UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.answer import Answer
from lora_retriever.generation.batches import Request
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import ModelSource, load_generator
from lora_retriever.generation.loop import Event, Job, Loop
from lora_retriever.methods import Composition, registered
from lora_retriever.running.answer_cache import AnswerCache, answer_key
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import configuration
from peft_composition import AdapterError

ADAPTERS = {folder.name: folder for folder in sorted((TINY / "adapters").iterdir()) if folder.is_dir()}


@pytest.fixture(scope="module")
def generator(tiny: Profile) -> Generator:
    settings = tiny.generation.model_copy(update={"max_new_tokens": 4})
    return load_generator(ModelSource(TINY / "base", ADAPTERS, settings))


def some_requests(generator: Generator, rows: Sequence[Row]) -> list[Request]:
    """Each row under its own task's adapter."""
    prompts = make_prompts([row.inputs for row in rows], generator.tokenizer, generator.settings)
    return [Request(row.id, prompt, Composition({row.task: 1.0})) for row, prompt in zip(rows, prompts, strict=True)]


def refusing(monkeypatch: pytest.MonkeyPatch, refuse: Callable[[Sequence[Composition]], None]) -> list[int]:
    """Let `refuse` raise before prompts join a batch; returns the sizes of the batches that were tried."""
    read, sizes = Loop._read, []

    def watched(self: Loop, joining: Any) -> list[Event]:
        together = [row.job.composition for row in (*self._rows, *joining)]
        sizes.append(len(together))
        refuse(together)
        return read(self, joining)

    monkeypatch.setattr(Loop, "_read", watched)
    return sizes


@pytest.mark.long
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_a_batch_too_large_for_memory_is_halved_and_stays_so(
    generator: Generator, tiny_rows: list[Row], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    requests = some_requests(generator, tiny_rows[::12])[:24]
    expected = LocalBackend(generator).answer(requests, "mixture")

    def refuse(compositions: Sequence[Composition]) -> None:
        if len(compositions) > 4:
            raise error

    sizes = refusing(monkeypatch, refuse)
    backend = LocalBackend(generator)
    outcomes = [backend.answer(batch, "mixture") for batch in (requests[:16], requests[16:])]
    assert outcomes[0] | outcomes[1] == expected
    assert expected.failures == {}
    assert sizes[:3] == [16, 8, 4] and max(sizes[3:]) == 4


@pytest.mark.long
def test_a_row_too_large_by_itself_fails_alone(
    generator: Generator, tiny_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = some_requests(generator, tiny_rows[::20])[:8]
    large = requests[5].composition

    def refuse(compositions: Sequence[Composition]) -> None:
        if large in compositions:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmuch else")

    refusing(monkeypatch, refuse)
    outcome = LocalBackend(generator).answer(requests, "mixture")
    assert outcome.failures == {requests[5].id: "CUDA out of memory."}
    assert len(outcome.answers) == 7


@pytest.mark.slow
def test_a_row_that_fails_costs_no_other_row_whatever_its_error(
    generator: Generator, tiny_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = some_requests(generator, tiny_rows[::20])[:6]

    def refuse(compositions: Sequence[Composition]) -> None:
        if requests[2].composition in compositions:
            raise IndexError("index out of range in self")

    sizes = refusing(monkeypatch, refuse)
    backend = LocalBackend(generator)
    outcome = backend.answer(requests, "mixture")
    assert outcome.failures == {requests[2].id: "index out of range in self"}
    assert outcome.answers.keys() == {request.id for request in requests} - {requests[2].id}
    sizes.clear()
    backend.answer(requests[:2] + requests[3:], "mixture")
    assert sizes == [5]  # such an error is no reason to divide later batches


def test_a_broken_device_ends_the_run(
    generator: Generator, tiny_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(compositions: Sequence[Composition]) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    sizes = refusing(monkeypatch, refuse)
    with pytest.raises(UserError, match=r"the device failed .*device-side assert.*Start the same command again"):
        LocalBackend(generator).answer(some_requests(generator, tiny_rows[:3]), "mixture")
    assert sizes == [3]


@pytest.mark.slow
def test_an_adapter_that_cannot_be_read_costs_its_own_rows_alone(
    generator: Generator, tiny_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = some_requests(generator, tiny_rows[::20])[:6]

    def refuse(compositions: Sequence[Composition]) -> None:
        if requests[2].composition in compositions:
            raise AdapterError(tiny_rows[0].task, "its file is gone")

    refusing(monkeypatch, refuse)
    outcome = LocalBackend(generator).answer(requests, "mixture")
    assert set(outcome.failures) == {r.id for r in requests if r.composition == requests[2].composition}
    assert len(outcome.answers) + len(outcome.failures) == 6


def timings_of(results: Path, name: str) -> dict[str, Any]:
    timings: dict[str, Any] = json.loads((results / f"{name}.meta.json").read_text())["timings"]
    return timings


@pytest.mark.long
def test_a_pool_larger_than_its_memory_gives_the_same_answers(paper_runs: Path, tmp_path: Path, tiny: Profile) -> None:
    adapter = sum(file.stat().st_size for file in ADAPTERS[min(ADAPTERS)].glob("*.safetensors"))
    adapters = tiny.adapters.model_copy(update={"memory": 6 * adapter})  # of 19 adapters; a batch needs more
    evaluate(tiny.model_copy(update={"adapters": adapters}), ["mixture"], tmp_path, 1, QUIET)
    assert answers_of(tmp_path, "mixture") == answers_of(paper_runs, "mixture")


@pytest.mark.long
def test_a_row_takes_its_answer_from_a_run_that_gave_it_the_same_composition(
    tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["selection", "selection_ood", "best_selection"]
    apart = tiny.model_copy(update={"reuse_answers": False})
    for name in methods:
        evaluate(apart, [name], tmp_path / "apart", 2, QUIET)
    add, added = Loop.add, []

    def noting(self: Loop, job: Job) -> int:
        added.append(job)
        return add(self, job)

    monkeypatch.setattr(Loop, "add", noting)
    evaluate(tiny, methods, tmp_path / "together", 2, QUIET)
    for name in methods:
        assert answers_of(tmp_path / "together", name) == answers_of(tmp_path / "apart", name)
        assert timings_of(tmp_path / "apart", name)["reused"] == 0
    used: dict[str, list[tuple[str, str]]] = {name: [] for name in methods}
    for name in methods:
        used[name] += [(line["inputs"], line["adapters"][0]) for line in lines_of(tmp_path / "together", name)]
    assert len(added) == len(set().union(*used.values()))  # one job for every pair of prompt and composition
    assert timings_of(tmp_path / "together", "best_selection")["reused"] == sum(
        pair in used["selection"] + used["selection_ood"] for pair in used["best_selection"]
    )


@pytest.mark.slow
def test_an_answer_is_shared_only_where_its_composition_is_the_same(tiny: Profile) -> None:
    """One adapter of weight 1 is the same under fusion and mixture.

    A merge that trims changes the adapter, and so does a gate.
    """
    benchmark = open_benchmark(tiny, 1)
    line = {
        "inputs": "a", "adapters": ["passive"], "weights": [1.0], "predicted_answer": "b", "generated_tokens": 1,
    }  # fmt: skip
    names = ("selection", "best_selection", "ties", "arrow")
    configurations = {name: configuration(tiny, benchmark, registered()[name]) for name in names}
    for known, sharing in (
        ("selection", {"selection", "best_selection"}), ("ties", {"ties"}), ("arrow", set()),
    ):  # fmt: skip
        cache = AnswerCache({})
        cache.learn(configurations[known], [line])
        keys = {name: answer_key(its, "a", {"passive": 1.0}) for name, its in configurations.items()}
        assert {name for name, key in keys.items() if cache.find(key) == Answer("b", 1)} == sharing


@pytest.mark.slow
def test_equal_rows_are_answered_once(tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    row = json.loads((TINY / "test.json").read_text())[0]
    (tmp_path / "rows.json").write_text(json.dumps([row] * 5))
    data = tiny.data.model_copy(update={"rows": str(tmp_path / "rows.json")})
    sizes = refusing(monkeypatch, lambda compositions: None)
    evaluate(tiny.model_copy(update={"data": data}), ["mixture"], tmp_path / "results", None, QUIET)
    assert sizes == [1]
    assert len(set(answers_of(tmp_path / "results", "mixture"))) == 1
    assert len(answers_of(tmp_path / "results", "mixture")) == 5


@pytest.mark.slow
def test_a_failure_is_listed_for_every_row_it_concerns(
    tmp_path: Path, tiny: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.loads((TINY / "test.json").read_text())[0]
    (tmp_path / "rows.json").write_text(json.dumps([row] * 2))
    data = tiny.data.model_copy(update={"rows": str(tmp_path / "rows.json")})

    def refuse(compositions: Sequence[Composition]) -> None:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch, pytest.raises(RowsFailedError, match=r"row 0: the device.*\n.*row 1: the dev"):
        refusing(patch, refuse)
        evaluate(tiny.model_copy(update={"data": data}), ["base"], tmp_path / "results", None, QUIET)
    evaluate(tiny.model_copy(update={"data": data}), ["base"], tmp_path / "results", None, QUIET)
    assert len(answers_of(tmp_path / "results", "base")) == 2


@pytest.mark.slow
def test_answers_made_under_other_conditions_are_not_taken(paper_runs: Path, tmp_path: Path, tiny: Profile) -> None:
    for path in paper_runs.glob("selection.*"):
        shutil.copy(path, tmp_path)
    meta_path = tmp_path / "selection.meta.json"
    meta = json.loads(meta_path.read_text())
    for change in ({"versions": {"torch": "0"}}, {"configuration": {**meta["configuration"], "dtype": "bfloat16"}}):
        meta_path.write_text(json.dumps({**meta, **change}))
        evaluate(tiny, ["best_selection"], tmp_path, 1, QUIET)
        assert timings_of(tmp_path, "best_selection")["reused"] == 0
        for path in tmp_path.glob("best_selection*"):
            path.unlink()
    meta_path.write_text(json.dumps(meta))
    evaluate(tiny, ["best_selection"], tmp_path, 1, QUIET)
    assert timings_of(tmp_path, "best_selection")["reused"] > 0
