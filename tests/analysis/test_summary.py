"""Tables: the official scores to the last digit, and the means by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import NORMALIZED
from lora_retriever.analysis.summary import RunSummary, summarize, to_json, to_run_table, to_table
from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.metrics import Scoring
from lora_retriever.tables import FORMATS, Cell


def answered(task: str, domain: str, metric: str, targets: str, answer: str) -> dict[str, Any]:
    return {
        "inputs": "?", "targets": targets, "task": task, "domain": domain, "metric": metric, "predicted_answer": answer,
    }  # fmt: skip


def summaries(folder: Path, scoring: str = "paper") -> list[RunSummary]:
    return summarize(read_runs(folder), Scoring(scoring))  # type: ignore[arg-type]


def as_json(folder: Path, scoring: str = "paper") -> dict[str, Any]:
    return to_json(summaries(folder, scoring), Scoring(scoring))["runs"]  # type: ignore[arg-type]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs: three QA rows in two tasks of one domain, one row of text."""
    text = ("text", "struct to text", "rouge", "a b c d")
    oracle = [
        answered("qa1", "reading comp", "em", "yes", "yes"),
        answered("qa1", "reading comp", "em", "no", "no"),
        answered("qa2", "reading comp", "em", "red", "red"),
        answered(*text, "a b c d"),
    ]
    other = [{**oracle[0], "predicted_answer": "."}, oracle[1], oracle[2], answered(*text, "a b x y")]
    lines = [json.dumps({"id": place, **row}) for place, row in enumerate(oracle)]
    (tmp_path / "best_selection.jsonl").write_text("\n".join(lines))
    (tmp_path / "best_selection.meta.json").write_text(json.dumps({"note": "A note on the run."}))
    (tmp_path / "mixture.json").write_text(json.dumps(other))  # the original's form
    return tmp_path


def test_scores_are_means_of_means(results: Path) -> None:
    summary = as_json(results)["mixture"]
    assert summary["rows"] == 4
    assert summary["empty_answers"] == 1
    assert summary["tasks"]["qa1"] == {"domain": "reading comp", "n": 2, "em": 50.0}
    assert summary["tasks"]["text"] == {
        "domain": "struct to text", "n": 1, "rouge-1": 50.0, "rouge-2": 33.3, "rouge-l": 50.0,
    }  # fmt: skip
    assert summary["domains"]["reading comp"] == {"em": 75.0}
    assert summary["mean"] == pytest.approx((50 + 100 + 50) / 3, abs=1e-3)
    assert summary["normalized"] == pytest.approx((50 + 100 + 50) / 3, abs=1e-3)


def test_without_the_oracle_nothing_is_normalized(results: Path) -> None:
    (results / "best_selection.jsonl").unlink()
    assert as_json(results)["mixture"]["normalized"] is None


def test_tasks_on_which_the_oracle_fails_have_no_ratio(results: Path) -> None:
    rows = [json.loads(line) for line in (results / "best_selection.jsonl").read_text().splitlines()]
    rows[2]["predicted_answer"] = "blue"
    (results / "best_selection.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert as_json(results)["mixture"]["normalized"] == 50.0


@pytest.mark.slow
def test_the_official_answers_score_as_expected(official: Path, official_answers: Path) -> None:
    expected = json.loads((official / "expected_paper_scores.json").read_text())
    ours = as_json(official_answers)
    assert {f"{name}.json": {"tasks": run["tasks"]} for name, run in ours.items()} == expected


def test_every_format_holds_the_same_numbers(results: Path) -> None:
    table = to_table(summaries(results), intervals=False)
    assert table.columns == ["mixture", "best_selection"]  # the paper's order, not the alphabet's
    texts = {name: write(table) for name, write in FORMATS.items()}
    for text in texts.values():
        assert "reading comp em" in text
        assert "75.0" in text
    assert "A note on the run." in texts["table"]
    assert "mixture: 1 answers are empty or dots only" in texts["markdown"]
    assert r"best\_selection" in texts["latex"]
    rows = list(csv.reader(io.StringIO(texts["csv"])))
    assert rows[0] == ["", "mixture", "best_selection"]
    assert all(len(row) == 3 for row in rows)


@pytest.mark.slow
def test_a_table_by_run_has_a_row_per_run_with_its_means_and_domains(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = to_run_table(summaries(results))
    assert table.columns == [
        "mean over tasks", "normalized", "reading comp em", "struct to text rouge-1", "empty answers",
    ]  # fmt: skip
    by_domain = dict(to_table(summaries(results)).rows)
    for place, (run, cells) in enumerate(table.rows):
        assert run == ["mixture", "best_selection"][place]
        for label, cell in zip(table.columns[:2], cells, strict=False):
            assert cell == by_domain[label][place]
        assert [cell.value for cell in cells[2:4] if isinstance(cell, Cell)] == ([75, 50] if place == 0 else [100, 100])
        assert cells[4] == ("1" if place == 0 else "0")
    assert main(["summarize", str(results), "--by-run"]) == 0
    assert "best_selection" in capsys.readouterr().out
    assert main(["summarize", str(results), "--by-run", "--by-task"]) == 2


def test_a_task_on_which_the_oracle_scores_next_to_nothing_is_not_normalized_by(tmp_path: Path) -> None:
    """BLEU without smoothing is about 1e-78 where no phrase is right; no draw may be divided by so small a number."""
    rows = [answered("qa", "qa", "em", "yes", "yes")] * 2 + [
        answered("wmt", "translation", "bleu", "the cat sat on the mat", "a cat"),
        answered("wmt", "translation", "bleu", "the cat sat on the mat", "mat the"),
    ]
    better = [*rows[:2], *[{**row, "predicted_answer": "the cat sat on a mat"} for row in rows[2:]]]
    for name, run in (("best_selection", rows), ("mixture", better)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"id": i, **row}) for i, row in enumerate(run)))
    mixture = next(run for run in summaries(tmp_path) if run.name == "mixture")
    assert mixture.values[NORMALIZED] == 100
    assert mixture.intervals[NORMALIZED] == (100, 100)
    assert mixture.tasks_not_normalized == ["wmt"]


def test_a_table_by_task_has_a_row_per_task_and_metric(results: Path) -> None:
    labels = [label for label, _ in to_table(summaries(results), by_task=True).rows]
    assert labels == [
        "qa1 em",
        "qa2 em",
        "text rouge-1",
        "text rouge-2",
        "text rouge-l",
        "mean over tasks",
        "normalized",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mixture.jsonl", '{"inputs": "x"}', "row 1: field 'targets' is missing"),
        ("mixture.json", '[{"inputs": "x",]', "line 1: not valid JSON"),
        (
            "mixture.json",
            '[{"targets": "a", "task": "t", "domain": "d", "metric": "em", "predicted_answer": null}]',
            "row 1: field 'predicted_answer' is None",
        ),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_runs(tmp_path)
    assert f"{tmp_path / name}: {message}" in str(error.value)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match="no results folder"):
        read_runs(tmp_path / "nowhere")


@pytest.mark.slow
def test_rows_that_stand_in_the_pool_can_be_left_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("best_selection.jsonl", "mixture.json"):
        text = (results / name).read_text()
        (results / name).write_text(
            text.replace('"inputs": "?", "targets": "no"', '"inputs": "leaked", "targets": "no"')
        )
    sample = {"inputs": " leaked\n", "targets": "whatever"}
    pool = results / "pool.jsonl"
    pool.write_text(json.dumps({"model_name": "qa1", "domain": "reading comp", "sample": [sample]}))
    pool = pool.rename(results.parent / "pool.jsonl")
    command = ["summarize", str(results), "--without-leaks"]
    assert main([*command, "--pool", str(pool), "--format", "json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["runs"]["mixture"]["tasks"]["qa1"] == {"domain": "reading comp", "n": 1, "em": 0.0}
    assert written["left_out"] == ["Without 1 rows whose inputs are in the pool pool.jsonl: 1."]
    assert main(command) == 2
    assert "do not say which pool they were made with; name it with --pool" in capsys.readouterr().err
    meta = {"files": {"pool": str(pool)}, "configuration": {}}
    (results / "best_selection.meta.json").write_text(json.dumps(meta))
    assert main(command) == 0
    assert "Without 1 rows" in capsys.readouterr().out
    meta["configuration"] = {"pool": "a hash it had once"}
    (results / "best_selection.meta.json").write_text(json.dumps(meta))
    assert main(command) == 2
    assert "has changed since best_selection was made" in capsys.readouterr().err


def test_every_score_has_an_interval_that_holds_it(results: Path) -> None:
    rows = json.loads((results / "mixture.json").read_text())
    (results / "mixture.json").write_text(json.dumps([row for row in rows if row["task"] == "qa1"] * 5))
    (results / "best_selection.jsonl").unlink()
    run = as_json(results)["mixture"]
    low, high = run["intervals"]["tasks"]["qa1"]["em"]
    assert low < run["tasks"]["qa1"]["em"] < high
    assert run["intervals"]["domains"]["reading comp"]["em"] == run["intervals"]["mean"] == [low, high]
    assert run["intervals"]["mean_over_tasks"] is None  # one task says nothing about other tasks


@pytest.mark.slow
def test_a_task_of_one_row_has_no_interval(results: Path) -> None:
    intervals = as_json(results)["mixture"]["intervals"]
    assert intervals["tasks"]["qa2"]["em"] is None
    assert intervals["mean"] is None
    assert "No interval where a task has a single row: qa2, text." in to_table(summaries(results)).notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, r"row 1: field 'id' is 'a'"),
        ({"id": True}, r"row 1: field 'id' is True"),
        ({"adapters": None}, r"row 1: field 'adapters' is None"),
        ({"weights": [float("nan")]}, r"row 1: field 'weights.0' is nan"),
    ],
)
def test_a_malformed_row_is_named(results: Path, change: dict[str, Any], message: str) -> None:
    first, *others = (results / "best_selection.jsonl").read_text().splitlines()
    (results / "best_selection.jsonl").write_text("\n".join([json.dumps({**json.loads(first), **change}), *others]))
    with pytest.raises(UserError, match=message):
        read_runs(results)


@pytest.mark.parametrize("meta", ["[]", "null", '{"configuration": null}', '{"files": null}', "no json"])
def test_a_malformed_record_is_named(results: Path, meta: str) -> None:
    (results / "best_selection.meta.json").write_text(meta)
    with pytest.raises(UserError, match=r"best_selection\.meta\.json: "):
        read_runs(results)


def test_a_task_has_one_domain(results: Path) -> None:
    text = (results / "best_selection.jsonl").read_text()
    (results / "best_selection.jsonl").write_text(text.replace("reading comp", "another domain", 1))
    with pytest.raises(UserError, match="a task has one of each"):
        read_runs(results)


@pytest.mark.slow
def test_what_is_no_run_is_passed_over_and_the_unfinished_named(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "summary.json").write_text('{\n "scoring": "paper"\n}')
    (results / "fusion.jsonl").write_text("")  # all its rows failed
    (results / "base.jsonl.partial").write_text("{}")
    assert main(["summarize", str(results)]) == 0
    assert "Not finished, and not shown: base, fusion." in capsys.readouterr().out


@pytest.mark.slow
def test_both_scorings_of_a_comparison_keep_signs_and_bounds(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(results), "--versus", "best_selection", "--scoring", "both"]) == 0
    assert "-50.0 [-100.0, " in capsys.readouterr().out


@pytest.mark.slow
def test_tasks_that_do_not_vary_may_still_hide_something(tmp_path: Path) -> None:
    """All answers to 5 rows and to 500 rows are wrong.

    Only the small task may still be right for half of its inputs.
    """
    rows = [answered("small", "d", "em", "yes", "no")] * 5 + [answered("large", "d", "em", "yes", "no")] * 500
    (tmp_path / "base.jsonl").write_text("\n".join(json.dumps({"id": n, **row}) for n, row in enumerate(rows)))
    intervals = as_json(tmp_path)["base"]["intervals"]
    assert intervals["tasks"]["small"]["em"] == [0.0, 52.18]  # (1 − p)⁵ = 0.025
    assert intervals["tasks"]["large"]["em"] == [0.0, 0.74]
    assert intervals["mean"] == [0.0, 26.09]


def test_tasks_without_a_normalized_score_are_named(results: Path) -> None:
    rows = [json.loads(line) for line in (results / "best_selection.jsonl").read_text().splitlines()]
    rows[2]["predicted_answer"] = "blue"
    (results / "best_selection.jsonl").write_text("\n".join(map(json.dumps, rows)))
    notes = to_table(summaries(results)).notes
    assert "mixture, best_selection: normalized without qa2, which best_selection lacks or scores 0 on." in notes
