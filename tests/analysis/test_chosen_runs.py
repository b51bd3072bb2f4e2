"""`--runs` and `--sort`: which runs a table and a comparison have, and in which order."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from lora_retriever.cli import main
from lora_retriever.commands.arguments import run_names

RIGHT = {"selection": 5, "fusion": 3, "mixture": 8, "mixture@k=4,scorer=cosine": 9, "best_selection": 10, "base": 0}
"""The number of right answers to ten rows, by run."""
PAPER_ORDER = ["base", "selection", "fusion", "mixture", "mixture@k=4,scorer=cosine", "best_selection"]


def write_runs(folder: Path, right: dict[str, int]) -> Path:
    folder.mkdir()
    for name, count in right.items():
        lines = [
            {
                "inputs": f"row {place}",
                "targets": "yes",
                "task": "copa",
                "domain": "commonsense",
                "metric": "em",
                "predicted_answer": "yes" if place < count else "no",
            }
            for place in range(10)
        ]
        (folder / f"{name}.json").write_text(json.dumps(lines))
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "mine", RIGHT)


def columns(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, str]:
    """The mean over tasks, or its difference, by column."""
    assert main(["summarize", *map(str, arguments), "--format", "csv", "--no-intervals"]) == 0
    head, *lines = csv.reader(io.StringIO(capsys.readouterr().out))
    cells = dict(zip(head, next(line for line in lines if line[0] == "mean over tasks"), strict=True))
    return {name: cell for name, cell in cells.items() if name and not name.endswith((" low", " high"))}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["summarize", *map(str, arguments)]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("mixture,base", ["base", "mixture"]),
        ("mix*,selection", ["selection", "mixture", "mixture@k=4,scorer=cosine"]),
        ("*selection", ["selection", "best_selection"]),
        ("mixture@k=4,scorer=cosine,fusion", ["fusion", "mixture@k=4,scorer=cosine"]),
        ("*", PAPER_ORDER),
    ],
)
def test_names_and_patterns_choose_runs_in_the_papers_order(
    results: Path, capsys: pytest.CaptureFixture[str], chosen: str, expected: list[str]
) -> None:
    assert list(columns(capsys, results, "--runs", chosen)) == expected


@pytest.mark.slow
def test_an_unknown_run_is_answered_with_the_known_runs(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pattern in ("mixtur", "arrow*"):
        message = refused(capsys, results, "--runs", f"base,{pattern}")
        assert f"--runs {pattern}: no such run (there are: {', '.join(PAPER_ORDER)})" in message
    with pytest.raises(SystemExit, match="2"):
        main(["summarize", str(results), "--runs", ","])
    assert "must name at least one" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_ordered_by_falling_mean(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = columns(capsys, results, "--sort", "mean")
    assert list(found) == sorted(RIGHT, key=lambda name: -RIGHT[name])
    assert {name: float(mean) for name, mean in found.items()} == {name: 10.0 * count for name, count in RIGHT.items()}
    assert main(["summarize", str(results), "--sort", "mean", "--by-run", "--runs", "*mixture,fusion,base"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.split() and line.split()[0] in RIGHT] == [
        "mixture", "fusion", "base",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_oracle_normalizes_where_it_is_not_chosen(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(results), "--runs", "mixture", "--format", "json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"].values()
    assert run["normalized"] == 80


@pytest.mark.slow
def test_chosen_runs_alone_are_compared_and_counted(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [results, "--versus", "selection", "--runs", "mixture,fusion,base"]
    assert list(columns(capsys, *asked)) == ["base", "fusion", "mixture"]
    found = columns(capsys, *asked, "--sort", "mean")
    assert {name: float(value) for name, value in found.items()} == {"mixture": 30, "fusion": -20, "base": -50}
    assert list(found) == ["mixture", "fusion", "base"]
    for chosen, differences in (("mixture", 2), ("mixture,fusion,base", 6), ("*", 10)):
        assert main(["summarize", str(results), "--versus", "selection", "--runs", chosen, "--format", "json"]) == 0
        written = json.loads(capsys.readouterr().out)
        assert written["comparisons"] == differences, "a domain and the mean for each run"
    assert "--runs leaves no run to compare" in refused(capsys, results, "--versus", "base", "--runs", "base")
    assert "no run 'arrow' to compare with" in refused(capsys, results, "--versus", "arrow", "--runs", "base")


@pytest.mark.slow
def test_runs_of_several_folders_are_chosen_in_each(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_runs(tmp_path / "other", {"mixture": 1, "fusion": 2})
    assert list(columns(capsys, results, other, "--runs", "mixture,other:*", "--sort", "mean")) == [
        "mine mixture", "other fusion", "other mixture",
    ]  # fmt: skip
    assert list(columns(capsys, results, other, "--runs", "mine:f*")) == ["fusion"]
    compared = columns(capsys, results, other, "--versus", "other", "--runs", "mine:mixture")
    assert {name: float(value) for name, value in compared.items()} == {"mine:mixture": 70}


@pytest.mark.slow
def test_the_report_has_the_chosen_runs_in_this_order(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    asked = ["report", str(results), "--runs", "fusion,mixture", "--sort", "mean", "--output", str(page)]
    assert main(asked) == 0
    text = page.read_text()
    assert "fusion" in text
    assert "best_selection" not in text
    assert text.index('"mixture"') < text.index('"fusion"')


def test_the_comma_in_a_variants_name_separates_nothing() -> None:
    assert run_names("a,b*,mixture@k=4,scorer=cosine,c") == ["a", "b*", "mixture@k=4,scorer=cosine", "c"]
