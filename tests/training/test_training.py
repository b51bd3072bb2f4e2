"""Training one LoRA: the loss is the answer's alone, the base stays, the loop over a pool resumes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from places import TINY
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lora_retriever.cli import build_parser, main
from lora_retriever.commands.train import OPTIONS as OPTION_HELPS
from lora_retriever.data.rows import PoolEntry, Sample
from lora_retriever.errors import UserError
from lora_retriever.generation.examples import IGNORED, LeftPadding, encode_example
from lora_retriever.training.adapter import train_adapter
from lora_retriever.training.curve import Step
from lora_retriever.training.detector import train_detector
from lora_retriever.training.lora import TrainingOptions, check_trained
from lora_retriever.training.pool import chosen_entries, is_trained, made_of, summary
from peft_composition import ComposableModel

OPTIONS = TrainingOptions(rank=4, alpha=8, epochs=3, learning_rate=5e-3, batch_size=4, max_tokens=128)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)


def test_the_loss_is_the_mean_over_the_answers_tokens(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry]
) -> None:
    """A padded batch with few logits kept, against one forward pass per sample with all of them."""
    examples = [
        encode_example(tokenizer, sample, OPTIONS.template, OPTIONS.max_tokens) for sample in tiny_pool[0].sample[:3]
    ]
    batch = LeftPadding(0)(examples)
    assert batch["labels"].shape[1] == batch["logits_to_keep"] < batch["input_ids"].shape[1]
    with torch.no_grad():
        loss = base(**batch).loss
        losses = []
        for example in examples:
            tokens = torch.tensor([example["input_ids"]])
            log_probabilities = base(tokens).logits.log_softmax(-1)[0]
            losses += [
                -log_probabilities[place - 1, token]
                for place, (token, label) in enumerate(zip(example["input_ids"], example["labels"], strict=True))
                if label != IGNORED
            ]
    assert loss == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_labels_are_the_answer_and_its_end(tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry]) -> None:
    sample = tiny_pool[0].sample[0]
    example = encode_example(tokenizer, sample, OPTIONS.template, OPTIONS.max_tokens)
    answer = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(answer[:-1]) == sample.targets
    assert answer[-1] == tokenizer.eos_token_id
    cut = encode_example(tokenizer, sample, OPTIONS.template, OPTIONS.max_tokens, 1)
    assert cut["labels"][-1] != tokenizer.eos_token_id


def test_a_tokenizer_without_an_eos_token_is_a_users_mistake(tiny_pool: list[PoolEntry]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"base: it has no EOS token, so no adapter learns to end answers"):
        encode_example(tokenizer, tiny_pool[0].sample[0], OPTIONS.template, OPTIONS.max_tokens)


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_base(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    samples = tiny_pool[0].sample
    record = train_adapter(base, tokenizer, samples[:16], OPTIONS, tmp_path / "adapter", validation=samples[16:])
    assert record["losses"][-1] < record["losses"][0]
    assert len(record["validation_losses"]) == 3
    assert record["steps"] == 12
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    ComposableModel(base).load_adapter(tmp_path / "adapter", name="trained")
    assert json.loads((tmp_path / "adapter" / "training.json").read_text()) == record


@pytest.mark.slow
def test_prompts_and_answers_that_are_cut_are_counted_and_named(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    tasks = {entry.model_name: entry.sample for entry in tiny_pool}
    samples = [*tasks["people_qa"][:8], *tasks["restaurant_text"][:7]]  # answers of one word, and of eleven words
    prompts = [len(encode_example(tokenizer, sample, "{inputs}", 512)["input_ids"]) for sample in samples]
    answers = [len(tokenizer(sample.target, add_special_tokens=False)["input_ids"]) + 1 for sample in samples]
    prompts = [both - answer for both, answer in zip(prompts, answers, strict=True)]
    longest, longest_answer = sorted(prompts)[len(prompts) // 2], sorted(answers)[len(answers) // 2]
    options = TrainingOptions(max_tokens=longest, max_answer_tokens=longest_answer, template="{inputs}", epochs=1)
    record = train_adapter(base, tokenizer, samples, options, tmp_path / "adapter")
    cut = [sum(length > most for length in of) for of, most in ((prompts, longest), (answers, longest_answer))]
    assert all(cut) and [record["cut_prompts"], record["cut_answers"]] == cut
    line = summary({**record, "cut_prompts": 3, "cut_answers": 0})
    assert line.endswith("of 15 examples, 3 prompts were too long and were cut")
    assert "cut" not in summary({**record, "cut_prompts": 0, "cut_answers": 0})


@pytest.mark.long
def test_a_pool_is_trained_task_by_task_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_pool: list[PoolEntry]
) -> None:
    names = [entry.model_name for entry in tiny_pool[:2]]
    arguments = [
        *(
            "train",
            "--base",
            str(TINY / "base"),
            "--pool",
            str(TINY / "pool.json"),
            "--out",
            str(tmp_path / "adapters"),
        ),
        *("--epochs", "1", "--batch-size", "10", "--dtype", "float32", "--device", "cpu"),
    ]
    assert main([*arguments, "--only", names[0]]) == 0
    first = (tmp_path / "adapters" / names[0] / "adapter_model.safetensors").stat().st_mtime_ns
    assert main([*arguments, "--only", ",".join(names)]) == 0
    assert "1 of 2 adapters exist, 1 to train" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(names)
    assert (tmp_path / "adapters" / names[0] / "adapter_model.safetensors").stat().st_mtime_ns == first

    record = json.loads((tmp_path / "adapters" / names[0] / "training.json").read_text())
    assert record["made_of"].keys() == {"base", "dtype", "samples"}
    assert main([*arguments, "--only", names[0], "--validation", "1"]) == 2
    assert "was trained with other samples" in capsys.readouterr().err
    assert main([*arguments, "--only", names[0], "--rank", "9"]) == 2
    assert "was trained with rank 6 (now 9)" in capsys.readouterr().err
    assert main([*arguments, "--only", "nothing"]) == 2
    assert "has no entry nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_shows_its_steps_and_keeps_its_curve(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    """Two epochs of three steps: the first loss against a forward pass, the tokens against the examples."""
    samples = tiny_pool[0].sample[:7]
    options = OPTIONS.model_copy(update={"epochs": 2, "batch_size": 2, "dropout": 0.0})
    shown: list[Step] = []
    record = train_adapter(base, tokenizer, samples[:6], options, tmp_path / "a", samples[6:], on_step=shown.append)
    assert [(step.number, step.steps) for step in shown] == [(number, 6) for number in range(1, 7)]
    assert all(step.tokens_per_second > 0 for step in shown)
    with (tmp_path / "a" / "losses.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in lines] == pytest.approx([step.loss for step in shown], rel=1e-5)
    examples = [encode_example(tokenizer, sample, options.template, options.max_tokens) for sample in samples[:6]]
    assert int(lines[2]["tokens"]) == sum(len(example["input_ids"]) for example in examples), "one epoch, no padding"
    assert int(lines[5]["tokens"]) == 2 * int(lines[2]["tokens"])
    pairs = [(a, b) for a in examples for b in examples if a is not b]
    with torch.no_grad():  # the adapter changes nothing before the first step, so the base alone gives its loss
        possible = [float(base(**LeftPadding(0)([a, b])).loss) for a, b in pairs]
    assert min(abs(loss - shown[0].loss) for loss in possible) < 1e-4
    means = [math.fsum(step.loss for step in shown[start : start + 3]) / 3 for start in (0, 3)]
    assert record["losses"] == pytest.approx(means)
    held_out = [line["validation_loss"] for line in lines]
    assert [held_out[place] for place in (0, 1, 3, 4)] == [""] * 4
    assert [float(held_out[place]) for place in (2, 5)] == pytest.approx(record["validation_losses"], rel=1e-5)
    assert (tmp_path / "a" / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_terminal_shows_step_loss_speed_and_time_left(tmp_path: Path) -> None:
    screen = io.StringIO()
    arguments = [*("train", "--base", str(TINY / "base"), "--pool", str(TINY / "pool.json")), "--only", "city_qa"]
    arguments += ["--out", str(tmp_path), "--epochs", "1", "--batch-size", "10", "--dtype", "float32"]
    args = build_parser().parse_args([*arguments, "--device", "cpu"])
    assert args.run(args, Console(file=screen, force_terminal=True, width=160)) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"city_qa .*step 2/2, loss \d+\.\d{3}, [\d,]+ tokens/s 0:00:\d\d left 0:00:00", text)
    assert "1/1" in text


def test_the_help_names_the_codes_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert set(OPTION_HELPS) == set(TrainingOptions.model_fields)
    for name, value in TrainingOptions().model_dump().items():
        if value is None and name == "detect":
            continue  # nothing is detected
        texts = {"template": "alpaca", "targets": "q_proj,v_proj", "system": "the chat template's own"}
        shown = texts.get(name) or (value if isinstance(value, str) else f"{value:g}")
        assert re.search(rf"--{name.replace('_', '-')} [^-].*?\(default: {re.escape(shown)}\)", said), name


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_trained_weights_that_are_no_numbers_are_refused(wrong: float) -> None:
    good = torch.ones(2, 3)
    check_trained("dart", [good], "train again")
    message = "^dart: the training gave NaN or infinite weights; lower the learning rate$"
    with pytest.raises(UserError, match=message):
        check_trained("dart", [good, torch.tensor([0.0, wrong])], "lower the learning rate")


@pytest.mark.parametrize(
    ("detect", "inputs", "target"),
    [(None, "red " * 60, "red"), (None, "x", "red " * 60), ("cross_entropy", "red " * 60, "R | a | b")],
)
def test_an_example_longer_than_the_bases_positions_is_refused_before_the_training(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, detect: str | None, inputs: str, target: str
) -> None:
    base = GPT2LMHeadModel(GPT2Config(vocab_size=566, n_positions=48, n_embd=8, n_layer=1, n_head=1))
    options = OPTIONS.model_copy(update={"template": "{inputs}", "targets": ("c_attn",), "detect": detect, "epochs": 1})
    train = train_adapter if detect is None else train_detector
    with pytest.raises(UserError, match="are more than the 48 positions of the base"):
        train(base, tokenizer, [Sample(inputs=inputs, targets=target)], options, tmp_path / "a")


@pytest.mark.slow
def test_prompts_that_a_detector_reads_cut_are_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    base = GPT2LMHeadModel(GPT2Config(vocab_size=566, n_positions=48, n_embd=8, n_layer=1, n_head=1))
    settings = {"template": "{inputs}", "targets": ("c_attn",), "detect": "cross_entropy", "epochs": 1, "max_tokens": 8}
    samples = [Sample(inputs="red " * words, targets="R | a | b") for words in (4, 40, 20)]
    record = train_detector(base, tokenizer, samples, OPTIONS.model_copy(update=settings), tmp_path / "a")
    assert record["cut_prompts"] == 2


def recorded(folder: Path, source: dict[str, str] | None) -> Path:
    """A folder with the record of a training from this source."""
    folder.mkdir()
    content = {"options": OPTIONS.model_dump(mode="json"), **({} if source is None else {"made_of": source})}
    (folder / "training.json").write_text(json.dumps(content))
    return folder


def test_an_adapter_of_other_samples_or_another_base_is_not_taken_for_trained(tmp_path: Path) -> None:
    def entry(*targets: str) -> PoolEntry:
        samples = tuple(Sample(inputs="q", targets=target) for target in targets)
        return PoolEntry(model_name="a", domain="d", sample=samples)

    source = made_of("base", "float32", entry("x", "y"), 1)
    folder = recorded(tmp_path / "a", source)
    assert is_trained(folder, OPTIONS, source)
    others = {
        "other samples": [made_of("base", "float32", entry("x", "z"), 1), made_of("base", "float32", entry("x", "y"))],
        "another base": [made_of("other", "float32", entry("x", "y"), 1)],
        "another dtype": [made_of("base", "bfloat16", entry("x", "y"), 1)],
    }
    for reason, sources in others.items():
        for other in sources:
            with pytest.raises(UserError, match=f"{re.escape(str(folder))} was trained with {reason}; choose another"):
                is_trained(folder, OPTIONS, other)
    assert is_trained(recorded(tmp_path / "b", None), OPTIONS, source)  # a record of an earlier version


def test_names_that_no_run_could_use_together_are_refused_before_the_training() -> None:
    sample = (Sample(inputs="q", targets="x"),)
    entries = [PoolEntry(model_name=name, domain="d", sample=sample) for name in ("city", "City", "b")]
    with pytest.raises(UserError, match="names 'city' and 'City' look alike"):
        chosen_entries(entries, None)
    assert len(chosen_entries(entries, ["city", "b"])) == 2


@pytest.mark.parametrize("name", ["../other", "/tmp/other", "a/../../b", ".."])
def test_an_adapter_is_not_trained_outside_its_folder(name: str) -> None:
    entry = PoolEntry(model_name=name, domain="d", sample=(Sample(inputs="q", targets="x"),))
    with pytest.raises(UserError, match="adapter"):
        chosen_entries([entry], None)


def test_a_detection_head_is_trained_on_lists_of_triples_alone() -> None:
    """A sentence without a relation has an empty target. The message names the sample and the line."""
    good = ["born in | Ada | London\n\nworks for | Ada | Babbage", ""]
    for bad in ("born in | Ada", "born in | Ada | | London", "born in | Ada | ", "yes"):
        sample = tuple(Sample(inputs="Ada.", targets=text) for text in (*good, f"{good[0]}\n{bad}"))
        entries = [PoolEntry(model_name="kinds", domain="", sample=sample)]
        with pytest.raises(
            UserError, match=rf"^kinds: sample 3: .* the line {re.escape(repr(bad))}, which is no triple"
        ):
            chosen_entries(entries, None, detects=True)
        assert chosen_entries(entries, None) == entries


@pytest.mark.slow
def test_modules_that_the_base_lacks_are_refused_with_the_names_of_its_modules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["train", "--base", str(TINY / "base"), "--pool", str(TINY / "pool.json"), "--out", str(tmp_path / "out")]
    assert main([*needed, "--only", "people_qa", "--targets", "c_attn"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    names = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert f"the base has no module of the names c_attn; its linear modules are {names}" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "--rank 0: Input should be greater than or equal to 1"),
        (["--template", "x"], "--template: unknown template 'x'"),
        (["--validation", "20"], "20 samples held out for validation leave none of its 20 to train on"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds no such device"),
        (["--detect", "nnpu"], "sample 1: the target has the line"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapters"
    needed = ["train", "--base", str(TINY / "base"), "--pool", str(TINY / "pool.json"), "--out", str(out)]
    assert main([*needed, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
