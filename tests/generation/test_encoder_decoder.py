"""Encoder-decoder bases: answers equal transformers' answers; losses and likelihoods equal a plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from composition_cases import write_adapter
from made_up import tiny_t5
from transformers import AutoModelForSeq2SeqLM

from lora_retriever.data.rows import Row, Sample
from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.encoder_decoder import KNOWN
from lora_retriever.generation.generator import Generator, make_prompts, row_prompts
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.loading import ModelSource, load_generator
from lora_retriever.generation.loop import Event, Loop
from lora_retriever.generation.sampling import Sampling
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.methods.parts.lorahub_weights import answer_loss
from lora_retriever.methods.spectr import METHODS as SPECTR
from lora_retriever.training.adapter import TrainingOptions
from lora_retriever.training.detector import train_detector

NEW = 7
TEXTS = ["what does the farmer plant", "white", "Write a response that completes the request. and user", "spring ?"]
COMPOSITIONS = [
    Composition(),
    Composition.of({"first": 1.0}),
    Composition.of({"first": 0.5, "second": -0.75}),
    Composition.of({"second": 1.0}),
]


@pytest.fixture(scope="module", params=KNOWN)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    model = tiny_t5(folder, request.param)
    for seed, name in enumerate(("first", "second")):
        write_adapter(folder / name, model, seed=seed, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM")
    return folder


@pytest.fixture(scope="module")
def generator(base: Path) -> Generator:
    settings = GenerationSection(template="none", max_new_tokens=NEW, batch_size=3)
    return load_generator(ModelSource(base, {name: base / name for name in ("first", "second")}, settings))


def dense(base: Path, composition: Composition) -> Any:
    """The base with the mixture of a composition in its own matrices, computed by PEFT's merging."""
    return _dense(base, tuple(composition.weights.items()))


@cache
def _dense(base: Path, weights: tuple[tuple[str, float], ...]) -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    total = {name: value.clone() for name, value in plain.items()}
    for name, weight in weights:
        fresh = AutoModelForSeq2SeqLM.from_pretrained(base)
        merged = peft.PeftModel.from_pretrained(fresh, str(base / name)).merge_and_unload().state_dict()
        for key, value in merged.items():
            total[key] += weight * (value - plain[key])
    model.load_state_dict(total)
    return model.eval()


def generated(base: Path, composition: Composition, ids: Sequence[int]) -> list[int]:
    """The answer of transformers' `generate` to one prompt alone, without the start token."""
    with torch.no_grad():
        tokens = dense(base, composition).generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)
    return [int(token) for token in tokens[0, 1:]]


def text_of(generator: Generator, tokens: list[int]) -> str:
    return str(generator.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def finished(loop: Loop) -> list[Event]:
    events = []
    while loop.waiting or loop.running:
        events += loop.step()
    return events


@pytest.mark.slow
def test_answers_are_those_of_transformers_for_each_row_alone(base: Path, generator: Generator) -> None:
    prompts = make_prompts(TEXTS, generator.tokenizer, generator.settings)
    answers = generator.answer(prompts, COMPOSITIONS, "mixture")
    expected = []
    for text, composition in zip(TEXTS, COMPOSITIONS, strict=True):
        ids = generator.tokenizer(text)["input_ids"]
        assert ids[-1] == generator.tokenizer.eos_token_id
        expected.append(generated(base, composition, ids))
    assert len({tuple(tokens) for tokens in expected}) > 2  # the compositions answer differently
    assert [answer.generated_tokens for answer in answers] == [len(tokens) for tokens in expected]
    assert [answer.text for answer in answers] == [text_of(generator, tokens) for tokens in expected]


@pytest.mark.slow
def test_peft_itself_gives_the_answers_under_one_adapter(base: Path, generator: Generator) -> None:
    model = peft.PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(base / "first")).eval()
    prompts = make_prompts(TEXTS, generator.tokenizer, generator.settings)
    for mode in ("mixture", "fusion"):
        answers = generator.answer(prompts, [Composition.of({"first": 1.0})] * len(TEXTS), mode)
        for text, answer in zip(TEXTS, answers, strict=True):
            ids = generator.tokenizer(text, return_tensors="pt").input_ids
            tokens = model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)[0, 1:]
            assert answer.text == text_of(generator, tokens)


@pytest.mark.slow
def test_rows_of_the_loop_keep_their_batch_and_get_the_answers_of_each_row_alone(
    base: Path, generator: Generator
) -> None:
    prompts = make_prompts(TEXTS, generator.tokenizer, generator.settings)
    loop = Loop(generator, 1000)
    ids = [
        loop.add(Job(prompt.token_ids, composition, "mixture", Sampling(new)))
        for prompt, composition, new in zip(prompts, COMPOSITIONS, (NEW, 3, NEW, 2), strict=True)
    ]
    tokens: dict[int, list[int]] = {id: [] for id in ids}
    while loop.waiting or loop.running:
        running = loop.running
        for event in loop.step():
            tokens[event.id] += [token.id for token in event.tokens]
        assert loop.waiting in (0, 1)  # three rows have room
        assert not (running and loop.waiting == 0 and not tokens[ids[3]])  # the fourth joins when no other row runs
    for id, text, composition, new in zip(ids, TEXTS, COMPOSITIONS, (NEW, 3, NEW, 2), strict=True):
        assert tokens[id] == generated(base, composition, generator.tokenizer(text)["input_ids"])[:new]


@pytest.mark.slow
def test_rows_that_lost_their_batch_go_on_where_they_were(
    base: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out at the third token. Smaller batches then read the prompts again, with the tokens so far."""
    prompts = make_prompts(TEXTS[:3], generator.tokenizer, generator.settings)
    loop = Loop(generator, 1000)
    assert loop._apart is not None
    ids = [loop.add(Job(p.token_ids, c, "mixture", Sampling(NEW))) for p, c in zip(prompts, COMPOSITIONS, strict=False)]
    step, calls = loop._apart.step, 0

    def fails_once(tokens: Sequence[int]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("out of memory")
        return step(tokens)

    monkeypatch.setattr(loop._apart, "step", fails_once)
    tokens: dict[int, list[int]] = {id: [] for id in ids}
    for event in finished(loop):
        tokens[event.id] += [token.id for token in event.tokens]
    for id, text, composition in zip(ids, TEXTS, COMPOSITIONS, strict=False):
        assert tokens[id] == generated(base, composition, generator.tokenizer(text)["input_ids"])


def plain_losses(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """The surprise of each token of an answer, token by token, in nats."""
    found, begun = [], [3]
    for token in answer:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([begun])).logits[0, -1]
        found.append(-float(logits.double().log_softmax(dim=0)[token]))
        begun.append(token)
    return found


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.slow
def test_the_loss_is_that_of_a_plain_loop_over_tokens(base: Path, generator: Generator, batch_size: int) -> None:
    samples = [Sample(inputs=text, targets=target) for text, target in zip(TEXTS, TEXTS[::-1], strict=True)]
    settings = generator.settings.model_copy(update={"batch_size": batch_size})
    loss = answer_loss(generator.model, generator.tokenizer, ["first"], samples, settings)
    model = dense(base, Composition.of({"first": 1.0}))
    means = []
    for sample in samples:
        target = generator.tokenizer(sample.target)["input_ids"]
        losses = plain_losses(model, generator.tokenizer(sample.inputs)["input_ids"], target)
        means.append(sum(losses) / len(losses))
    assert loss([1.0]) == pytest.approx(sum(means) / len(means), rel=1e-4)


@pytest.mark.slow
def test_options_are_scored_as_answers_of_the_decoder(base: Path, generator: Generator) -> None:
    options = ("white", "wheat and barley", "the bishop")
    rows = [
        Row(inputs=text, targets="white", task="t", domain="d", metric="choice", options=options, id=place)
        for place, text in enumerate(TEXTS)
    ]
    prompts = row_prompts(rows, generator.tokenizer, generator.settings)
    answers = generator.score(prompts, COMPOSITIONS, "mixture")
    for row, composition, answer in zip(rows, COMPOSITIONS, answers, strict=True):
        model = dense(base, composition)
        prompt = generator.tokenizer(row.inputs)["input_ids"]
        tokens = [generator.tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
        assert answer.likelihoods == pytest.approx([-sum(plain_losses(model, prompt, t)) for t in tokens], rel=1e-4)


@pytest.mark.parametrize("base", ["t5"], indirect=True)
def test_what_is_not_made_for_two_texts_is_refused(generator: Generator) -> None:
    (prompt,) = make_prompts(TEXTS[:1], generator.tokenizer, generator.settings)
    gate: Any = SPECTR[0].gate
    composition, sampling = Composition.of({"first": 1.0}), Sampling(NEW)
    loop = Loop(generator, 1000)
    for refused in (
        lambda: generator.answer([prompt], [composition], "mixture", gate),
        lambda: generator.score([prompt], [composition], "mixture", gate),
        lambda: loop.add(Job(prompt.token_ids, composition, "mixture", sampling, gate)),
        lambda: loop.add(Job(prompt.token_ids, composition, "mixture", sampling, scored=1)),
    ):
        with pytest.raises(UserError, match="encoder-decoder"):
            refused()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["t5"], indirect=True)
def test_a_detection_head_needs_a_decoder_only_base(base: Path, generator: Generator, tmp_path: Path) -> None:
    samples = [Sample(inputs="white", targets="a | r | b")]
    options = TrainingOptions(detect="cross_entropy")
    with pytest.raises(UserError, match="detection heads need a decoder-only base"):
        train_detector(generator.model.base, generator.tokenizer, samples, options, tmp_path / "out")
