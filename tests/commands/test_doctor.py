"""The doctor and a run make the same checks: a run takes every profile that passes the doctor.

All problems are named at once.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import TINY
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_profile, write_profile
from transformers import AutoConfig

from lora_retriever.backends import local
from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import load_profile
from lora_retriever.hub import HubAnswer
from lora_retriever.running import doctor
from lora_retriever.running.doctor import examine, grouped
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.memory import ModelShape
from lora_retriever.running.prediction import BATCH_SHAPES, predicted_at, predicted_for, turning_points

QUIET = Console(file=io.StringIO())
TASKS = ("people_qa", "animal_qa", "city_qa", "meal_review", "movie_review")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A profile of a user's own folders: base, encoder, five adapters, a pool and a row of each task."""
    for task in TASKS:
        shutil.copytree(TINY / "adapters" / task, tmp_path / "adapters" / task)
    for part in ("base", "encoder"):
        shutil.copytree(TINY / part, tmp_path / part)
    rows = json.loads((TINY / "test.json").read_text())
    first = [next(row for row in rows if row["task"] == task) for task in TASKS]
    pool = [entry for entry in json.loads((TINY / "pool.json").read_text()) if entry["model_name"] in TASKS]
    (tmp_path / "rows.json").write_text(json.dumps(first))
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    write_profile(
        tmp_path,
        base={"location": "./base"},
        encoder={"location": "./encoder", "instruction": ""},
        adapters={"location": "./adapters/{adapter}"},
        data={"rows": "rows.json", "pool": "pool.json"},
    )
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_profile(own: Path, section: str, **changes: Any) -> None:
    path = own / "mine.yaml"
    content = yaml.safe_load(path.read_text())
    content[section] = {**content[section], **changes}
    path.write_text(yaml.safe_dump(content))


def edit_tensors(path: Path, change: Callable[[str, Any], Any]) -> None:
    save_file({key: change(key, tensor).contiguous() for key, tensor in load_file(path).items()}, path)


def with_nan(key: str, tensor: Any) -> Any:
    if tensor.dim() == 2:
        tensor[0, 0] = float("nan")
    return tensor


def examined(own: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["doctor", "--profile", str(own / "mine.yaml"), "--results", str(own / "r")])
    return status, capsys.readouterr().out


def run(own: Path, capsys: pytest.CaptureFixture[str], only: str = "best_selection,selection") -> tuple[int, str]:
    status = main(["run", "--profile", str(own / "mine.yaml"), "--results", str(own / "r"), "--only", only])
    return status, capsys.readouterr().err


def two_metrics(own: Path) -> None:
    rows = json.loads((own / "rows.json").read_text())
    (own / "rows.json").write_text(json.dumps([*rows, {**rows[0], "metric": "bleu"}]))


PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "DoRA": (lambda f: edit(f / "adapters/animal_qa/adapter_config.json", use_dora=True), "'animal_qa'"),
    "another family's modules": (
        lambda f: edit(f / "adapters/city_qa/adapter_config.json", target_modules=["query_key_value"]), "'city_qa'",
    ),
    "an adapter's configuration": (lambda f: (f / "adapters/city_qa/adapter_config.json").write_text("{"), "'city_qa'"),
    "no adapter": (lambda f: shutil.rmtree(f / "adapters/city_qa"), "city_qa"),
    "the base's configuration": (lambda f: (f / "base/config.json").write_text("not JSON"), "base"),
    "the base's tokenizer": (lambda f: (f / "base/tokenizer.json").write_text("{}"), "base"),
    "NaN in the base": (lambda f: edit_tensors(f / "base/model.safetensors", with_nan), "NaN"),
    "half a base": (lambda f: os.truncate(f / "base/model.safetensors", 5000), "base"),
    "NaN in the encoder": (lambda f: edit_tensors(f / "encoder/model.safetensors", with_nan), "NaN"),
    "half an encoder": (lambda f: os.truncate(f / "encoder/model.safetensors", 5000), "encoder"),
    "two metrics in a task": (two_metrics, "has 2 metrics"),
    "a prompt limit below the template": (
        lambda f: edit_profile(f, "generation", max_prompt_tokens=3), "max_prompt_tokens is too small",
    ),
    "k beyond the pool": (lambda f: edit_profile(f, "retrieval", k=6), "k = 6"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_a_run_refuses_the_doctor_finds(own: Path, capsys: pytest.CaptureFixture[str], problem: str) -> None:
    spoil, fragment = PROBLEMS[problem]
    spoil(own)
    status, findings = examined(own, capsys)
    assert status == 2
    assert any(fragment in line for line in findings.splitlines() if line.startswith("problem"))
    status, message = run(own, capsys, "best_selection,mixture")
    assert status == 2
    assert fragment in message
    assert "Traceback" not in message
    assert "unexpected error" not in message


@pytest.mark.slow
def test_what_the_doctor_passes_a_run_takes(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, findings = examined(own, capsys)
    assert status == 0
    assert "problem " not in findings
    assert run(own, capsys)[0] == 0


@pytest.mark.slow
def test_all_bad_adapters_are_named_before_the_base_is_loaded(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(own / "adapters/animal_qa/adapter_config.json", use_dora=True)
    edit(own / "adapters/city_qa/adapter_config.json", modules_to_save=["lm_head"])
    (own / "adapters/meal_review/adapter_config.json").write_text("not JSON")
    (own / "adapters/movie_review/adapter_model.safetensors").unlink()
    bad = ("animal_qa", "city_qa", "meal_review", "movie_review")
    status, findings = examined(own, capsys)
    problems = [line for line in findings.splitlines() if line.startswith("problem")]
    assert status == 2
    assert len(problems) == 4
    assert all(any(f"adapter {name!r}" in line for line in problems) for name in bad)
    assert "base model: " in findings
    assert "1 of 5 are there" in findings
    monkeypatch.delattr(local, "load_generator")  # so loading the base would raise
    status, message = run(own, capsys)
    assert status == 2
    assert "4 of 5 adapters cannot be composed:" in message
    assert all(f"adapter {name!r}" in message for name in bad)


@pytest.mark.slow
def test_a_bad_adapter_is_never_blamed_on_the_base(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in TASKS:
        (own / "adapters" / task / "adapter_config.json").write_text("not JSON")
    findings = examined(own, capsys)[1].splitlines()
    assert any(line.startswith("ok       base model: ") for line in findings)
    assert any(line.startswith("ok       memory: ") for line in findings)


def zero(key: str, tensor: Any) -> Any:
    return tensor * 0 if "lora_B" in key else tensor


@pytest.mark.slow
def test_what_adapters_lack_is_said_once_by_doctor_and_run(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in TASKS[:2]:
        edit_tensors(own / "adapters" / task / "adapter_model.safetensors", zero)
    for said in (examined(own, capsys)[1], run(own, capsys)[1]):
        text = " ".join(said.split())
        assert text.count("it adds nothing to the base") == 1
        assert all(task in text for task in TASKS[:2])


def test_the_doctor_answers_at_once_whatever_the_longest_prompt(tmp_path: Path) -> None:
    """The memory is predicted for few lengths. The maximum over these lengths is the maximum over all lengths."""
    for generation in (
        {"max_prompt_tokens": 2**24, "batch_tokens": 2**20, "max_new_tokens": 7, "batch_size": 2**10},
        {"max_prompt_tokens": 2**24},
    ):
        assert len(turning_points(tiny_profile(tmp_path, generation=generation))) <= 4 * BATCH_SHAPES


@pytest.mark.parametrize(
    ("batch_tokens", "new", "size"),
    [(100, 3, 8), (64, 1, 64), (1000, 10, 3), (50, 20, 5), (4000, 10, 50), (None, 60, 9), (None, 2, 40)],
)
def test_the_memory_predicted_is_the_most_of_any_length(
    tmp_path: Path, batch_tokens: int | None, new: int, size: int
) -> None:
    generation = {
        "max_prompt_tokens": 200, "batch_tokens": batch_tokens, "max_new_tokens": new, "batch_size": size,
    }  # fmt: skip
    profile = tiny_profile(tmp_path, generation=generation)
    shape = ModelShape.of_model(AutoConfig.from_pretrained(TINY / "base"))
    most = max(predicted_at(profile, 19, [], shape, 1_000_000, length).total for length in range(1, 201))
    assert predicted_for(profile, 19, [], shape, 1_000_000).total == most


@pytest.mark.slow
def test_a_user_s_own_code_that_raises_is_a_finding(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "raising_methods.py").write_text("raise ZeroDivisionError('at import')\n")
    content = yaml.safe_load((own / "mine.yaml").read_text())
    (own / "mine.yaml").write_text(yaml.safe_dump({**content, "methods": ["raising_methods:METHOD"]}))
    status, findings = examined(own, capsys)
    assert status == 2
    assert "ZeroDivisionError: at import" in findings
    assert "adapters: 5 of 5 are there" in findings


@pytest.mark.slow
def test_names_and_paths_never_act_on_the_terminal(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = json.loads((own / "pool.json").read_text())
    rows = json.loads((own / "rows.json").read_text())
    rows[0]["task"] = "\x1b[2J\x1b]0;owned\x07 [red]x[/red]"
    (own / "rows.json").write_text(json.dumps(rows))
    (own / "pool.json").write_text(json.dumps(pool))
    for said in (examined(own, capsys)[1], run(own, capsys)[1]):
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "[red]x[/red]" in " ".join(said.split())


@pytest.mark.slow
def test_a_results_folder_that_is_in_use_is_a_problem_in_both(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lora_retriever.running.results_folder import locked

    with locked(own / "r"):
        status, findings = examined(own, capsys)
        assert status == 2
        assert "in use by process" in findings
        assert run(own, capsys)[0] == 2


@pytest.mark.slow
def test_a_folder_of_a_file_s_place_is_refused_by_both(own: Path, tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path)
    (tmp_path / "file").write_text("")
    texts = [finding for finding in examine(profile, tmp_path / "file") if finding.level == "problem"]
    assert len(texts) == 1
    with pytest.raises(UserError, match="cannot be written"):
        evaluate(profile, ["base"], tmp_path / "file", 1, QUIET)


def test_lines_that_differ_by_a_name_alone_are_one_line() -> None:
    lines = [f"adapter '{name}': no folder pool/{name}" for name in "abcdefg"]
    assert grouped([*lines[:2], "adapter 'x': not JSON", *lines[2:], "no name", "no name"]) == [
        "adapter 'a', 'b', 'c', 'd', 'e' and 2 more: no folder pool/…", "adapter 'x': not JSON", "no name",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("answer", [True, False, None])
def test_models_that_are_not_here_are_asked_for_at_the_hub(
    own: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | None
) -> None:
    edit_profile(own, "base", location="org/base")
    edit_profile(own, "encoder", location="org/encoder")
    asked: list[str] = []

    def ask(repository: str, *_: object) -> HubAnswer:
        asked.append(repository)
        return HubAnswer(answer, "" if answer else "the reason")

    monkeypatch.setattr(doctor, "ask_hub", ask)
    profile = load_profile(str(own / "mine.yaml"))
    found = [finding for finding in examine(profile, own / "r") if "org/" in finding.text]
    assert [finding.level for finding in found] == ["problem" if answer is False else "warning"] * 2
    assert all(("the reason" in finding.text) == (not answer) for finding in found)
    assert all(("`hf download org/" in finding.text) == bool(answer) for finding in found)
    assert asked == (["org/base"] if answer is None else ["org/base", "org/encoder"])
    asked.clear()
    texts = [finding.text for finding in examine(profile, own / "r", offline=True)]
    assert asked == []
    assert sum("not known: the Hub was not asked (--offline)" in text for text in texts) == 2
    assert "prompts: the template cannot be tried without the base model's tokenizer" in texts


OWN_METRIC = """
import datasets
import evaluate

class Failing(evaluate.Metric):
    def _info(self):
        features = datasets.Features({side: datasets.Value("string") for side in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        raise KeyError("broken")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "level", "reason"),
    [(OWN_METRIC, "warning", "row 1 alone.*broken"), ("", "problem", "row 1: .*cannot be loaded")],
)
def test_every_metric_is_tried_on_a_row(own: Path, code: str, level: str, reason: str) -> None:
    (own / "failing").mkdir()
    (own / "failing" / "failing.py").write_text(code)
    rows = json.loads((own / "rows.json").read_text())
    rows[1]["metric"] = str(own / "failing")
    (own / "rows.json").write_text(json.dumps(rows))
    content = yaml.safe_load((own / "mine.yaml").read_text())
    (own / "mine.yaml").write_text(yaml.safe_dump({**content, "metrics": ["."]}))
    found = examine(load_profile(str(own / "mine.yaml")), own / "r", offline=True)
    (failed, tried) = [finding for finding in found if finding.text.startswith("metrics: ")]
    assert failed.level == level and re.search(reason, failed.text)
    assert (tried.level, tried.text) == ("ok", "metrics: em, each tried on a row")


@pytest.mark.slow
def test_official_data_that_is_not_here_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile("llama2-7b")
    monkeypatch.setattr(doctor, "read_rows", missing)
    monkeypatch.setattr(doctor, "pool_of", missing)
    texts = [finding.text for finding in examine(profile, tmp_path / "r", offline=True)]
    assert sum("lora-retriever fetch --source" in text for text in texts) == 1


def missing(*_: object, **__: object) -> None:
    raise UserError("the official file: cannot be read")
