"""Rows with several targets: from the file of rows through a run to its scores and its report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from places import TINY
from rich.console import Console

from lora_retriever.analysis.runs import read_runs
from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import Profile
from lora_retriever.running.evaluate import evaluate

ROW = {"inputs": "q", "task": "t", "domain": "d", "metric": "em"}


def write_run(folder: Path, name: str, targets: list[Any], answers: list[str]) -> None:
    rows = [
        {"id": id, **ROW, "targets": target, "predicted_answer": answer}
        for id, (target, answer) in enumerate(zip(targets, answers, strict=True))
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_a_run_keeps_the_targets_of_its_rows(tiny: Profile, tmp_path: Path) -> None:
    rows = [row for row in json.loads((TINY / "test.json").read_text()) if row["task"] == "city_qa"][:3]
    targets: list[Any] = [["Oslo", 7], 3, rows[2]["targets"]]
    (tmp_path / "rows.json").write_text(
        json.dumps({"data": [{**row, "targets": target} for row, target in zip(rows, targets, strict=True)]})
    )
    data = tiny.data.model_copy(update={"rows": str(tmp_path / "rows.json")})
    for _ in range(2):  # the second start finds all rows answered
        evaluate(
            tiny.model_copy(update={"data": data}), ["base"], tmp_path / "results", None, Console(file=io.StringIO())
        )
    (run,) = read_runs(tmp_path / "results")
    assert [row.targets for row in run.rows.values()] == [("Oslo", "7"), "3", rows[2]["targets"]]


@pytest.mark.slow
@pytest.mark.parametrize("scoring", ["paper", "standard"])
def test_the_best_target_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str], scoring: str) -> None:
    write_run(tmp_path, "base", [["yes", "yeah"], ["no"], "maybe"], ["yeah", "no", "perhaps"])
    assert main(["summarize", str(tmp_path), "--scoring", scoring, "--format", "json", "--no-intervals"]) == 0
    task = json.loads(capsys.readouterr().out)["runs"]["base"]["tasks"]["t"]
    assert (task["n"], round(task["em"], 1)) == (3, 66.7)


@pytest.mark.slow
def test_the_report_shows_all_targets(tmp_path: Path) -> None:
    write_run(tmp_path, "base", [["yes", "yeah"]], ["yeah"])
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")]) == 0
    assert "yes | yeah" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_runs_with_other_targets_are_not_one_benchmark(tmp_path: Path) -> None:
    write_run(tmp_path, "base", [["yes", "yeah"]], ["yeah"])
    write_run(tmp_path, "selection", ["yes"], ["yeah"])
    with pytest.raises(UserError, match=r"other targets in selection \('yes'\) than in base \('yes \| yeah'\)"):
        read_runs(tmp_path)
