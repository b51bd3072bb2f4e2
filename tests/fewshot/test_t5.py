"""An encoder-decoder base end to end: `lorahub`, its experiment, `run` and the server give transformers' answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from composition_cases import write_adapter
from local_server import LocalServer
from made_up import tiny_t5
from places import TINY
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lora_retriever.cli import main
from lora_retriever.experiment.profile import load_profile
from lora_retriever.fewshot.experiment import read_lines

NAMES = ("first", "second", "third")
NEW = 6
TEXTS = ["what does the farmer plant", "white and barley", "the bishop", "spring ?", "user", "numbers", "more", "task"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with three adapters, rows and a pool, and the profile that names them."""
    folder = tmp_path_factory.mktemp("t5")
    base = tiny_t5(folder / "base")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / name, base, seed=seed, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM")
    rows = [
        {"inputs": f"{text} {name}", "targets": "white", "task": name, "domain": "d", "metric": "em"}
        for name in NAMES
        for text in TEXTS[:3]
    ]
    pool = [
        {
            "model_name": name,
            "domain": "d",
            "sample": [{"inputs": f"{name} {text}", "targets": "wheat"} for text in TEXTS[3:6]],
        }
        for name in NAMES
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "pool.json").write_text(json.dumps(pool))
    content = {
        "base": {"location": "./base"},
        "adapters": {"location": "./{adapter}"},
        "encoder": {"location": str(TINY / "encoder"), "instruction": ""},
        "data": {"rows": "rows.json", "pool": "pool.json"},
        "generation": {"template": "none", "max_new_tokens": NEW, "max_prompt_tokens": 64, "batch_size": 4},
        "dtype": "float32",
        "device": "cpu",
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder / "mine.yaml"


def generated(base: Path, adapter: Path | None, inputs: Sequence[str], new: int = NEW) -> list[str]:
    """transformers' greedy answers, row by row, with an adapter of PEFT."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    found = []
    for text in inputs:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            tokens = model.eval().generate(input_ids=ids, max_new_tokens=new, do_sample=False)[0, 1:]
        found.append(tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return found


@pytest.mark.long
def test_run_gives_the_answers_of_transformers_and_goes_on(profile: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = ["run", "--profile", str(profile), "--results", str(results), "--only", "base,best_selection,fusion"]
    assert main(command) == 0
    for name in ("base", "best_selection"):
        lines = read_lines(results / f"{name}.jsonl")
        assert len(lines) == 9
        for task in NAMES:
            mine = [line for line in lines if line["task"] == task]
            adapter = None if name == "base" else profile.parent / task
            expected = generated(profile.parent / "base", adapter, [line["inputs"] for line in mine])
            assert [line["predicted_answer"] for line in mine] == expected
    before = (results / "fusion.jsonl").read_bytes()
    (results / "fusion.jsonl").write_bytes(b"".join(before.splitlines(keepends=True)[:4]))
    assert main(command) == 0
    assert (results / "fusion.jsonl").read_bytes() == before


@pytest.mark.slow
def test_methods_with_a_gate_or_a_probe_are_refused_in_one_line(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--profile", str(profile), "--results", str(tmp_path / "results"), "--only", "spectr,logo"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "spectr: methods that weigh adapters by token need a decoder-only base model" in said
    assert "logo: methods that probe the model need a decoder-only base model" in said


@pytest.mark.slow
def test_a_server_gives_the_answers_of_transformers(profile: Path) -> None:
    server = LocalServer(load_profile(str(profile)))
    try:
        for text in TEXTS[:2]:
            message = [{"role": "user", "content": text}]
            answer = server.post("/v1/chat/completions", model="second", messages=message, max_tokens=NEW).json()
            expected = generated(profile.parent / "base", profile.parent / "second", [text])
            assert [answer["choices"][0]["message"]["content"].strip()] == expected
        scored = server.post("/v1/completions", model="second", prompt="white", echo=True, logprobs=1, max_tokens=2)
        assert scored.status_code == 400
        assert "encoder-decoder" in scored.json()["error"]["message"]
    finally:
        server.close()


@pytest.mark.slow
def test_weights_are_learned_on_the_loss_of_transformers(profile: Path, tmp_path: Path) -> None:
    """The recorded losses equal the losses of transformers' own forward pass, with the saved fusion and without."""
    examples = [{"inputs": text, "targets": target} for text, target in zip(TEXTS[:3], TEXTS[3:6], strict=True)]
    (tmp_path / "few.json").write_text(json.dumps(examples))
    out = tmp_path / "learned"
    command = ["lorahub", "--profile", str(profile), "--examples", str(tmp_path / "few.json"), "--out", str(out)]
    assert main([*command, "--steps", "12", "--l1", "0"]) == 0
    record = json.loads((out / "lorahub.json").read_text())
    assert record["loss"] < record["base_loss"]
    base = profile.parent / "base"
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    for expected, adapter in ((record["base_loss"], None), (record["loss"], out)):
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(base)
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, str(adapter))
        losses = []
        for example in examples:
            ids, labels = (tokenizer(example[name], return_tensors="pt").input_ids for name in ("inputs", "targets"))
            with torch.no_grad():
                losses.append(float(model.eval()(input_ids=ids, labels=labels).loss))
        assert expected == pytest.approx(sum(losses) / len(losses), rel=1e-3)


@pytest.mark.long
def test_the_experiment_answers_and_trains_on_a_t5(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks").mkdir()
    rows = [{"input": text, "target": "white" if place % 2 else "barley"} for place, text in enumerate(TEXTS)]
    (tmp_path / "tasks" / "colour.json").write_text(json.dumps(rows))
    results = tmp_path / "results"
    command = [
        *("lorahub", "--profile", str(profile), "--tasks", str(tmp_path / "tasks"), "--results", str(results)),
        *("--held-out", "4", "--shots", "2", "--steps", "3", "--count", "2", "--draws", "1", "--lora-targets", "q,v"),
        *("--baselines", "zero_shot,in_context,mixture,lora", "--lora-epochs", "20", "--lora-rate", "0.01"),
    ]
    assert main(command) == 0
    assert "mean over tasks" in capsys.readouterr().out
    base, lora = profile.parent / "base", results / "learned" / "fewshot" / "adapters" / "colour"
    for run, adapter in (("zero_shot", None), ("lora", lora)):
        lines = read_lines(results / f"{run}.jsonl")
        expected = generated(base, adapter, [line["inputs"] for line in lines])
        assert [line["predicted_answer"] for line in lines] == expected
    assert (results / "lora.jsonl").read_text() != (results / "zero_shot.jsonl").read_text()
    losses = json.loads((lora / "training.json").read_text())["losses"]
    assert losses[-1] < losses[0]
