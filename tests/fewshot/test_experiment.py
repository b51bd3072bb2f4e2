"""LoraHub's experiment on the miniature: the table, resuming, the results folder, and the choices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import TINY

from lora_retriever.cli import main
from lora_retriever.data.rows import PoolEntry
from lora_retriever.fewshot import experiment
from lora_retriever.fewshot.experiment import read_lines

RUNS = ["zero_shot", "in_context", "mixture", "lora", "lorahub_1", "lorahub_2", "lorahub_chosen"]


@pytest.fixture(scope="session")
def task_files(tiny_pool: list[PoolEntry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of the miniature: one file in the form of BBH's files, and one file of JSON lines."""
    folder = tmp_path_factory.mktemp("few") / "tasks"
    folder.mkdir()
    first, second = (
        [{"input": sample.inputs, "target": sample.target} for sample in entry.sample[:8]] for entry in tiny_pool[:2]
    )
    (folder / f"{tiny_pool[0].model_name}.json").write_text(json.dumps({"canary": "no", "examples": first}))
    (folder / f"{tiny_pool[1].model_name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in second))
    return folder


def command(tasks: Path, results: Path, *more: str) -> int:
    return main(
        [
            *("lorahub", "--base", str(TINY / "base"), "--adapters", str(TINY / "adapters"), "--tasks", str(tasks)),
            *("--results", str(results), "--shots", "2", "--held-out", "4", "--limit", "2", "--steps", "3"),
            *("--count", "3", "--draws", "2", "--max-new-tokens", "4", "--lora-epochs", "1", "--without-own"),
            *("--encoder", str(TINY / "encoder"), "--pool", str(TINY / "pool.json"), *more),
        ]
    )


@pytest.fixture(scope="session")
def finished(task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment with every baseline."""
    results = tmp_path_factory.mktemp("few") / "results"
    assert command(task_files, results, "--baselines", "zero_shot,in_context,mixture,lora") == 0
    return results


@pytest.mark.long
def test_one_command_makes_the_table_and_another_run_changes_nothing(
    task_files: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name[0] != "."}

    def never(*_: object) -> None:
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(experiment, "answer_all", never)
    monkeypatch.setattr(experiment, "learn_weights", never)
    monkeypatch.setattr(experiment, "train_adapter", never)
    assert command(task_files, finished, "--baselines", "zero_shot,in_context,mixture,lora") == 0
    assert before == {path: path.read_bytes() for path in before}
    printed = capsys.readouterr().out
    for words in ("zero_shot", "best draw", "lorahub_chosen − lora", "mean over tasks", "± half", "mean |weight|"):
        assert words in printed
    assert "published" not in printed  # the figures belong to FLAN-T5-large only
    assert sorted(path.stem for path in finished.glob("*.jsonl")) == sorted(RUNS)


@pytest.mark.slow
def test_the_results_folder_is_an_ordinary_one(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(finished), "--by-task", "--versus", "zero_shot"]) == 0
    assert "lorahub_chosen" in capsys.readouterr().out
    assert main(["report", str(finished)]) == 0


@pytest.mark.long
def test_a_stopped_experiment_goes_on_to_the_same_files(
    task_files: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    whole = experiment.answer_all

    def stops(*arguments: object) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    options = ("--baselines", "zero_shot,in_context,mixture,lora")
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "answer_all", stops)
        assert command(task_files, tmp_path / "results", *options) != 0
    assert command(task_files, tmp_path / "results", *options) == 0
    for run in RUNS:
        assert (tmp_path / "results" / f"{run}.jsonl").read_text() == (finished / f"{run}.jsonl").read_text()


@pytest.mark.slow
def test_fault_5_a_draw_is_chosen_by_the_examples_and_never_by_the_test(finished: Path, task_files: Path) -> None:
    """The original picks the best of five draws by the test set."""
    for file in task_files.iterdir():
        folder = finished / "learned" / "fewshot"
        values = {
            draw: json.loads((folder / "draws" / f"{file.stem}.{draw}.json").read_text())["objective"]
            for draw in (1, 2)
        }
        best = min(values, key=lambda draw: values[draw])
        parts = folder / "parts"
        assert read_lines(parts / "lorahub_chosen" / f"{file.stem}.jsonl") == read_lines(
            parts / f"lorahub_{best}" / f"{file.stem}.jsonl"
        )
        weights = json.loads((folder / "draws" / f"{file.stem}.1.json").read_text())["weights"]
        assert file.stem not in weights  # --without-own
        assert len(weights) == 3


@pytest.mark.long
def test_a_profile_names_base_adapters_encoder_and_pool(
    task_files: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the profile's settings of prompts equal the defaults of the arguments, every answer is the same."""
    results = tmp_path / "results"
    fields = ("generation.max_prompt_tokens=512", "generation.max_new_tokens=4", "generation.batch_size=8")
    arguments = [
        *("lorahub", "--profile", "tiny", "--set", "encoder.instruction="),
        *(word for field in fields for word in ("--set", field)),
        *("--tasks", str(task_files), "--results", str(results), "--shots", "2", "--held-out", "4", "--limit", "2"),
        *("--steps", "3", "--count", "3", "--draws", "2", "--lora-epochs", "1", "--without-own"),
        *("--baselines", "zero_shot,in_context,mixture,lora"),
    ]
    assert main(arguments) == 0
    for run in RUNS:
        mine, others = (read_lines(folder / f"{run}.jsonl") for folder in (results, finished))
        kept = ("id", "inputs", "predicted_answer", "adapters", "weights")
        assert [[line[key] for key in kept] for line in mine] == [[line[key] for key in kept] for line in others]
    capsys.readouterr()
    assert main([*arguments, "--set", "dtype=bfloat16"]) == 2
    assert "dtype: float32 → bfloat16" in capsys.readouterr().err


@pytest.mark.slow
def test_another_configuration_is_refused_by_its_name(
    task_files: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(task_files, finished, "--baselines", "zero_shot,in_context,mixture,lora", "--steps", "4") == 2
    assert "search.steps: 3 → 4" in capsys.readouterr().err
