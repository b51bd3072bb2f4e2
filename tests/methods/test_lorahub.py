"""LoraHub: the optimisation on losses with a known answer, the loss against dense matrices, the method, the command."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from composition_cases import tiny_gpt2
from places import TINY
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lora_retriever.cli import main
from lora_retriever.data.rows import PoolEntry, Sample
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.examples import IGNORED, LeftPadding, example_losses
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import load_generator
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.methods.context import Context
from lora_retriever.methods.lorahub import METHODS, LoraHub
from lora_retriever.methods.parts import lorahub_weights as lorahub
from lora_retriever.methods.parts.lorahub_weights import WORST, Search, answer_loss, draw_adapters, learn_weights
from peft_composition import ComposableModel

ContextOf = Callable[..., Context]
PLANTED = (0.8, -0.5, 0.0, 0.3)
NAMES = ("a", "b", "c", "d")
QUICK = LoraHub(adapters=3, samples=1, steps=6)


class Quadratic:
    """A loss with the minimum 1, at planted weights. The object counts its calls, and can fail at a given call."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls = 0
        self._fails_at = fails_at

    def __call__(self, weights: Sequence[float]) -> float:
        if self.calls == self._fails_at:
            raise KeyboardInterrupt
        self.calls += 1
        return 1 + sum((weight - planted) ** 2 for weight, planted in zip(weights, PLANTED, strict=True))


@pytest.mark.slow
def test_planted_weights_are_found() -> None:
    learned = learn_weights(Quadratic(), NAMES, Search(80, l1=0))
    assert list(learned.weights) == list(NAMES)
    assert list(learned.weights.values()) == pytest.approx(PLANTED, abs=0.01)
    assert learned.loss == pytest.approx(1, abs=1e-3)
    assert learned.base_loss == pytest.approx(1 + 0.64 + 0.25 + 0.09)


def test_the_best_of_all_tries_is_taken_and_the_first_is_the_base() -> None:
    loss = Quadratic()
    learned = learn_weights(loss, NAMES, Search(12))
    assert loss.calls == len(learned.steps) == 12
    assert learned.steps[0].weights == (0, 0, 0, 0)
    penalised = [step.loss + 0.05 * sum(abs(weight) for weight in step.weights) / 4 for step in learned.steps]
    assert [Search(l1=0.05).objective(step) for step in learned.steps] == pytest.approx(penalised)
    best = learned.steps[penalised.index(min(penalised))]
    assert (tuple(learned.weights.values()), learned.loss) == (best.weights, best.loss)


@pytest.mark.slow
def test_a_penalty_shrinks_the_weights() -> None:
    learned = {l1: learn_weights(Quadratic(), NAMES, Search(80, l1)) for l1 in (0, 1, 4, 20)}
    sizes = [sum(map(abs, found.weights.values())) for found in learned.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(1.6, abs=0.02)
    assert sizes[-1] == 0
    # The minimum of (w - p)² + |w| α/4 is at |w| = |p| - α/8, or at 0 if this number is negative.
    best = [max(abs(planted) - 1 / 8, 0) for planted in PLANTED]
    least = 1 + sum((size - abs(planted)) ** 2 + size / 4 for size, planted in zip(best, PLANTED, strict=True))
    assert min(Search(l1=1).objective(step) for step in learned[1].steps) == pytest.approx(least, abs=0.02)


@pytest.mark.slow
def test_weights_stay_within_the_bound() -> None:
    learned = learn_weights(lambda weights: -sum(weights), NAMES, Search(60, l1=0, bound=0.7))
    assert max(abs(weight) for step in learned.steps for weight in step.weights) <= 0.7
    assert min(learned.weights.values()) > 0.6


@pytest.mark.slow
def test_a_loss_that_is_no_number_counts_as_a_bad_one() -> None:
    def loss(weights: Sequence[float]) -> float:
        return float("nan") if weights[0] > 0.9 else Quadratic()(weights)

    learned = learn_weights(loss, NAMES, Search(80, l1=0))
    assert list(learned.weights.values()) == pytest.approx(PLANTED, abs=0.1)
    assert learn_weights(lambda _: float("inf"), NAMES, Search(3)).loss == WORST


@pytest.mark.slow
def test_no_weights_are_tried_twice(tmp_path: Path) -> None:
    """When COBYLA has converged, it begins anew, and asks again for the loss of its first weights."""
    calls: list[tuple[float, ...]] = []
    log = tmp_path / "steps.jsonl"

    def loss(weights: Sequence[float]) -> float:
        calls.append(tuple(weights))
        return 1 + (weights[0] - 0.8) ** 2

    learned = learn_weights(loss, ["a"], Search(80, l1=0), log=log)
    assert len(calls) == len(set(calls)) < len(learned.steps) == 80
    assert all(step.loss == pytest.approx(1 + (step.weights[0] - 0.8) ** 2) for step in learned.steps)
    done = len(calls)
    assert learn_weights(loss, ["a"], Search(80, l1=0), log=log) == learned
    assert len(calls) == done


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1, 7, 11])
def test_an_interrupted_optimisation_computes_no_loss_again(tmp_path: Path, stopped: int) -> None:
    whole = learn_weights(Quadratic(), NAMES, Search(12), log=tmp_path / "whole.jsonl")
    log = tmp_path / "steps.jsonl"
    with pytest.raises(KeyboardInterrupt):
        learn_weights(Quadratic(fails_at=stopped), NAMES, Search(12), log=log)
    again = Quadratic()
    resumed = learn_weights(again, NAMES, Search(12), log=log)
    assert again.calls == 12 - stopped
    assert resumed.weights == whole.weights
    assert [(step.weights, step.loss) for step in resumed.steps] == [(step.weights, step.loss) for step in whole.steps]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(tuple(line["weights"]), line["loss"]) for line in lines] == [
        (step.weights, step.loss) for step in whole.steps
    ]


@pytest.mark.slow
def test_tries_of_another_optimisation_are_not_believed(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    learn_weights(Quadratic(), NAMES, Search(12, bound=0.5), log=log)
    again = Quadratic()
    learned = learn_weights(again, NAMES, Search(12), log=log)
    assert learned.weights == learn_weights(Quadratic(), NAMES, Search(12)).weights
    assert again.calls == 11  # the start is the same
    assert len(log.read_text().splitlines()) == 12


def test_no_thread_is_left_behind_whether_it_ends_or_fails() -> None:
    before = set(threading.enumerate())
    learn_weights(Quadratic(), NAMES, Search(3))
    with pytest.raises(KeyboardInterrupt):
        learn_weights(Quadratic(fails_at=2), NAMES, Search(12))
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_adapters_are_drawn_by_the_seed() -> None:
    names = [f"adapter {number}" for number in range(48)]
    drawn = draw_adapters(names, 20, seed=1)
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn, key=names.index) == draw_adapters(names, 20, seed=1)
    assert drawn != draw_adapters(names, 20, seed=2)
    assert draw_adapters(names, 60, seed=1) == names


def plain_loss(tokenizer: PreTrainedTokenizerBase, weights: dict[str, float], samples: Sequence[Sample]) -> float:
    """The loss in float64 by loops over examples and tokens, without padding.

    The base's matrices contain the fusion.
    """
    model = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float64).eval()
    downs: dict[str, torch.Tensor] = {}
    ups: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        config = json.loads((TINY / "adapters" / name / "adapter_config.json").read_text())
        for key, tensor in load_file(TINY / "adapters" / name / "adapter_model.safetensors").items():
            module, _, half = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
            if half == "lora_A":
                downs[module] = downs.get(module, 0) + weight * tensor.double()
            else:
                ups[module] = ups.get(module, 0) + weight * config["lora_alpha"] / config["r"] * tensor.double()
    for module in downs:
        model.get_submodule(module).weight.data += ups[module] @ downs[module]
    means = []
    for sample in samples:
        prompt = tokenizer(ALPACA.format(inputs=sample.inputs))["input_ids"]
        answer = [*tokenizer(sample.targets, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            chances = model(torch.tensor([prompt + answer])).logits[0].softmax(dim=-1)  # [length, vocabulary]
        surprises = [-chances[len(prompt) + place - 1, token].log().item() for place, token in enumerate(answer)]
        means.append(sum(surprises) / len(surprises))
    return sum(means) / len(means)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_loss_is_that_of_a_plain_loop_over_examples(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry], batch_size: int
) -> None:
    weights = {"people_qa": 0.9, "restaurant_text": -0.4, "to_velan": 0.5}
    samples = [entry.sample[place] for place, entry in enumerate(tiny_pool[:9])]
    assert len({len(sample.targets) for sample in samples}) > 3
    settings = GenerationSection(batch_size=batch_size)
    loss = answer_loss(generator.model, tokenizer, list(weights), samples, settings)
    assert loss(list(weights.values())) == pytest.approx(plain_loss(tokenizer, weights, samples), abs=1e-4)
    assert loss([0, 0, 0]) == pytest.approx(plain_loss(tokenizer, {}, samples), abs=1e-4)


def test_padding_on_the_left_shifts_no_position() -> None:
    """GPT-2's positions are absolute: if padding counted, the positions would be wrong."""
    model = ComposableModel(tiny_gpt2().double())
    examples = [
        {"input_ids": [5, 9, 31, 17, 22, 40, 8], "labels": [*[IGNORED] * 4, 22, 40, 8]},
        {"input_ids": [11, 3, 7], "labels": [IGNORED, 3, 7]},
    ]
    collate = LeftPadding(0)
    together = example_losses(model, collate(examples))
    alone = torch.cat([example_losses(model, collate([example])) for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert (alone[0] - alone[1]).abs() > 0.1


@pytest.mark.slow
def test_long_examples_are_batched_within_the_tokens_allowed(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry]
) -> None:
    sizes: list[int] = []
    samples = [sample for entry in tiny_pool[:3] for sample in entry.sample[:4]]
    settings = GenerationSection(batch_size=8, batch_tokens=500)
    loss = answer_loss(generator.model, tokenizer, ["people_qa"], samples, settings)
    hook = generator.model.base.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        loss([0.5])
    finally:
        hook.remove()
    assert 1 < len(sizes) < len(samples)
    assert max(sizes) <= 500


@pytest.mark.slow
def test_all_rows_have_one_composition_that_is_no_worse_than_the_base(context_of: ContextOf) -> None:
    context = context_of()
    compositions = QUICK.route(context)
    assert len(compositions) == len(context.rows)
    assert all(composition == compositions[0] for composition in compositions)
    (folder,) = (context._resources.results / "learned").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["loss"] < record["base_loss"] == record["losses"][0]
    assert len(record["losses"]) == len((folder / "steps.jsonl").read_text().splitlines()) == 6
    assert record["examples"] == len(context.pool)
    assert list(record["weights"]) == record["adapters"]
    assert set(compositions[0].adapters) <= set(record["adapters"])
    assert {"seconds", "versions", "conditions"} <= record.keys()


@pytest.mark.slow
def test_a_masked_adapter_has_no_weight_for_its_rows_and_the_others_keep_theirs(context_of: ContextOf) -> None:
    context = context_of(masked=True)
    shared = QUICK.route(context_of())[0]
    for row, composition in zip(context.rows, QUICK.route(context), strict=True):
        expected = {name: weight for name, weight in shared.weights.items() if name != row.task}
        assert composition.weights == expected
    assert len(list((context._resources.results / "learned").iterdir())) == 1  # nothing is learned anew


@pytest.mark.slow
def test_the_seed_decides_which_adapters_are_taken(context_of: ContextOf, tmp_path: Path) -> None:
    first = QUICK.route(context_of())
    assert QUICK.route(context_of(results=tmp_path / "elsewhere")) == first
    assert set(QUICK.route(context_of(seed=1))[0].adapters) != set(first[0].adapters)


@pytest.mark.slow
def test_adapters_that_do_not_fit_into_memory_are_reported(tiny: Profile, benchmark: Benchmark) -> None:
    room = 3 * (benchmark.adapters["people_qa"] / "adapter_model.safetensors").stat().st_size
    generator = load_generator(replace(model_source(tiny, benchmark), adapter_memory=room))
    model, samples = generator.model, benchmark.pool[0].sample[:2]
    loss = answer_loss(model, generator.tokenizer, model.adapters, samples, tiny.generation)
    with pytest.raises(UserError, match="memory"):
        loss([0.1] * len(model.adapters))


def test_examples_that_do_not_fit_into_memory_are_reported(
    generator: Generator, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    samples = benchmark.pool[0].sample[:2]
    loss = answer_loss(generator.model, generator.tokenizer, ["people_qa"], samples, generator.settings)
    monkeypatch.setattr(type(generator.model.base), "forward", refusing)
    with pytest.raises(UserError, match=r"do not fit into memory; lower generation\.batch_size"):
        loss([0.1])


def test_impossible_options_are_refused() -> None:
    for options, message in (
        ({"steps": 0}, "steps is 0"),
        ({"l1": -1.0}, "l1 is -1"),
        ({"bond": 1}, "no option 'bond'"),
    ):
        with pytest.raises(UserError, match=message):
            METHODS[0].with_options(options)


@pytest.fixture
def task(tmp_path: Path, tiny_pool: list[PoolEntry]) -> Path:
    """A user's few examples of a task."""
    file = tmp_path / "examples.json"
    file.write_text(json.dumps([sample.model_dump() for sample in tiny_pool[1].sample[:4]]))
    return file


def command(examples: Path, *more: str) -> int:
    out = str(examples.parent / "learned")
    return main(["lorahub", "--base", str(TINY / "base"), "--examples", str(examples), "--out", out, *more])


@pytest.mark.slow
def test_the_command_saves_what_it_learned_as_a_checkpoint(
    task: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(task, "--adapters", str(TINY / "adapters"), "--count", "4", "--steps", "8", "--seed", "3") == 0
    printed, out = capsys.readouterr().out, task.parent / "learned"
    record = json.loads((out / "lorahub.json").read_text())
    assert record["loss"] < record["base_loss"]
    assert f"{record['loss']:.4f} with these weights" in printed
    assert f"{record['base_loss']:.4f} with the base alone" in printed
    assert len(record["weights"]) == 4
    assert all(f"{name} " in printed for name in record["weights"])

    ids = generator.tokenizer("where does Karl live?", return_tensors="pt").input_ids
    names = [Path(location).name for location in record["weights"]]
    with torch.no_grad(), generator.model.composed(names, [list(record["weights"].values())], mode="fusion"):
        composed = generator.model(input_ids=ids).logits
    base = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    with torch.no_grad():
        untouched = base(ids).logits
        loaded = peft.PeftModel.from_pretrained(base, str(out)).eval()(ids).logits
    assert (untouched - composed).abs().max() > 0.1
    torch.testing.assert_close(loaded, composed, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_command_passes_over_folders_that_are_no_adapters_and_names_them(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapters"
    for name in ("city_qa", "animal_qa"):
        shutil.copytree(TINY / "adapters" / name, folder / name)
    for name in ("runs", "[bold]checkpoint-8", ".hidden"):
        (folder / name).mkdir()
    assert command(task, "--adapters", str(folder), "--steps", "6") == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "passed over, no adapter_config.json: [bold]checkpoint-8, runs" in said.replace("  ", " ")
    assert ".hidden" not in said
    weights = json.loads((task.parent / "learned" / "lorahub.json").read_text())["weights"]
    assert sorted(Path(location).name for location in weights) == ["animal_qa", "city_qa"]


def test_the_command_refuses_a_folder_that_is_there_before_it_loads_anything(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (task.parent / "learned").mkdir()
    assert command(task, "--adapter", "nowhere", "--base", "nowhere") == 2
    assert f"--out {task.parent / 'learned'}: exists already" in capsys.readouterr().err


def test_the_command_sees_first_that_it_can_write(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(task, "--adapter", "nowhere", "--base", "nowhere", "--out", "/proc/nowhere/learned") == 2
    assert "/proc/nowhere/learned: cannot be written" in capsys.readouterr().err


ADAPTER = str(TINY / "adapters" / "to_velan")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name each --adapter, or a folder of adapters with --adapters"),
        (["--adapters", str(TINY)], "none of its folders has an adapter_config.json"),
        (["--adapter", ADAPTER, "--adapter", ADAPTER], "is named twice"),
        (["--adapter", str(TINY)], "adapter_config.json"),
        (["--adapters", "/nowhere"], "--adapters /nowhere: there is no such folder"),
        (["--adapter", ADAPTER, "--base", str(TINY)], f"base model {TINY}: cannot be loaded"),
        (["--adapter", ADAPTER, "--template", "vicuna"], "unknown template 'vicuna' (known: alpaca, none"),
        (["--adapter", ADAPTER, "--steps", "3", "--l1", "1000"], "none of the 3 weight vectors tried is better"),
        (["--adapter", ADAPTER, "--l1", "-1"], "must be a number of 0 or more"),
        (["--adapter", ADAPTER, "--seed", "-1"], "must be 0 or more"),
        (["--adapter", ADAPTER, "--template", "long " * 600 + "{inputs}"], "the prompt template alone has"),
    ],
)  # fmt: skip
def test_the_command_says_what_it_cannot_use(
    task: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status = command(task, *arguments)
    except SystemExit as exit:  # argparse's own
        status = int(exit.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (task.parent / "learned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"inputs": "a", "targets": "b"}, {"inputs": "a"}]', "row 2: field 'targets': is missing"),
        ('{"inputs": "a", "targets": "b"}\n{"inputs"', "line 2: not valid JSON"),
        ("", "the file is empty"),
    ],
)
def test_the_command_names_the_bad_example(
    task: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    task.write_text(text)
    assert command(task, "--adapter", ADAPTER) == 2
    assert f"{task}: {message}" in capsys.readouterr().err


def test_a_long_answer_does_not_make_logits_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 262,144 words and answers of 500 tokens once took 33 GB for a batch of 64."""
    lengths = [(30, 20), (29, 2), (28, 2), (27, 2), (26, 2), (25, 24), (24, 1)]
    examples = [
        {"input_ids": [0] * total, "labels": [IGNORED] * (total - answer) + [1] * answer} for total, answer in lengths
    ]
    monkeypatch.setattr(lorahub, "LOGITS", 100 * 9)
    batches = list(lorahub._batches(examples, GenerationSection(batch_size=64), vocabulary=100))
    assert [[len(example["input_ids"]) for example in batch] for batch in batches] == [
        [30],
        [29, 28, 27],
        [26],
        [25],
        [24],
    ]
