"""The script of the paper's claims: each claim's difference in made-up answers and in the paper's own table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean

import pytest
from paper_claims import CLAIMS, differences, main, mean_differences, paper_difference

from lora_retriever.analysis.published import FOLDER, MEAN_EM, published_table
from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import Quantity
from lora_retriever.metrics import Scoring

RIGHT = {"mixture": "1111100000", "selection": "1110000010", "mixture_ood": "1100011100"}
"""By run, right (1) or wrong answers to five rows of copa and five of piqa, two tasks of commonsense."""


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    folder = tmp_path / "answers"
    folder.mkdir()
    for name, right in RIGHT.items():
        rows = [
            {
                "inputs": f"row {place}",
                "targets": "yes",
                "task": "copa" if place < 5 else "piqa",
                "domain": "commonsense",
                "metric": "em",
                "predicted_answer": "yes" if digit == "1" else "no",
            }
            for place, digit in enumerate(right)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def share(run: str) -> float:
    """The mean over the two tasks of the percent of right answers."""
    return mean(100 * part.count("1") / 5 for part in (RIGHT[run][:5], RIGHT[run][5:]))


@pytest.mark.slow
def test_a_claim_is_judged_where_both_runs_are_there(answers: Path) -> None:
    runs = read_runs(answers)
    found = {(claim.run, claim.other): found for claim, found in mean_differences(runs, Scoring("paper"), True).items()}
    assert found.keys() == {("mixture", "selection"), ("mixture_ood", "mixture")}
    for (run, other), difference in found.items():
        assert difference.value == pytest.approx(share(run) - share(other))
    by_domain = differences(runs, Scoring("paper"), "domain")
    assert [len(found) for found in by_domain.values()] == [2, 2]  # the domain, and the mean


def test_the_papers_differences_are_those_of_its_table() -> None:
    paper = published_table("llama2-7b")
    with (FOLDER / "table1.csv").open(encoding="utf-8") as file:
        (row,) = (row for row in csv.DictReader(file) if row["model"] == "llama2-7b" and row["domain"] == "nli")
    for claim in CLAIMS:
        printed = float(row[claim.run]) - float(row[claim.other])
        assert paper_difference(claim, Quantity("domain", "nli", "em"), paper) == pytest.approx(printed)
    masked = next(claim for claim in CLAIMS if claim.run == "mixture_ood" and claim.other == "selection_ood")
    assert paper_difference(masked, MEAN_EM, paper) == pytest.approx(56.74 - 52.62, abs=0.01)  # tables 4 and 5, by hand


@pytest.mark.slow
def test_every_table_is_printed(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = [{"inputs": "row 3", "targets": "yes"}]
    (tmp_path / "pool.json").write_text(json.dumps([{"model_name": "copa", "domain": "commonsense", "sample": sample}]))
    monkeypatch.setattr("sys.argv", ["paper_claims", str(answers), "--pool", str(tmp_path / "pool.json")])
    main()
    out = capsys.readouterr().out
    assert out.count("### ") == 5  # two means in two scorings, and the domains
    assert "answers, without 1 leaked rows" in out
