"""Answers from elsewhere are matched with the right rows, and everything odd in a file of answers is named.

Scores are compared with those of a plain loop over the answers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_retriever.analysis.folders import open_folders
from lora_retriever.analysis.origins import read_origins
from lora_retriever.analysis.runs import Run, open_results
from lora_retriever.analysis.scores import Quantity
from lora_retriever.analysis.summary import summarize
from lora_retriever.cli import main
from lora_retriever.errors import UserError
from lora_retriever.metrics import Scoring

TASKS = ("rte", "snli")
ROWS = [
    {"inputs": f"{task} {number}?", "targets": "yes", "task": task, "domain": "nli", "metric": "em"}
    for task in TASKS
    for number in range(5)
]
RIGHT = "1011001110"
"""Right (1) or wrong, row by row."""
Lines = list[dict[str, Any]]


def answers(suffix: str = "") -> Lines:
    """Answers without ids, in the order of the rows."""
    return [
        {**row, "task": f"{row['task']}{suffix}", "predicted_answer": "Yes." if digit == "1" else f"no {place}"}
        for place, (row, digit) in enumerate(zip(ROWS, RIGHT, strict=True))
    ]


def put(folder: Path, name: str, lines: Lines) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(lines))
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    (tmp_path / "test.json").write_text(json.dumps(ROWS))
    return tmp_path / "test.json"


def shares(lines: Lines) -> dict[str, float]:
    """By task, the percentage of answers that are the target apart from dots and case, to one decimal, as the original
    rounds; the first of several answers to a row counts."""
    right: dict[str, list[bool]] = {}
    seen = set()
    for line in lines:
        task = line["task"].removesuffix("_10templates")
        if (task, line["inputs"], line["targets"]) not in seen:
            seen.add((task, line["inputs"], line["targets"]))
            right.setdefault(task, []).append(line["predicted_answer"].lower().strip(".") == line["targets"])
    return {task: round(100 * sum(of_task) / len(of_task), 1) for task, of_task in right.items()}


def scores(run: Run) -> dict[str, float]:
    (summary,) = summarize([run], Scoring())
    return {task: summary.values[Quantity("task", task, "em")] for task in TASKS}


def moved(lines: Lines) -> Lines:
    return [lines[7], *lines[:7], *lines[8:]]


def altered(lines: Lines) -> Lines:
    return [{**line, "targets": "no"} if place == 4 else line for place, line in enumerate(lines)]


ODD: dict[str, tuple[Callable[[Lines], Lines], Callable[[Lines], Lines], list[str]]] = {
    "as it is": (lambda lines: lines, lambda lines: lines, []),
    "one row moved": (moved, lambda lines: lines, ["in another order than REF, so matched by .*: rows 7\\."]),
    "all rows reversed": (lambda lines: lines[::-1], lambda lines: lines, ["in another order than REF.*: rows 1-9\\."]),
    "a row twice": (
        lambda lines: [*lines[:3], {**lines[2], "predicted_answer": "no"}, *lines[3:]],
        lambda lines: lines,
        ["answered more than once, and the first answer counts: rows 2\\."],
    ),
    "two rows missing": (
        lambda lines: [*lines[:1], *lines[3:]],
        lambda lines: [*lines[:1], *lines[3:]],
        ["2 rows of REF not answered: 1-2\\."],
    ),
    "another target": (
        altered,
        lambda lines: [*lines[:4], *lines[5:]],
        ["other targets than in REF, so left out: rows 4\\."],
    ),
    "another input": (
        lambda lines: [{**line, "inputs": "x"} if place == 5 else line for place, line in enumerate(lines)],
        lambda lines: [*lines[:5], *lines[6:]],
        ["other inputs than in REF, so left out: rows 5\\."],
    ),
    "a row of another task": (
        lambda lines: [*lines, {**lines[0], "task": "mine", "inputs": "mine"}],
        lambda lines: lines,
        ["no rows of REF, so left out: rows 10 of the run's file\\."],
    ),
    "missing, twice and moved": (
        lambda lines: moved([*lines[:1], *lines[2:4], *lines[3:]]),
        lambda lines: [*lines[:1], *lines[2:]],
        ["in another order.*: rows 7\\.", "more than once.*: rows 3\\.", "1 rows of REF not answered: 1\\."],
    ),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("reference", ["the benchmark's file", "the first folder"])
def test_odd_files_score_as_a_loop_does_and_every_oddity_is_named(
    tmp_path: Path, rows_file: Path, kind: str, reference: str
) -> None:
    change, kept, expected = ODD[kind]
    foreign = put(tmp_path / "foreign", "misture.json", change(answers("_10templates")))
    if reference == "the benchmark's file":
        (folder,), name = open_folders([foreign], rows_file), str(rows_file)
    else:
        (_, folder), name = open_folders([put(tmp_path / "ours", "base.json", answers()), foreign]), "ours"
    (run,) = folder.runs
    assert run.name == "mixture"
    assert scores(run) == shares(kept(answers()))
    for id, row in run.rows.items():
        assert (row.inputs, row.task, row.answer) == (
            ROWS[id]["inputs"],
            ROWS[id]["task"],
            answers()[id]["predicted_answer"],
        )
    spelling, suffix, *found = folder.notes
    assert spelling == "misture.json is read as the run mixture; the file has the original's spelling."
    assert re.fullmatch(
        r"All runs: task (\w+)_10templates is read as \1, the official benchmark's name, and 1 more tasks likewise\.",
        suffix,
    )
    assert len(found) == len(expected)
    for note, pattern in zip(found, expected, strict=True):
        assert note.startswith("All runs: ")
        assert re.search(pattern.replace("REF", re.escape(name)), note), note


@pytest.mark.slow
def test_a_row_that_only_some_runs_lack_is_named_in_one_note(
    tmp_path: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(tmp_path / "foreign", "base.json", answers()[1:])
    put(folder, "selection.json", answers()[2:])
    for arguments in ([], ["--by-run"], ["--scoring", "both"]):
        assert main(["summarize", str(folder), "--rows", str(rows_file), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "answered" in line or "lack" in line] == [
            f"base: 1 rows of {rows_file} not answered: 0.",
            f"selection: 2 rows of {rows_file} not answered: 0-1.",
        ]
    assert main(["summarize", str(folder), "--rows", str(rows_file), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing_rows"] == {"selection": [1]}


@pytest.mark.slow
def test_runs_that_lack_the_same_rows_share_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "ours", "base.json", answers())
    for name in ("selection", "mixture", "fusion"):
        put(folder, f"{name}.json", answers()[: 6 if name == "fusion" else 7])
    assert main(["summarize", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "lack" in line] == [
        "selection, mixture lack 3 rows that other runs have: 7-9.", "fusion lacks 4 rows that other runs have: 6-9.",
    ]  # fmt: skip


def test_white_space_does_not_tell_rows_apart(tmp_path: Path, rows_file: Path) -> None:
    lines = [{**line, "inputs": f" {line['inputs']}\n".replace(" ", "  ")} for line in answers()]
    (folder,) = open_folders([put(tmp_path / "foreign", "base.json", lines)], rows_file)
    assert folder.notes == []
    assert [row.inputs for row in folder.runs[0].rows.values()] == [row["inputs"] for row in ROWS]


def test_rows_that_the_benchmark_has_twice_are_answered_twice(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps([*ROWS, ROWS[3]]))
    lines = [*answers(), {**answers()[3], "predicted_answer": "again"}]
    (folder,) = open_folders([put(tmp_path / "foreign", "base.json", lines[::-1])], tmp_path / "test.json")
    assert sorted(folder.runs[0].rows) == list(range(11))
    assert {folder.runs[0].rows[id].answer for id in (3, 10)} == {"Yes.", "again"}


def test_a_run_without_inputs_is_matched_by_place_alone(tmp_path: Path, rows_file: Path) -> None:
    lines = [{name: value for name, value in line.items() if name != "inputs"} for line in answers()]
    (folder,) = open_folders([put(tmp_path / "foreign", "base.json", lines)], rows_file)
    assert scores(folder.runs[0]) == shares(answers())
    with pytest.raises(UserError, match="other task in"):
        open_results(put(put(tmp_path / "both", "base.json", answers()), "mixture.json", lines[::-1]))


def test_files_of_one_folder_that_differ_in_order_need_the_benchmarks_rows(tmp_path: Path, rows_file: Path) -> None:
    folder = put(put(tmp_path / "both", "base.json", answers()), "fusion.json", answers()[::-1])
    with pytest.raises(
        UserError, match=r"If only the order of the rows differs, name the benchmark's file with --rows"
    ):
        open_results(folder)
    (matched,) = open_folders([folder], rows_file)
    assert [scores(run) for run in matched.runs] == [shares(answers())] * 2
    assert matched.notes == [
        f"fusion: in another order than {rows_file}, so matched by task, inputs and targets: rows 1-9."
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": "other"}, "base: none of its 10 rows is a row of .*: these are not answers to the same benchmark"),
        ({"metric": "bleu"}, "task 'rte' is of domain 'nli' and scored by 'bleu' in base .*by 'em' in .*test.json"),
        ({"domain": "x"}, "task 'rte' is of domain 'x' and scored by 'em' in base"),
    ],
)
def test_answers_to_another_benchmark_are_refused(
    tmp_path: Path, rows_file: Path, change: dict[str, str], message: str
) -> None:
    foreign = put(tmp_path / "foreign", "base.json", [{**line, **change} for line in answers()])
    with pytest.raises(UserError, match=message):
        open_folders([foreign], rows_file)


def test_two_spellings_of_one_run_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "misture_ood.json", answers())
    assert [run.name for run in open_results(tmp_path)[0]] == ["mixture_ood"]
    put(tmp_path, "mixture_ood.json", answers())
    with pytest.raises(UserError, match=r"misture_ood\.json and mixture_ood\.json are both the run mixture_ood"):
        open_results(tmp_path)
    put(tmp_path / "other", "mistures.json", answers())  # a name of its own
    assert [run.name for run in open_results(tmp_path / "other")[0]] == ["mistures"]


def test_folders_are_named_by_the_shortest_different_ends(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = [put(tmp_path / folder, "base.json", answers()) for folder in ("a/runs", "b/runs", "c")]
    assert [folder.name for folder in open_folders(paths)] == ["a/runs", "b/runs", "c"]
    with pytest.raises(UserError, match="is there more than once"):
        open_folders([paths[0], paths[2], paths[0] / ".." / "runs"])


ORIGIN = """
model: Llama-2-7b
source: github.com/someone/code
commit: 3a2f8d3
runs:
  mixture: {note: decoded twice., model: another}
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    folder = put(put(tmp_path / "foreign", "base.json", answers()), "misture.json", answers())
    (folder / "runs.yaml").write_text(ORIGIN)
    return folder


@pytest.mark.slow
def test_runs_yaml_says_whose_answers_these_are(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(foreign)]) == 0
    table = capsys.readouterr().out
    assert "base: answered by Llama-2-7b; source github.com/someone/code; commit 3a2f8d3. (runs.yaml)\n" in table
    assert "mixture: answered by another; source github.com/someone/code; commit 3a2f8d3; decoded twice. (runs" in table
    assert main(["summarize", str(foreign), "--format", "json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    common = {"source": "github.com/someone/code", "commit": "3a2f8d3"}
    assert runs["base"]["origin"] == {"model": "Llama-2-7b", **common}
    assert runs["mixture"]["origin"] == {"model": "another", **common, "note": "decoded twice."}
    assert main(["summarize", str(foreign), "--paper", "llama2-7b"]) == 0
    table = capsys.readouterr().out
    assert "mixture: runs.yaml says that another answered; a reproduction only if this is the paper's" in table
    assert "no record" not in table
    assert main(["summarize", str(foreign), "--format", "html"]) == 0
    assert "github.com/someone/code" in capsys.readouterr().out


@pytest.mark.slow
def test_the_paper_is_not_said_to_be_reproduced_by_an_unknown_model(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (foreign / "runs.yaml").write_text("source: a friend")
    assert main(["summarize", str(foreign), "--paper", "llama2-7b"]) == 0
    table = capsys.readouterr().out
    assert "mixture: runs.yaml does not say which model answered; a reproduction only if llama2-7b's did." in table
    assert "All runs: it is not known which model answered; source a friend. (runs.yaml)" in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: x", "modle: is no field of runs.yaml"),
        ("commit: 1234567", "commit: expected a text, found 1234567; write a text in quotation marks"),
        ("note: [a]", "note: expected a text, found ['a']"),
        ("source: ' '", "source: is blank"),
        ("runs: {fusion: {model: x}}", "runs: no run 'fusion' (there are: base, mixture)"),
        ("runs: {base: x}", "runs.base: "),
        ("runs: {base: {rows: '3'}}", "runs.base.rows: is no field of runs.yaml"),
        ("", "the file is empty"),
        ("# nothing", "expected fields and values, found nothing"),
        ("a: b: c", "not readable as YAML: line 1"),
        ("model: x\nmodel: y", "line 2: field 'model' is there more than once"),
    ],
)
def test_a_wrong_runs_yaml_is_named(foreign: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (foreign / "runs.yaml").write_text(text)
    assert main(["summarize", str(foreign)]) == 2
    error = capsys.readouterr().err
    assert f"{foreign / 'runs.yaml'}: " in error
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_a_runs_yaml_that_is_no_file_is_not_passed_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "runs.yaml"
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_origins(tmp_path, ["base"])
