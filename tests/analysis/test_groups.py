"""Groups of rows: a table split by a further field of the rows has the scores of each group alone."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_retriever.analysis.folders import open_folders
from lora_retriever.analysis.groups import split
from lora_retriever.cli import main
from lora_retriever.data.further import MAX_VALUES

SEEN = "seen"
UNSEEN = "unseen"
RIGHT = {
    "selection": ("11110000", "11000000"),
    "mixture": ("11111100", "11110000"),
    "best_selection": ("11111111", "11110000"),
}
"""By run, right (1) or wrong answers to the eight rows of copa and of piqa. Every second row has an unseen wording."""
ROWS = [
    {
        "inputs": f"{task} {place}",
        "targets": "yes",
        "task": task,
        "domain": "commonsense",
        "metric": "em",
        "instruction": UNSEEN if place % 2 else SEEN,
    }
    for task in ("copa", "piqa")
    for place in range(8)
]


def write_runs(folder: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    folder.mkdir()
    for name, right in RIGHT.items():
        answers = ["yes" if digit == "1" else "no" for digit in "".join(right)]
        lines = [{**row, "predicted_answer": answer} for row, answer in zip(rows, answers, strict=True)]
        (folder / f"{name}.json").write_text(json.dumps(lines))
    return folder


def without_field(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "instruction"} for row in rows]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "mine")


def summarized(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["summarize", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["summarize", *map(str, arguments)]) == 2
    return " ".join(capsys.readouterr().err.split())


def as_csv(text: str) -> tuple[list[str], dict[str, list[str]]]:
    head, *lines = csv.reader(io.StringIO(text))
    return head[1:], {line[0]: line[1:] for line in lines}


def share(right: str) -> float:
    return 100 * right.count("1") / len(right)


def mean_of(name: str, value: str) -> float:
    """The mean over the two tasks on the rows of one value, by counting."""
    return sum(share(right[value == UNSEEN :: 2]) for right in RIGHT[name]) / 2


@pytest.mark.slow
def test_every_run_has_a_column_for_each_value(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, lines = as_csv(summarized(capsys, results, "--by", "instruction", "--format", "csv", "--no-intervals"))
    runs = ["selection", "mixture", "best_selection"]
    assert head == [f"{run} {value}" for run in runs for value in (SEEN, UNSEEN)]
    expected = [mean_of(run, value) for run in runs for value in (SEEN, UNSEEN)]
    assert list(map(float, lines["mean over tasks"])) == expected
    assert list(map(float, lines["commonsense em"])) == expected
    by_task = as_csv(summarized(capsys, results, "--by", "instruction", "--by-task", "--format", "csv"))
    assert by_task[0][:3] == ["selection seen", "selection seen low", "selection seen high"], "with intervals"
    assert by_task[1]["piqa em"][0] == str(share(RIGHT["selection"][1][::2]))
    text = summarized(capsys, results, "--by", "instruction")
    assert "By instruction: seen 8 rows, unseen 8 rows." in text
    assert text.count("± half of the 95 %") == 1, "a note that all values share stands there once"


@pytest.mark.slow
def test_the_oracle_on_the_same_rows_normalizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "instruction": SEEN if place % 8 < 2 else UNSEEN} for place, row in enumerate(ROWS)]
    folder = write_runs(tmp_path / "mine", rows)
    written = json.loads(summarized(capsys, folder, "--by", "instruction", "--format", "json"))
    assert written["by"] == "instruction"
    assert {value: of["runs"]["selection"]["rows"] for value, of in written["values"].items()} == {SEEN: 4, UNSEEN: 12}
    # unseen: selection 2 of 6 and 0 of 6, the oracle 6 of 6 and 2 of 6, each with one decimal
    assert written["values"][SEEN]["runs"]["selection"]["normalized"] == 100
    assert written["values"][UNSEEN]["runs"]["selection"]["normalized"] == pytest.approx(33.3 / 2)


@pytest.mark.slow
def test_a_table_by_run_has_the_values_of_each_column_side_by_side(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, lines = as_csv(
        summarized(capsys, results, "--by", "instruction", "--by-run", "--format", "csv", "--no-intervals")
    )
    assert head[:4] == ["mean over tasks seen", "mean over tasks unseen", "normalized seen", "normalized unseen"]
    for run in RIGHT:
        assert list(map(float, lines[run][:2])) == [mean_of(run, SEEN), mean_of(run, UNSEEN)]


@pytest.mark.slow
def test_a_domain_that_one_value_lacks_is_empty_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "instruction": row["task"], "domain": row["task"]} for row in ROWS]
    folder = write_runs(tmp_path / "mine", rows)
    head, lines = as_csv(summarized(capsys, folder, "--by", "instruction", "--by-run", "--format", "csv"))
    assert lines["mixture"][head.index("copa em piqa")] == ""
    assert lines["mixture"][head.index("copa em copa")] == "75.0"
    _, lines = as_csv(summarized(capsys, folder, "--by", "instruction", "--format", "csv", "--no-intervals"))
    assert lines["piqa em"] == ["", "25.0", "", "50.0", "", "50.0"]


@pytest.mark.slow
def test_comparisons_of_all_values_are_corrected_together(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [results, "--by", "instruction", "--versus", "selection"]
    head, lines = as_csv(summarized(capsys, *asked, "--format", "csv"))
    assert head[::3] == ["mixture seen", "mixture unseen", "best_selection seen", "best_selection unseen"]
    expected = [mean_of(run, value) - mean_of("selection", value) for run in ("mixture", "best_selection")
                for value in (SEEN, UNSEEN)]  # fmt: skip
    assert list(map(float, lines["mean over tasks"][::3])) == pytest.approx(expected)
    assert "corrected for 8 comparisons (Holm)" in summarized(capsys, *asked)
    values = json.loads(summarized(capsys, *asked, "--format", "json"))["values"]
    found = [
        difference
        for value in (SEEN, UNSEEN)
        for run in values[value]["runs"].values()
        for difference in run["differences"]
    ]
    assert len(found) == values[SEEN]["comparisons"] == values[UNSEEN]["comparisons"] == 8
    smallest = min(found, key=lambda difference: difference["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 8 * smallest["p"]), abs=1e-5)


@pytest.mark.slow
def test_answers_without_the_field_take_it_from_the_file_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_runs(tmp_path / "mine", without_field(ROWS))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[::-1]))
    asked = [folder, "--by", "instruction", "--format", "csv", "--no-intervals"]
    message = refused(capsys, *asked)
    assert "--by instruction: no row has this field (the rows have no further field)" in message
    assert "name the file with --rows FILE" in message
    head, lines = as_csv(summarized(capsys, *asked, "--rows", tmp_path / "rows.json"))
    means = dict(zip(head, map(float, lines["mean over tasks"]), strict=True))
    assert means == {f"{run} {value}": mean_of(run, value) for run in RIGHT for value in (SEEN, UNSEEN)}


@pytest.mark.slow
def test_a_run_without_the_field_takes_it_from_another_run(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = json.loads((results / "mixture.json").read_text())
    (results / "mixture.json").write_text(json.dumps(without_field(lines)))
    head, lines_of = as_csv(summarized(capsys, results, "--by", "instruction", "--format", "csv", "--no-intervals"))
    assert float(lines_of["mean over tasks"][head.index("mixture unseen")]) == mean_of("mixture", UNSEEN)


def test_rows_without_the_field_and_runs_without_a_value_are_left_out(results: Path) -> None:
    for name in RIGHT:
        lines = json.loads((results / f"{name}.json").read_text())
        lines[3]["instruction"] = None
        (results / f"{name}.json").write_text(json.dumps(lines[:1] if name == "mixture" else lines))
    groups = split(open_folders([results]), "instruction")
    assert groups.notes == [
        "By instruction: seen 8 rows, unseen 7 rows.",
        "Rows without instruction, left out of the groups: 3.",
        "mixture has no row of unseen, so it is left out of the groups.",
    ]
    for value, ids in ((SEEN, range(0, 16, 2)), (UNSEEN, [1, *range(5, 16, 2)])):
        (folder,) = groups.by_value[value]
        assert {run.name: list(run.rows) for run in folder.runs} == {
            name: list(ids) for name in ("selection", "best_selection")
        }


def test_numbers_and_truth_values_are_values(tmp_path: Path) -> None:
    rows = [{**row, "length": place % 2 + 0.5, "first": place < 8} for place, row in enumerate(ROWS)]
    folders = open_folders([write_runs(tmp_path / "mine", rows)])
    assert list(split(folders, "length").by_value) == ["0.5", "1.5"]
    assert list(split(folders, "first").by_value) == ["true", "false"]


@pytest.mark.slow
def test_what_cannot_be_split_is_named(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, results, "--by", "wording")
    assert "--by wording: no row has this field (the rows have further fields: instruction)" in message
    assert "--paper and --by" in refused(capsys, results, "--by", "instruction", "--paper", "llama2-7b")
    lines = json.loads((results / "mixture.json").read_text())
    (results / "mixture.json").write_text(json.dumps([{**lines[0], "instruction": UNSEEN}, *lines[1:]]))
    message = refused(capsys, results, "--by", "instruction")
    assert "row 0 has the value" in message
    many = [{**ROWS[0], "source": place, "predicted_answer": "yes"} for place in range(MAX_VALUES + 1)]
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "base.json").write_text(json.dumps(many))
    assert f"--by source: {MAX_VALUES + 1} different values" in refused(capsys, tmp_path / "many", "--by", "source")


@pytest.mark.slow
def test_the_report_has_the_mean_of_each_value(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def standings(*folders: Path) -> dict[str, list[Any]]:
        page = summarized(capsys, *folders, "--by", "instruction", "--format", "html")
        content = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[0])
        assert content["groups"]["values"] == [SEEN, UNSEEN]
        assert content["rows"]["group"] == [0, 1] * 8
        return {line["run"]: line["groups"] for line in content["leaderboard"]}

    for name, groups in standings(results).items():
        assert [mean for mean, _ in groups] == [mean_of(name, value) for value in (SEEN, UNSEEN)]
        assert all(low < mean < high or low == mean == 100 for mean, (low, high) in groups)
    other = write_runs(tmp_path / "other")
    (other / "mixture.json").write_text(json.dumps(json.loads((other / "mixture.json").read_text())[:1]))
    of_both = standings(results, other)
    assert of_both["mine:mixture"] == standings(results)["mixture"]
    assert of_both["other:mixture"] == [None, None], "it has no row of the value unseen"


@pytest.mark.slow
def test_several_folders_and_both_scorings_are_split_together(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_runs(tmp_path / "other", without_field(ROWS))
    asked = [results, other, "--by", "instruction", "--runs", "mixture", "--format", "csv", "--no-intervals"]
    head, lines = as_csv(summarized(capsys, *asked))
    assert head == ["mine mixture seen", "mine mixture unseen", "other mixture seen", "other mixture unseen"]
    assert list(map(float, lines["mean over tasks"])) == [mean_of("mixture", value) for value in (SEEN, UNSEEN)] * 2
    head, lines = as_csv(summarized(capsys, *asked, "--scoring", "both"))
    first_two = [f"mine mixture {SEEN} {scoring}" for scoring in ("paper", "standard")]
    assert head[:4] == [*first_two, *(name.replace(SEEN, UNSEEN) for name in first_two)]
