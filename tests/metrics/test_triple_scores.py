"""Precision, recall and F1 of triples, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_retriever.cli import main
from lora_retriever.data.triples import text_of, triples_of
from lora_retriever.metrics.base import compute
from lora_retriever.metrics.triples import TRIPLES

TARGETS = ["CEO | Acme | Ann\nCITY | Acme | Rome", "CEO | Bolt | Ben", "", ["CITY | Bolt | Oslo", "CEO | Bolt | Cid"]]
ANSWERS = ["CEO |  Acme|Ann \nCEO | Acme | Ann\nCITY | Acme | rome", "CITY | Bolt | Ben", "CEO | x", "CEO | Bolt | Cid"]
# right: 1, 0, 0, 1 of 2, 1, 1, 1 given and 2, 1, 0, 2 wanted; relations: 2, 0, 0, 1 of 2, 1, 1, 1 and 2, 1, 0, 2
EXPECTED = {
    "precision": 100 * 2 / 5,
    "recall": 100 * 2 / 5,
    "f1": 100 * 4 / 10,
    "relation-precision": 100 * 3 / 5,
    "relation-recall": 100 * 3 / 5,
    "relation-f1": 100 * 6 / 10,
}


def test_scores_are_micro_averages_over_sets_of_triples() -> None:
    assert compute(TRIPLES, predictions=ANSWERS, references=TARGETS) == pytest.approx(EXPECTED)
    assert compute(TRIPLES, predictions=["", ""], references=["", "a | b | c"]) == dict.fromkeys(EXPECTED, 0.0)


def test_precision_divides_by_the_answer_and_recall_by_the_target() -> None:
    target, answer = "CEO | Acme | Ann", "CEO | Acme | Ann\nCITY | Acme | Rome\nCITY | Bolt | Oslo\nAGE | Ann | 40"
    sums = TRIPLES.statistics([answer], [target])
    assert sums.tolist() == [[1, 4, 1, 1, 3, 1]]
    assert sums.dtype == np.float64
    scores = dict(zip(TRIPLES.scores, TRIPLES.combine(sums)[0].tolist(), strict=True))
    assert scores == pytest.approx(
        {
            "precision": 25.0,
            "recall": 100.0,
            "f1": 40.0,
            "relation-precision": 100 / 3,
            "relation-recall": 100.0,
            "relation-f1": 50.0,
        }
    )


@pytest.mark.slow
def test_the_table_of_a_results_folder_has_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"id": id, "inputs": "x", "targets": t, "predicted_answer": a, "task": "t", "domain": "d", "metric": "triples"}
        for id, (t, a) in enumerate(zip(TARGETS, ANSWERS, strict=True))
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["summarize", str(tmp_path), "--format", "json", "--scoring", "standard"]) == 0
    task = json.loads(capsys.readouterr().out)["runs"]["mine"]["tasks"]["t"]
    assert {name: task[name] for name in EXPECTED} == pytest.approx(EXPECTED, abs=1e-3)


def test_triples_are_read_as_they_are_written() -> None:
    triples = [("CEO", "Acme, Inc.", "Ann"), ("CITY", "Ann", "Rome")]
    assert triples_of(text_of([*triples, triples[0]])) == set(triples)
