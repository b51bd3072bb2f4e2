"""The loop gives every prompt the same tokens as alone, whichever rows join and leave beside the prompt's row."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from composition_cases import tiny_llama
from gate_cases import GATES, Adapted, adapted_by
from gate_cases import NAMES as GATED
from loop_cases import HYBRIDS, NAMES, adapted, alone, continued_together, cut, generated, generator_of, hybrid, rare
from model_families import DECODERS, GEMMA, Family, InDouble, prompts_of

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.loop import Event, Loop
from lora_retriever.generation.passes import reading_parts
from lora_retriever.generation.sampling import Sampling
from peft_composition import ComposableModel

COMPOSITIONS = [Composition(), Composition({"usual": 1.0}), Composition({"usual": 0.5, "full": 0.25})]
LENGTHS = (9, 3, 6, 11, 1, 6, 9, 2, 7, 14, 5, 8)
NEW = 12
LENGTHS_TOGETHER = {
    "unequal": (9, 3, 6, 11, 1, 6, 9, 2, 7), "sorted": (11, 9, 9, 7, 6, 6, 3, 2, 1), "equal": (7,) * 9, "one row": (8,),
}  # fmt: skip
WIDE = GEMMA | {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = DECODERS | {"gemma3 with a wide window": Family("gemma3_text", settings=WIDE)}


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ComposableModel:
    return adapted(FAMILIES[getattr(request, "param", "llama")], tmp_path_factory.mktemp("loop"))


def run(loop: Loop, jobs: Sequence[Job]) -> tuple[list[list[int]], list[Event]]:
    """The tokens of every job, and all events."""
    ids = [loop.add(job) for job in jobs]
    tokens: dict[int, list[int]] = {id: [] for id in ids}
    events = []
    with InDouble():
        while loop.waiting or loop.running:
            for event in loop.step():
                events.append(event)
                tokens[event.id] += [token.id for token in event.tokens]
    return [tokens[id] for id in ids], events


def some_jobs(modes: Sequence[str] = ("mixture", "fusion", "ties")) -> list[Job]:
    draw = random.Random(3)
    return [
        Job(prompt, COMPOSITIONS[i % 3], draw.choice(modes), Sampling(draw.choice([1, 4, NEW])))
        for i, prompt in enumerate(prompts_of(LENGTHS, seed=5))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", DECODERS, indirect=True)
def test_every_row_is_continued_as_if_it_were_alone(model):
    jobs = some_jobs()
    endless = [alone(model, job) for job in jobs]
    eos_ids = rare(endless)
    expected = [cut(answer, eos_ids) for answer in endless]
    loop = Loop(generator_of(model, eos_ids), max_tokens=90, read_tokens=20, steps=2)
    answers, events = run(loop, jobs)
    assert answers == expected
    assert {event.ended for event in events} == {None, "stop", "length"}
    assert model._live is None


@pytest.mark.slow
@pytest.mark.parametrize("composed", [False, True], ids=["base", "composed"])
@pytest.mark.parametrize("lengths", LENGTHS_TOGETHER.values(), ids=LENGTHS_TOGETHER)
@pytest.mark.parametrize("model", DECODERS, indirect=True)
def test_rows_that_are_read_together_get_the_tokens_of_generate(model, lengths, composed):
    prompts = prompts_of(lengths, seed=5)
    weights = [[0.5, 0.25], [1.0, 0.0], [0.0, 0.0]] * 3
    chosen = [Composition(dict(zip(NAMES, row if composed else [0.0, 0.0], strict=True))) for row in weights]
    with InDouble(), model.composed(NAMES, weights[: len(prompts)]) if composed else nullcontext():
        endless = generated(model, prompts, [], NEW)
    eos_ids = rare(endless)
    expected = [cut(answer, eos_ids) for answer in endless]
    with InDouble():
        answers = continued_together(model, prompts, eos_ids, NEW, chosen[: len(prompts)])
    assert answers == expected
    assert len(prompts) == 1 or len(set(map(len, answers))) > 1, "rows end at different times"


@pytest.mark.slow
def test_a_batch_costs_what_its_rows_need():
    base, shapes = tiny_llama(), []
    prompts = prompts_of(sorted([20, 19, 18, 15, 9, 8, 8, 7, 7, 3, 2, 2], reverse=True), seed=1)
    eos_ids = rare(generated(ComposableModel(base), prompts, [], NEW))
    handle = base.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        answers = continued_together(ComposableModel(base), prompts, eos_ids, NEW)
    finally:
        handle.remove()
    parts = list(reading_parts([len(prompt) for prompt in prompts], separable=True))
    assert shapes[: len(parts)] == [(part.stop - part.start, len(prompts[part.start])) for part in parts]
    going_on = [sum(len(answer) > step for answer in answers) for step in range(1, max(map(len, answers)))]
    assert shapes[len(parts) :] == [(rows, 1) for rows in going_on]


@pytest.mark.slow
def test_prompts_of_several_modes_are_read_in_parts_of_similar_length(model):
    """If the prompts of each mode were read apart, there would be four passes."""
    prompts, modes = prompts_of((12, 4, 12, 4), seed=5), ("fusion", "fusion", "mixture", "mixture")
    jobs = [Job(prompt, COMPOSITIONS[2], mode, Sampling(3)) for prompt, mode in zip(prompts, modes, strict=True)]
    expected, shapes = [alone(model, job) for job in jobs], []
    handle = model.base.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        answers, _ = run(Loop(generator_of(model), max_tokens=100), jobs)
    finally:
        handle.remove()
    assert answers == expected
    assert shapes == [(2, 12), (2, 4), (4, 1), (4, 1)]


@pytest.mark.slow
def test_rows_leave_and_join_within_the_bound(model):
    jobs = some_jobs()
    loop, most = Loop(generator_of(model), max_tokens=90, read_tokens=20, steps=2), 0
    for job in jobs:
        loop.add(job)
    with InDouble():
        while loop.waiting or loop.running:
            before = loop.running
            loop.step()
            rows = loop._rows
            assert len(rows) * max((row.most for row in rows), default=0) <= 90
            assert len(rows) <= 4
            most = max(most, loop.running - before)
    assert most >= 1


def test_the_log_probabilities_are_those_of_a_whole_pass(model):
    job = Job(prompts_of([9], seed=1)[0], COMPOSITIONS[2], "mixture", Sampling(5, logprobs=3), scored=9)
    other = Job(prompts_of([4], seed=2)[0], Composition(), "mixture", Sampling(7), scored=2)
    (tokens, _), events = run(Loop(generator_of(model), 100), [job, other])
    whole = [*job.prompt, *tokens]
    with InDouble(), torch.no_grad(), model.composed(["usual", "full"], [[0.5, 0.25]]):
        logprobs = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(dim=1)
    mine = [event for event in events if event.id == 1]
    told = [token for event in mine for token in (*event.prompt, *event.tokens)]
    assert [token.id for token in told] == whole and told[0].logprob is None
    for place, token in enumerate(told[1:]):
        assert token.logprob == pytest.approx(float(logprobs[place, token.id]), abs=1e-5)
        best = logprobs[place].topk(3)
        assert [id for id, _ in token.top] == best.indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [len(event.prompt) for event in events if event.id == 2 and event.prompt] == [2]


def test_a_prompt_may_be_scored_without_being_continued(model):
    job = Job(prompts_of([6], seed=1)[0], COMPOSITIONS[1], "mixture", Sampling(0), scored=3)
    (tokens,), (event,) = run(Loop(generator_of(model), 100), [job])
    assert tokens == [] and event.ended == "length" and len(event.prompt) == 3
    assert all(token.logprob is not None and token.logprob < 0 for token in event.prompt)


@pytest.mark.slow
def test_drawn_rows_depend_on_their_seed_and_not_on_their_neighbours(model):
    prompts = prompts_of([7, 5, 9, 6], seed=4)
    jobs = [
        Job(prompt, COMPOSITIONS[i % 3], "mixture", Sampling(8, temperature=1.5, top_p=0.9, seed=i))
        for i, prompt in enumerate(prompts)
    ]
    together, _ = run(Loop(generator_of(model), 1000), jobs)
    assert together == [run(Loop(generator_of(model), 1000), [job])[0][0] for job in jobs]
    others, _ = run(
        Loop(generator_of(model), 1000),
        [Job(job.prompt, job.composition, "mixture", Sampling(8, 1.5, 0.9, 99)) for job in jobs],
    )
    assert others != together


def test_a_stop_text_ends_a_row(model):
    job = Job(prompts_of([7], seed=4)[0], COMPOSITIONS[1], "mixture", Sampling(12))
    (whole,), _ = run(Loop(generator_of(model), 100), [job])
    text = generator_of(model).decode(whole, True)
    stop = text[4:6]
    stopped = Job(job.prompt, job.composition, "mixture", Sampling(12, stop=("never", stop)))
    (tokens,), events = run(Loop(generator_of(model), 100), [stopped])
    assert tokens == whole[: text.index(stop) + 2]
    assert events[-1].ended == "stop"


@pytest.mark.slow
def test_a_cancelled_job_frees_its_place(model):
    jobs = some_jobs(["mixture"])[:6]
    loop = Loop(generator_of(model), max_tokens=1000, max_rows=3)
    ids = [loop.add(job) for job in jobs]
    loop.step()
    loop.cancel(ids[0])
    loop.cancel(ids[5])
    loop.cancel(12345)
    assert (loop.running, loop.waiting) == (2, 2) or loop.running < 2
    seen = set()
    with InDouble():
        while loop.waiting or loop.running:
            seen |= {event.id for event in loop.step()}
    assert not seen & {ids[0], ids[5]} and seen >= {ids[3], ids[4]}
    assert loop.step() == []


def test_the_beginnings_of_jobs_that_are_gone_are_forgotten(model):
    start = prompts_of([10], seed=8)[0]
    jobs = [Job([*start, token], COMPOSITIONS[1], "mixture", Sampling(3)) for token in (2, 3, 4)]
    for leave in (lambda loop: loop.cancel(3), Loop.close):
        loop = Loop(generator_of(model), max_tokens=400, max_rows=2)
        assert [loop.add(job) for job in jobs] == [1, 2, 3]
        loop.step()
        assert len(loop._beginnings._kept) == 1, "a job that shares the beginning waits"
        leave(loop)
        assert not loop._beginnings._kept


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job([], Composition(), "mixture", Sampling(2)), "the prompt is empty"),
        (Job([1, 48], Composition(), "mixture", Sampling(2)), "48"),
        (Job([1] * 90, Composition(), "mixture", Sampling(20)), "110 tokens, and the batch holds 100"),
        (Job([1, 2], Composition({"none": 1.0}), "mixture", Sampling(2)), "adapter 'none' is not loaded"),
    ],
)
def test_a_job_that_can_never_be_answered_is_refused(model, job, words):
    with pytest.raises(UserError, match=words):
        Loop(generator_of(model), 100).add(job)


def read_tokens(model: ComposableModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every forward pass, with padding."""
    counts, forward = [], type(model).__call__

    def watched(self: ComposableModel, input_ids: torch.Tensor, **options: Any) -> Any:
        counts.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(ComposableModel, "__call__", watched)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["llama", "gemma3", "gemma3 with a wide window", "gpt2", "falcon_alibi"], indirect=True
)
def test_common_beginnings_are_read_once_and_answers_stay_the_same(model, monkeypatch):
    start, window = prompts_of([10], seed=8)[0], getattr(model.config, "sliding_window", None)
    prompts = [[*start, *tail] for tail in prompts_of((1, 3, 2, 9, 4, 1, 2, 3, 5, 2, 1, 4), seed=9)]
    jobs = [Job(ids, COMPOSITIONS[i % 2 * 2], "mixture", Sampling(3), scored=i % 3) for i, ids in enumerate(prompts)]
    jobs.append(Job(start, COMPOSITIONS[2], "fusion", Sampling(3)))  # alike but for the mode
    expected = [alone(model, job) for job in jobs]
    counts = read_tokens(model, monkeypatch)
    shared = run(Loop(generator_of(model), max_tokens=400, max_rows=5, read_tokens=60), jobs)
    with_sharing = sum(counts)
    counts.clear()
    apart = run(Loop(generator_of(model, share_prefix=False), max_tokens=400, max_rows=5, read_tokens=60), jobs)
    assert shared[0] == apart[0] == expected
    if window is None or window > max(map(len, prompts)):
        assert with_sharing < 0.75 * sum(counts)
    told = [[token for event in events for token in event.prompt] for _, events in (shared, apart)]
    assert {token.id for token in told[0]} == {token.id for token in told[1]} != set()
    values = [sorted(token.logprob for token in tokens) for tokens in told]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", HYBRIDS)
def test_a_hybrid_is_answered_batch_by_batch(model_type):
    model = ComposableModel(hybrid(model_type))
    jobs = [Job(prompt, Composition(), "mixture", Sampling(5)) for prompt in prompts_of((12, 12, 4, 4, 9), seed=2)]
    endless = [alone(model, job) for job in jobs]
    eos_ids = rare(endless)
    answers, _ = run(Loop(generator_of(model, eos_ids), max_tokens=60), jobs)
    assert answers == [cut(answer, eos_ids) for answer in endless]


def test_the_batch_of_a_hybrid_is_read_whole_however_few_tokens_are_read_at_once():
    loop = Loop(generator_of(ComposableModel(hybrid("lfm2"))), max_tokens=100, read_tokens=8)
    for prompt in prompts_of((6, 6, 6, 6, 6), seed=2):
        loop.add(Job(prompt, Composition(), "mixture", Sampling(5)))
    loop.step()
    assert (loop.running, loop.waiting) == (4, 1)


def test_a_row_that_has_ended_and_cannot_leave_may_have_any_logits():
    model = ComposableModel(hybrid("lfm2"))
    prompts = prompts_of((6,) * 4, seed=2)
    free = continued_together(model, prompts, [], 5)
    ended = free[0][0]
    others = [row for row in range(4) if ended not in free[row]]
    calls = 0

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            logits = logits.clone()
            logits[0] = torch.nan
        return logits

    handle = model.base.get_output_embeddings().register_forward_hook(spoil)
    try:
        answers = continued_together(model, prompts, [ended], 5)
    finally:
        handle.remove()
    assert answers[0] == [ended]
    assert others
    assert [answers[row] for row in others] == [free[row] for row in others]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapted_by("llama", tmp_path_factory.mktemp("gated"))


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_rows_under_a_gate_share_a_batch_with_rows_under_the_same_gate(gated, gate):
    own = GATES[gate][0]
    compositions = [Composition(dict.fromkeys(names, 1.0)) for names in (GATED, GATED[:2], GATED[1:])]
    jobs = [
        Job(prompt, compositions[i % 3], "mixture", Sampling(4), None if i in (3, 4) else own)
        for i, prompt in enumerate(prompts_of((7, 4, 9, 5, 5, 8, 3), seed=6))
    ]
    expected = [alone(gated.model, job) for job in jobs]
    answers, events = run(Loop(generator_of(gated.model), max_tokens=60, max_rows=3), jobs)
    assert answers == expected
    uses = {event.id: event.gate for event in events if event.ended}
    for id, job in enumerate(jobs, start=1):
        assert (uses[id] is None) == (job.gate is None)
        if uses[id] is not None:
            used = {name for name, weight in uses[id].weights.items() if weight}
            assert used == set(job.composition.weights)


def failing(monkeypatch: pytest.MonkeyPatch, refuse: Callable[[torch.Tensor], Exception | None]) -> None:
    """Let the forward pass raise what `refuse` returns for its token ids."""
    forward = ComposableModel.__call__

    def watched(self: ComposableModel, input_ids: torch.Tensor, **options: Any) -> Any:
        if (error := refuse(input_ids)) is not None:
            raise error
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(ComposableModel, "__call__", watched)


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), IndexError("index out of range")])
def test_after_an_error_in_a_step_the_rows_go_on_where_they_were(model, monkeypatch, error):
    jobs = some_jobs(["mixture"])
    expected = [alone(model, job) for job in jobs]
    steps: list[int] = []

    def refuse(ids: torch.Tensor) -> Exception | None:
        if ids.shape[1] > 1:
            return None
        steps.append(len(ids))
        return error if len(steps) == 3 else None

    failing(monkeypatch, refuse)
    loop = Loop(generator_of(model), max_tokens=200)
    answers, _ = run(loop, jobs)
    assert answers == expected
    assert loop.room == (steps[2] // 2 if isinstance(error, torch.OutOfMemoryError) else 4)


@pytest.mark.slow
def test_after_a_shortage_of_memory_the_batch_grows_again_to_what_it_was(model, monkeypatch):
    sizes: list[int] = []

    def refuse(ids: torch.Tensor) -> Exception | None:
        sizes.append(len(ids))
        return torch.OutOfMemoryError("CUDA out of memory") if sizes == [8] else None

    failing(monkeypatch, refuse)
    monkeypatch.setattr("lora_retriever.generation.loop.RECOVERY", 24)
    loop = Loop(generator_of(model, share_prefix=False), max_tokens=1000, max_rows=8)
    jobs = [Job(prompt, Composition(), "mixture", Sampling(3)) for prompt in prompts_of([5] * 8, seed=1)]
    rooms = []
    while loop.room < 8 or not rooms:
        ids = [loop.add(job) for job in jobs]
        ended = {event.id for events in loop.ended() for event in events}
        assert ended == set(ids)
        rooms.append(loop.room)
    assert rooms[0] == 4 and rooms == sorted(rooms)
    assert len(sizes) > 4 * 24
    for job in jobs:
        loop.add(job)
    loop.step()
    assert loop.running == 8


@pytest.mark.slow
def test_a_job_that_fails_by_itself_ends_with_its_error_and_costs_no_other_job(model, monkeypatch):
    jobs = some_jobs(["mixture"])[:5]
    expected = [alone(model, job) for job in jobs]
    end = torch.tensor(jobs[2].prompt[-3:])

    def refuse(ids: torch.Tensor) -> Exception | None:
        return IndexError("no such thing") if ids.shape[1] > 2 and (ids[:, -3:] == end).all(dim=1).any() else None

    failing(monkeypatch, refuse)
    answers, events = run(Loop(generator_of(model), max_tokens=200), jobs)
    errors = {event.id: event.ended for event in events if event.error is not None}
    assert errors == {3: "error: IndexError: no such thing"}
    assert answers == [*expected[:2], [], *expected[3:]]


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), IndexError("index out of range")])
def test_after_an_error_rows_under_a_gate_keep_their_gate(gated, monkeypatch, error):
    own = GATES["prompt"][0]
    jobs = [
        Job(prompt, Composition(dict.fromkeys(GATED, 1.0)), "mixture", Sampling(4), own)
        for prompt in prompts_of((7, 4, 9), seed=6)
    ]
    expected = [alone(gated.model, job) for job in jobs]
    assert expected != [alone(gated.model, replace(job, gate=None)) for job in jobs]
    passes: list[int] = []

    def refuse(ids: torch.Tensor) -> Exception | None:
        passes.append(ids.shape[1])
        return error if passes.count(1) == 2 and ids.shape[1] == 1 else None

    failing(monkeypatch, refuse)
    answers, events = run(Loop(generator_of(gated.model), max_tokens=60), jobs)
    assert answers == expected
    assert all(event.gate is not None and set(event.gate.weights) == set(GATED) for event in events if event.ended)


def test_a_fatal_error_is_raised(model, monkeypatch):
    failing(monkeypatch, lambda ids: RuntimeError("the device is lost"))
    loop = Loop(generator_of(model), max_tokens=200, is_fatal=lambda error: "lost" in str(error))
    loop.add(some_jobs(["mixture"])[0])
    with pytest.raises(RuntimeError, match="the device is lost"):
        loop.step()
    assert model._live is None


@pytest.mark.slow
def test_logits_that_are_no_numbers_cost_their_own_row_alone(model, monkeypatch):
    forward = ComposableModel.__call__
    jobs = some_jobs(["mixture"])[:3]
    expected = [alone(model, job) for job in jobs]

    def watched(self: ComposableModel, input_ids: torch.Tensor, **options: Any) -> Any:
        output = forward(self, input_ids=input_ids, **options)
        output.logits[(input_ids[:, -1] == jobs[1].prompt[-1])] = torch.nan
        return output

    monkeypatch.setattr(ComposableModel, "__call__", watched)
    answers, events = run(Loop(generator_of(model), max_tokens=200), jobs)
    assert [event.id for event in events if event.error is not None] == [2]
    assert (answers[0], answers[2]) == (expected[0], expected[2])
