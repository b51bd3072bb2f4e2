"""Several results folders stand side by side: each with its own scores, and compared row by row across folders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from lora_retriever.analysis.folders import open_folders
from lora_retriever.analysis.published import published_table
from lora_retriever.analysis.published.side_by_side import means_table, reproduce_folders, reproductions_table
from lora_retriever.analysis.scores import Quantity
from lora_retriever.analysis.side_by_side import summarize_folders
from lora_retriever.cli import main
from lora_retriever.metrics import Scoring
from lora_retriever.tables import FORMATS, Cell

RIGHT = {
    "ours": {"mixture": "1111100000", "selection": "1110000000", "base": "0000000001"},
    "theirs": {"mixture": "1111111000", "selection": "1111000011"},
}
"""By folder and run, right (1) or wrong answers to five rows of copa and five of piqa, two tasks of commonsense."""


def lines_of(right: str, suffix: str = "") -> list[dict[str, Any]]:
    return [
        {
            "inputs": f"row {place}",
            "targets": "yes",
            "task": f"{'copa' if place < 5 else 'piqa'}{suffix}",
            "domain": "commonsense",
            "metric": "em",
            "predicted_answer": "yes" if digit == "1" else "no",
        }
        for place, digit in enumerate(right)
    ]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Our folder, and the folder of others: other names of tasks, and the rows in another order."""
    for folder, runs in RIGHT.items():
        (tmp_path / folder).mkdir()
        for name, right in runs.items():
            lines = lines_of(right) if folder == "ours" else lines_of(right, "_10templates")[::-1]
            (tmp_path / folder / f"{name}.json").write_text(json.dumps(lines))
    return [tmp_path / "ours", tmp_path / "theirs"]


def summarized(capsys: pytest.CaptureFixture[str], folders: Sequence[Path], *arguments: str) -> str:
    assert main(["summarize", *map(str, folders), *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], folders: Sequence[Path], *arguments: str) -> str:
    assert main(["summarize", *map(str, folders), *arguments]) == 2
    return capsys.readouterr().err


def share(right: str) -> float:
    return 10.0 * right.count("1")


def as_csv(text: str) -> tuple[list[str], dict[str, list[str]]]:
    head, *lines = csv.reader(io.StringIO(text))
    return head[1:], {line[0]: line[1:] for line in lines}


@pytest.mark.slow
def test_each_folder_has_a_group_of_columns_with_its_own_runs(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    head, lines = as_csv(summarized(capsys, folders, "--format", "csv", "--no-intervals"))
    assert head == ["ours base", "ours selection", "ours mixture", "theirs selection", "theirs mixture"]
    expected = [share(RIGHT[name.split()[0]][name.split()[1]]) for name in head]
    assert list(map(float, lines["commonsense em"])) == list(map(float, lines["mean over tasks"])) == expected
    text = summarized(capsys, folders)
    assert text.splitlines()[1].split() == ["ours", "theirs"]
    assert "theirs: All runs: in another order than ours, so matched by task, inputs and targets: rows 1-9." in text
    assert "ours: All runs: in another order" not in text
    assert text.count("± half of the 95 % bootstrap interval") == 1
    by_run = summarized(capsys, folders, "--by-run", "--format", "csv")
    assert [line.partition(",")[0] for line in by_run.splitlines()[1:]] == [name.replace(" ", ":") for name in head]


@pytest.mark.slow
def test_every_folder_has_the_scores_that_it_has_alone(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    together = json.loads(summarized(capsys, folders, "--format", "json"))
    assert together["scoring"] == "paper"
    assert list(together["folders"]) == ["ours", "theirs"]
    for folder in folders:
        alone = json.loads(summarized(capsys, [folder], "--format", "json"))
        assert together["folders"][folder.name]["runs"].keys() == alone["runs"].keys()
        for name, run in alone["runs"].items():
            assert together["folders"][folder.name]["runs"][name]["domains"] == run["domains"]
    both = json.loads(summarized(capsys, folders, "--format", "json", "--scoring", "both"))
    assert both["scorings"]["paper"] == together
    head, lines = as_csv(summarized(capsys, folders, "--format", "csv", "--scoring", "both", "--no-intervals"))
    assert head[4:8] == [
        "ours mixture paper",
        "ours mixture standard",
        "theirs selection paper",
        "theirs selection standard",
    ]
    assert lines["commonsense em"][6:8] == ["60.0", "60.0"]


@pytest.mark.slow
def test_a_run_has_a_column_for_the_paper_and_for_each_folder_that_has_it(folders: list[Path]) -> None:
    (folders[1] / "selection.json").unlink()
    opened = open_folders(folders)
    paper = published_table("llama2-7b")
    table = reproductions_table(reproduce_folders(opened, summarize_folders(opened, Scoring()), paper))
    assert table.groups == (("selection", 2), ("mixture", 3))
    assert table.columns == ["paper", "ours", "paper", "ours", "theirs"]
    cells = dict(table.rows)
    printed = mean([80.0, 38.0])  # copa and piqa under mixture in table 4
    wanted, ours, theirs = cells["mean over EM tasks"][2:]
    assert isinstance(wanted, Cell) and isinstance(ours, Cell) and isinstance(theirs, Cell)
    assert (wanted.value, wanted.mark) == (printed, "†")
    assert (ours.value, ours.mark) == (50.0, f" −{printed - 50:.1f} ?")
    assert (theirs.value, theirs.mark) == (70.0, f" +{70 - printed:.1f} ?")
    assert ours.low is not None and ours.low < 50 < (ours.high or 0)
    bare = reproductions_table(
        reproduce_folders(opened, summarize_folders(opened, Scoring()), paper), by_task=True, intervals=False
    )
    assert dict(bare.rows)["copa em"] == [
        Cell(74.0),
        Cell(60.0, mark=" −14.0 ?"),
        Cell(80.0),
        *(Cell(100.0, mark=" +20.0 ?"),) * 2,
    ]
    notes = "\n".join(table.notes)
    assert "ours: Not in the paper, so not here: base." in notes
    assert "the paper's figure lies outside the folder's interval" in notes
    latex = FORMATS["latex"](table)
    assert r" & \multicolumn{2}{c}{selection} & \multicolumn{3}{c}{mixture} \\" in latex
    assert r"\textsuperscript{$-$9.0 ?}" in latex


@pytest.mark.slow
def test_the_means_alone_have_a_row_for_each_run(folders: list[Path]) -> None:
    (folders[1] / "selection.json").unlink()
    opened = open_folders(folders)
    reproductions = reproduce_folders(opened, summarize_folders(opened, Scoring()), published_table("llama2-7b"))
    table = means_table(reproductions, intervals=False)
    assert table.columns == ["paper", "ours", "theirs"] * 3
    assert table.groups == (("mean over EM tasks", 3), ("mean over tasks", 3), ("normalized", 3))
    rows = dict(table.rows)
    assert list(rows) == ["selection", "mixture"]
    assert rows["selection"][:3] == [Cell(mean([74.0, 46.0]), mark="†"), Cell(30.0, mark=" −30.0 ?"), None]
    assert rows["mixture"][:3] == [Cell(59.0, mark="†"), Cell(50.0, mark=" −9.0 ?"), Cell(70.0, mark=" +11.0 ?")]
    assert any("tables 4 and 5 of LoraRetriever" in note for note in table.notes)


@pytest.mark.slow
def test_scores_of_other_tasks_than_the_papers_have_no_difference(folders: list[Path]) -> None:
    for name, right in RIGHT["theirs"].items():
        (folders[1] / f"{name}.json").write_text(json.dumps(lines_of(right)[:5]))  # copa alone
    opened = open_folders(folders)
    reproductions = reproduce_folders(opened, summarize_folders(opened, Scoring()), published_table("llama2-7b"))
    cells = dict(reproductions_table(reproductions, intervals=False).rows)
    assert cells["commonsense em"][-2:] == [Cell(50.0, mark=" −9.0 ?"), Cell(100.0)]
    assert dict(reproductions_table(reproductions, by_task=True, intervals=False).rows)["copa em"][-1] == Cell(
        100.0, mark=" +20.0 ?"
    )


@pytest.mark.slow
def test_the_paper_beside_two_folders_in_json(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(summarized(capsys, folders, "--paper", "llama2-7b", "--format", "json"))
    figures = {
        folder: {(figure["level"], figure["group"]): figure for figure in of["runs"]["mixture"]["figures"]}
        for folder, of in content["folders"].items()
    }
    assert [figures[folder]["task", "copa"]["ours"] for folder in ("ours", "theirs")] == [100.0, 100.0]
    assert [figures[folder]["task", "piqa"]["difference"] for folder in ("ours", "theirs")] == [-38.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("versus", "expected"),
    [
        ("ours", {"theirs:selection": "ours:selection", "theirs:mixture": "ours:mixture"}),
        (
            "mixture",
            {"ours:base": "ours:mixture", "ours:selection": "ours:mixture", "theirs:selection": "theirs:mixture"},
        ),
        (
            "theirs:mixture",
            dict.fromkeys(("ours:base", "ours:selection", "ours:mixture", "theirs:selection"), "theirs:mixture"),
        ),
    ],
)
def test_versus_pairs_runs_row_by_row_across_folders(
    folders: list[Path], capsys: pytest.CaptureFixture[str], versus: str, expected: dict[str, str]
) -> None:
    content = json.loads(summarized(capsys, folders, "--versus", versus, "--format", "json"))
    right = {f"{folder}:{name}": digits for folder, runs in RIGHT.items() for name, digits in runs.items()}
    same_other = len(set(expected.values())) == 1
    assert content["versus"] == (next(iter(expected.values())) if same_other else None)
    assert content["runs"].keys() == expected.keys()
    for name, other in expected.items():
        run = content["runs"][name]
        assert run["rows"] == 10
        if not same_other:
            assert run["versus"] == other
        (found,) = [figure for figure in run["differences"] if figure["level"] == "mean"]
        assert found["difference"] == share(right[name]) - share(right[other])
        differing = [int(one) - int(two) for one, two in zip(right[name], right[other], strict=True)]
        if set(differing) <= {0, 1} or set(differing) <= {0, -1}:  # only the two extreme swaps are as far
            assert found["p"] == pytest.approx(2 * 0.5 ** sum(map(abs, differing)), abs=0.01)
    table = summarized(capsys, folders, "--versus", versus)
    if same_other:
        assert f"Points above (+) or below (−) {versus}, paper scoring" in table
    else:
        assert all(f"{name} − {other}" in table for name, other in expected.items())
        assert "Points above (+) or below (−) the run after the sign −" in table


@pytest.mark.slow
def test_what_cannot_be_paired_is_refused(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    message = (
        "--versus best: no such run; write a run (base, selection, mixture), a folder (ours, theirs) or FOLDER:RUN"
    )
    assert message in refused(capsys, folders, "--versus", "best")
    message = "--versus base: theirs has no run of this name; ours:base compares the runs of all folders with one run"
    assert message in refused(capsys, folders, "--versus", "base")
    twin = folders[0].rename(folders[0].parent / "mixture")
    message = "--versus mixture: a folder and a run have this name; write FOLDER:RUN"
    assert message in refused(capsys, [twin, folders[1]], "--versus", "mixture")
    for name in ("selection", "mixture"):
        (folders[1] / f"{name}.json").rename(folders[1] / f"{name}@k=1.json")
    message = "--versus theirs: there is nothing to compare: no other folder has a run of the same name"
    assert message in refused(capsys, [twin, folders[1]], "--versus", "theirs")
    message = "theirs: none of these runs (selection@k=1, mixture@k=1) is in the paper"
    assert message in refused(capsys, [twin, folders[1]], "--paper", "llama2-7b")


@pytest.mark.slow
def test_folders_of_one_run_each_are_compared_by_the_folders_name(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        for path in folder.iterdir():
            if path.name != "mixture.json":
                path.unlink()
    assert "every folder has this run alone; write the name of a folder (ours, theirs)" in refused(
        capsys, folders, "--versus", "mixture"
    )
    assert "Points above (+) or below (−) ours:mixture" in summarized(capsys, folders, "--versus", "ours")


@pytest.mark.slow
def test_rows_that_a_folder_lacks_are_left_out_of_pairs_alone(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[1] / "mixture.json").write_text(json.dumps(lines_of(RIGHT["theirs"]["mixture"])[:8]))
    content = json.loads(summarized(capsys, folders, "--versus", "ours", "--format", "json"))
    assert content["runs"]["theirs:mixture"]["rows"] == 8
    assert content["runs"]["theirs:mixture"]["missing_rows"] == {"theirs:mixture": [8, 9], "ours:mixture": []}
    assert "theirs: mixture: 2 rows of ours not answered: 8-9." in summarized(capsys, folders)


@pytest.mark.slow
def test_leaked_rows_are_left_out_of_every_folder(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    pool = folders[0].parent / "pool.json"
    sample = {"inputs": "row 0", "targets": "yes"}
    pool.write_text(json.dumps([{"model_name": "copa", "domain": "commonsense", "sample": [sample]}]))
    content = json.loads(summarized(capsys, folders, "--format", "json", "--without-leaks", "--pool", str(pool)))
    assert {run["rows"] for folder in content["folders"].values() for run in folder["runs"].values()} == {9}
    assert all(
        folder["left_out"][-1] == "Without 1 rows whose inputs are in the pool pool.json: 0."
        for folder in content["folders"].values()
    )


@pytest.mark.slow
def test_the_report_shows_several_folders(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    page = summarized(capsys, folders, "--format", "html", "--versus", "mixture")
    assert "<title>ours, theirs" in page
    assert "theirs:selection" in page
    assert main(["report", *map(str, folders)]) == 0
    assert (folders[0] / "report.html").is_file()


@pytest.mark.long
def test_the_authors_answers_score_as_a_loop_does(official: Path) -> None:
    """The mean over the 36 exact-match tasks. The original cuts targets, and compares without dots and case."""
    folders = open_folders([official / "authors"], official / "combined_test.json")
    assert [note.partition(" is read as ")[1:] != ("", "") for note in folders[0].notes] == [True]
    wanted = {"best_selection": 61.3, "selection": 53.8, "mixture": 55.9, "fusion": 41.4}
    summaries = {run.name: run.values for run in summarize_folders(folders, Scoring())["authors"]}
    assert wanted.keys() < summaries.keys()
    for name, values in summaries.items():
        tasks: dict[str, list[bool]] = {}
        for line in json.loads((official / "authors" / f"{name}.json").read_text(encoding="utf-8")):
            if line["metric"] == "em":
                pair = line["predicted_answer"], line["targets"].split("\n\n")[0]
                answer, target = (text.strip().replace(".", "").lower() for text in pair)
                tasks.setdefault(line["task"], []).append(answer == target)
        assert len(tasks) == 36
        ours = mean(values[Quantity("task", task.removesuffix("_10templates"), "em")] for task in tasks)
        assert ours == pytest.approx(mean(round(100 * mean(right), 1) for right in tasks.values()))
        assert round(ours, 1) == wanted.get(name, round(ours, 1))
