"""Multiple choice by the likelihood of options: equal to lm-evaluation-harness, for all methods, and resumable."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TINY
from tiny_runs import QUIET, lines_of, made_once, tiny_profile
from tokenizers_made import byte_level, sentence_piece
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.analysis.runs import read_run
from lora_retriever.analysis.scores import score_run
from lora_retriever.cli import main
from lora_retriever.data.rows import Row, read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.generator import row_prompts
from lora_retriever.generation.prompt import ALPACA
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.methods import methods_of
from lora_retriever.metrics import Scoring
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import check_backend
from lora_retriever.running.sweep import expand

METHODS = ["base", "best_selection", "mixture", "arrow"]
"""A method without adapters, with one, with several, and with a gate."""


def choice_rows() -> list[dict[str, Any]]:
    """Rows with options of one word (`choice`) and of several words (`choice_norm`)."""
    rows = json.loads((TINY / "test.json").read_text())
    tools = [row for row in rows if row["task"] == "tool_choice"][:6]
    sentences = [row for row in rows if row["task"] == "synonyms"][:6]
    found = []
    for row in tools:
        options = [line[2:] for line in row["inputs"].splitlines() if line.startswith("- ")]
        found.append({**row, "metric": "choice", "options": options})
    for row, other in pairwise(sentences):
        target = row["targets"]
        options = [target, f"{target.split()[0]} dog", other["targets"], f"{target} and the bear"]
        found.append({**row, "metric": "choice_norm", "options": options})
    return found


def choice_profile(folder: Path, **generation: Any) -> Profile:
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(choice_rows()))
    data = {"rows": str(folder / "rows.json"), "pool": str(TINY / "pool.json")}
    retrieval = {"scorer": "lexical"}  # needs no encoder
    return tiny_profile(folder, data=data, generation=generation, retrieval=retrieval, reuse_answers=False)


@pytest.fixture(scope="session")
def choice_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four methods on rows with options."""
    profile = choice_profile(tmp_path_factory.mktemp("choice") / "profile", batch_size=5)
    return made_once(tmp_path_factory, "choice_runs", lambda folder: evaluate(profile, METHODS, folder, None, QUIET))


def in_the_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> tuple[list[float], list[float], list[list[float]]]:
    """acc and acc_norm of each row, and the log-likelihoods of the options, by the package lm_eval itself."""
    pytest.importorskip("lm_eval")
    from datasets import Dataset
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    docs = [
        {
            "prompt": ALPACA.replace("{inputs}", row["inputs"]),
            "choices": row["options"],
            "label": row["options"].index(row["targets"]),
        }
        for row in rows
    ]
    task = ConfigurableTask(
        config={
            "task": "mine",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
        }
    )
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    samples = evaluator.evaluate(harness, {"mine": task}, bootstrap_iters=0)["samples"]["mine"]
    samples.sort(key=lambda sample: sample["doc_id"])
    likelihoods = [[likelihood for likelihood, _ in sample["filtered_resps"]] for sample in samples]
    return [sample["acc"] for sample in samples], [sample["acc_norm"] for sample in samples], likelihoods


@pytest.mark.long
def test_likelihoods_and_choices_are_the_harness_own(choice_runs: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    lines = lines_of(choice_runs, "base")
    rows_of_adapter = [line for line in lines_of(choice_runs, "best_selection") if line["task"] == "synonyms"]
    results = [(lines, *in_the_harness(base, tokenizer, lines))]
    adapted = PeftModel.from_pretrained(base, TINY / "adapters" / "synonyms").merge_and_unload()
    results.append((rows_of_adapter, *in_the_harness(adapted, tokenizer, rows_of_adapter)))
    for ours, acc, acc_norm, likelihoods in results:
        for line, right, right_by_length, expected in zip(ours, acc, acc_norm, likelihoods, strict=True):
            assert line["likelihoods"] == pytest.approx(expected, abs=1e-3)
            wanted = right if line["metric"] == "choice" else right_by_length
            assert (line["predicted_answer"] == line["targets"]) == (wanted == 1)
    assert {right for _, acc, _, _ in results for right in acc} == {0, 1}, "the rows tell right from wrong"
    scored = score_run(read_run("base", choice_runs / "base.jsonl"), Scoring("standard"))
    by_task = {task: scores[0] for task, scores in scored.points.items()}
    tools = sum(results[0][1][:6]) / 6
    assert by_task == pytest.approx({"tool_choice": 100 * tools, "synonyms": 100 * sum(results[0][2][6:]) / 5})


@pytest.mark.long
def test_likelihoods_of_a_mixture_and_of_a_gate_do_not_depend_on_the_batch_and_a_run_goes_on(
    choice_runs: Path, tmp_path: Path
) -> None:
    alone = choice_profile(tmp_path / "alone", batch_size=1)
    evaluate(alone, ["mixture", "arrow"], tmp_path / "one by one", None, QUIET)
    for name in ("mixture", "arrow"):
        for line, other in zip(lines_of(choice_runs, name), lines_of(tmp_path / "one by one", name), strict=True):
            assert line["likelihoods"] == pytest.approx(other["likelihoods"], abs=1e-3)
            assert line["weights"] == pytest.approx(other["weights"], abs=1e-5)
            assert line["predicted_answer"] == other["predicted_answer"]
            assert line["generated_tokens"] == 0

    shutil.copytree(choice_runs, tmp_path / "begun")
    whole = (choice_runs / "mixture.jsonl").read_bytes()
    (tmp_path / "begun" / "mixture.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
    evaluate(choice_profile(tmp_path / "again", batch_size=5), METHODS, tmp_path / "begun", None, QUIET)
    assert (tmp_path / "begun" / "mixture.jsonl").read_bytes() == whole


def test_options_that_cannot_be_used_are_named_with_their_row(tmp_path: Path) -> None:
    good = {"inputs": "a ?", "targets": "yes", "task": "t", "domain": "d", "metric": "choice"}
    cases: dict[str, dict[str, Any]] = {
        "field 'options' is missing": {},
        "target 'yes' is none of the options: no, maybe": {"options": ["no", "maybe"]},
        "expected a list of two or more texts": {"options": ["yes"]},
        "the same text twice": {"options": ["yes", "yes"]},
        "has the same text twice": {"options": ["a\nb", "a\r\nb"]},
        "has an empty text": {"options": ["yes", ""]},
        "is no JSON list": {"options": "yes|no"},
    }
    file = tmp_path / "rows.json"
    for reason, fields in cases.items():
        file.write_text(json.dumps([{**good, "options": ["yes", "no"]}, {**good, **fields}]))
        with pytest.raises(UserError) as raised:
            read_rows(file)
        assert "row 2" in str(raised.value)
        assert reason in str(raised.value)


def test_a_target_in_another_unicode_form_is_the_same_option(tmp_path: Path) -> None:
    row = {"inputs": "a ?", "targets": "n\u00e9", "task": "t", "domain": "d", "metric": "choice"}
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "options": ["ne\u0301", "no"]}]))
    assert read_rows(tmp_path / "rows.json")[0].options == ("ne\u0301", "no")


def test_a_table_has_options_as_a_json_list_and_rows_of_other_metrics_have_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        "inputs,targets,task,domain,metric,options\n"
        'a ?,yes,t,d,choice,"[""yes"", ""no""]"\n'
        "b ?,yes,u,d,em,whatever this is\n"
    )
    first, second = read_rows(file)
    assert (first.options, second.options) == (("yes", "no"), None)


@pytest.mark.parametrize("template", ["{inputs}", "{inputs} ", "{inputs}\nanswer:", ALPACA])
def test_an_option_follows_the_prompt_and_takes_the_white_space_at_its_end(template: str) -> None:
    row = Row(
        inputs="what is  it ? ",
        targets="yes",
        task="t",
        domain="d",
        metric="choice",
        id=0,
        options=("yes", " no", "two words", "\nline", "3.5"),
    )
    for tokenizer in (byte_level(), sentence_piece(), AutoTokenizer.from_pretrained(TINY / "base")):
        (prompt,) = row_prompts([row], tokenizer, GenerationSection(template=template))
        text = template.replace("{inputs}", row.inputs)
        before = tokenizer(text.rstrip())["input_ids"]
        for option, scored in zip(row.options or (), prompt.options, strict=True):
            own = tokenizer(text + option)["input_ids"][len(before) :]
            assert list(scored.token_ids) == before + own
            assert scored.scored == len(own)


def test_a_special_token_in_an_option_is_text() -> None:
    row = Row(inputs="a", targets="</s>", task="t", domain="d", metric="choice", id=0, options=("</s>", "b"))
    tokenizer = byte_level()
    (prompt,) = row_prompts([row], tokenizer, GenerationSection(template="{inputs} "))
    assert tokenizer.eos_token_id not in prompt.options[0].token_ids


def test_a_backend_without_likelihoods_refuses_rows_with_options(tmp_path: Path) -> None:
    profile = choice_profile(tmp_path / "choice")
    served = profile.model_copy(update={"backend": "vllm"})
    with pytest.raises(UserError, match=r"gives no likelihoods, which the metric choice of row 0 needs"):
        check_backend(expand(served, methods_of(served, ["base"]), []), read_rows(profile.rows_source))


@pytest.mark.slow
def test_the_command_says_so_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choice_profile(tmp_path / "choice")

    def loaded(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("lora_retriever.backends.vllm.load", loaded)
    monkeypatch.setattr("lora_retriever.backends.local.load", loaded)
    asked = ["run", "--profile", str(tmp_path / "choice" / "mine.yaml"), "--set", "backend=vllm"]
    assert main([*asked, "--only", "base", "--results", str(tmp_path / "results")]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("lora-retriever: backend: vllm serves checkpoints and gives no likelihoods")
    assert list(tmp_path.glob("results/*.json*")) == []


def test_the_command_prompts_shows_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice_profile(tmp_path / "choice")
    profile = str(tmp_path / "choice" / "mine.yaml")
    assert main(["prompts", "--profile", profile, "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "option 'shovel': 2 tokens, '\\nshovel'" in shown
