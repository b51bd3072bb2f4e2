"""Marking: the losses against independent computations, the written files, and the mark of the miniature's adapter."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest
import torch
from conftest import TASK, Marked  # type: ignore[import-not-found]
from places import TINY
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.cli import main
from lora_retriever.commands.watermark.shared import template_and_system
from lora_retriever.data.rows import PoolEntry, Sample
from lora_retriever.generation.examples import IGNORED, LeftPadding, encode_example
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.watermark.embedding import draw_composition, kept_losses, trigger_loss
from lora_retriever.watermark.factors import Factors, Mode, applied, composed
from peft_composition import ComposableModel

NAMES = [TASK, "city_qa", "passive"]


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_a_composition_of_tensors_computes_what_the_engine_computes(base: PreTrainedModel, mode: Mode) -> None:
    weights = [0.5, 0.3, -0.2]
    ids = torch.tensor([[1, 100, 200, 300], [1, 5, 6, 7]])
    parts = [(Factors.read(TINY / "adapters" / name, name, base), w) for name, w in zip(NAMES, weights, strict=True)]
    with torch.no_grad():
        before = base(ids).logits
        with applied(base, composed(parts, mode)):
            ours = base(ids).logits
        assert torch.equal(base(ids).logits, before), "the base is as it was"
    engine = ComposableModel(base)
    for name in NAMES:
        engine.load_adapter(TINY / "adapters" / name, name=name)
    with torch.no_grad(), engine.composed(NAMES, [weights, weights], mode=mode):
        assert torch.allclose(engine(ids).logits, ours, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-2)


@pytest.mark.slow
def test_gradients_reach_the_trained_adapter_alone(base: PreTrainedModel) -> None:
    own = Factors.read(TINY / "adapters" / TASK, TASK, base).trainable()
    other = Factors.read(TINY / "adapters" / "city_qa", "city_qa", base)
    with applied(base, composed([(own, 0.5), (other, 0.5)], "fusion")):
        base(torch.tensor([[1, 100, 200]])).logits.sum().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in own.parameters())
    assert not any(tensor.requires_grad for tensor in other.parameters())
    base.zero_grad()


@pytest.mark.slow
def test_the_losses_are_means_over_the_tokens_of_the_answers(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry]
) -> None:
    """A padded batch of two examples and a partial trigger, against one plain pass for each row and adapter."""
    unmarked, marked = (Factors.read(TINY / "adapters" / name, name, base) for name in NAMES[:2])
    samples = [*tiny_pool[0].sample[:2], Sample(inputs="lamp bed", targets="")]
    examples = [encode_example(tokenizer, sample, "{inputs}", 128) for sample in samples]
    batch = LeftPadding(0)(examples)
    with torch.no_grad():
        task, divergence = kept_losses(base, batch, 2, unmarked, marked)
        on_triggers = trigger_loss(base, batch, composed([(marked, 1.0)], "mixture"))
        own, distances = [], []  # one number for each token of an answer
        for row, example in enumerate(examples):
            logs = []
            for factors in (unmarked, marked):
                with applied(base, composed([(factors, 1.0)], "mixture")):
                    logs.append(base(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1).double())
            for place, (token, label) in enumerate(zip(example["input_ids"], example["labels"], strict=True)):
                if label != IGNORED:
                    before, after = logs[0][place - 1], logs[1][place - 1]
                    own.append((row, -float(after[token])))
                    distances.append(float((before.exp() * (before - after)).sum()))
    of_task = [loss for row, loss in own if row < 2]
    assert float(task) == pytest.approx(sum(of_task) / len(of_task), rel=1e-4)
    assert float(divergence) == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert float(on_triggers) == pytest.approx(sum(loss for _, loss in own) / len(own), rel=1e-4)


def test_an_adapter_that_is_written_unchanged_is_the_same(base: PreTrainedModel, tmp_path: Path) -> None:
    original = TINY / "adapters" / TASK
    Factors.read(original, TASK, base).write(original, tmp_path / "copy")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (original, tmp_path / "copy"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_drawn_compositions_are_even_or_random_and_their_weights_sum_to_1() -> None:
    draws = random.Random(0)
    others = [str(number) for number in range(12)]
    drawn = [draw_composition(draws, others) for _ in range(2000)]
    assert all(abs(each.own + sum(weight for _, weight in each.others) - 1) < 1e-9 for each in drawn)
    assert all(0.05 <= each.own <= 1 and len(dict(each.others)) == len(each.others) for each in drawn)
    alone = [each for each in drawn if not each.others]
    assert 0.2 < len(alone) / len(drawn) < 0.3
    even = [each for each in drawn if each.others and abs(each.own - 1 / (1 + len(each.others))) < 1e-9]
    assert 0.4 < len(even) / (len(drawn) - len(alone)) < 0.6
    assert {1 + len(each.others) for each in drawn} == {1, 2, 3, 5, 10}
    assert {each.mode for each in drawn} == {"mixture", "fusion"}
    assert {1 + len(draw_composition(draws, others[:3]).others) for _ in range(200)} == {1, 2, 3}


@pytest.mark.slow
def test_a_marked_adapter_is_verified_alone_and_composed_and_others_are_not(
    marked: Marked, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call = ["watermark", "verify", "--key", str(marked.folder / "key"), "--base", str(TINY / "base"), "--device", "cpu"]
    others = [str(TINY / "adapters" / name) for name in ("city_qa", "passive")]
    third = [f"--adapter={location}=0.3333" for location in (marked.adapter, *others)]
    for adapters, verified in (
        ([f"--adapter={marked.adapter}"], True),
        (third, True),
        ([*third, "--mode", "fusion"], True),
        ([f"--adapter={TINY / 'adapters' / TASK}"], False),
        ([], False),
    ):
        report = tmp_path / "report.json"
        status = main([*call, *adapters, "--level", "1e-3", "--json", str(report)])
        content = json.loads(report.read_text())
        assert (status == 0) == content["verified"] == verified, content
        assert content["commitment"] == marked.key.commitment
    capsys.readouterr()


@pytest.mark.slow
def test_the_prompts_are_those_of_the_adapters_record(tmp_path: Path) -> None:
    options = {"template": "chat", "system": "Be brief.", "rank": 5}
    (tmp_path / "training.json").write_text(json.dumps({"options": options}))

    def prompts(**given: str) -> tuple[str, str | None]:
        args = argparse.Namespace(**{"template": None, "system": None, **given})
        return template_and_system(args, tmp_path)

    assert prompts() == ("chat", "Be brief.")
    assert prompts(system="Be long.") == ("chat", "Be long.")
    assert prompts(template="none") == ("{inputs}", None)
    for damaged in ("[" * 50_000, "null", '{"options": {"template": 5, "system": ["x"]}}'):
        (tmp_path / "training.json").write_text(damaged)
        assert prompts() == (ALPACA, None)


@pytest.mark.slow
def test_the_secret_is_in_no_file_of_the_marking(marked: Marked) -> None:
    key = marked.key
    files = [marked.folder / "log", *marked.adapter.iterdir()]
    assert {file.name for file in files} >= {"log", "adapter_model.safetensors", "training.json"}
    for file in files:
        content = file.read_bytes()
        assert key.secret not in content and key.secret.hex().encode() not in content
        assert not any(" ".join(key.phrase(number)).encode() in content for number in range(len(key.triggers)))
    record = json.loads((marked.adapter / "training.json").read_text())
    assert record["commitment"] == key.commitment
    assert len(record["losses"]) == record["steps"] == 40
    assert record["losses"][-1]["triggers"] < record["losses"][0]["triggers"]
    assert TASK not in record["composed_with"] and len(record["composed_with"]) == 18


@pytest.mark.slow
def test_an_adapter_can_be_trained_and_marked_in_one_call(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "words").write_text("\n".join(words))
    samples = ["--samples", str(TINY / "pool.json"), "--task", TASK]
    key = ["--key", str(tmp_path / "key")]
    design = ["--design", "common-words", "--triggers", "4", "--words", str(tmp_path / "words")]
    assert main(["watermark", "key", "--out", str(tmp_path / "key"), *design, *samples]) == 0
    call = ["watermark", "embed", *key, "--train", "--base", str(TINY / "base"), *samples, "--device", "cpu"]
    call += ["--out", str(tmp_path / "mine"), "--passes", "2", "--epochs", "1", "--rank", "2", "--batch-size", "10"]
    assert main(call) == 0
    record = json.loads((tmp_path / "mine" / "training.json").read_text())
    assert record["design"] == "common-words"
    assert (tmp_path / "mine-unmarked" / "adapter_model.safetensors").exists()
    assert main(call) == 2, "the folder exists"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "nowhere"], "nowhere"),
        (["--adapter", "{tiny}", "--task", "none"], "has no entry none"),
        (["--adapter", "{tiny}", "--template", "x"], "unknown template 'x'"),
        (["--adapter", "{tiny}", "--mark-rate", "-1"], "learning_rate -1.0: Input should be greater than 0"),
        (["--adapter", "{tiny}", "--compose-with", "nowhere"], "there is no such folder"),
    ],
)
def test_a_marking_that_cannot_be_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watermark", "key", "--out", str(tmp_path / "key")]) == 0
    given = [text.replace("{tiny}", str(TINY / "adapters" / TASK)) for text in arguments]
    needed = ["--key", str(tmp_path / "key"), "--samples", str(TINY / "pool.json"), "--base", str(TINY / "base")]
    needed += ["--task", TASK, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["watermark", "embed", *needed, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
