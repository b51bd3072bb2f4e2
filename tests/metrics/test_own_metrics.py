"""Metrics of a user's own: `evaluate` modules in a local folder, named by the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import score_run
from lora_retriever.analysis.summary import summarize
from lora_retriever.data.rows import read_rows
from lora_retriever.errors import UserError
from lora_retriever.metrics import Scoring
from lora_retriever.metrics.own import Evaluated

MODULE = """
import datasets
import evaluate

class Overlap(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="share of answers as long as their target", citation="", inputs_description="",
            features=datasets.Features({side: datasets.Value("string") for side in ("predictions", "references")}),
        )

    def _compute(self, predictions, references):
        equal = [len(p) == len(r) for p, r in zip(predictions, references)]
        return {"same_length": 100 * sum(equal) / len(equal)}
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    folder = tmp_path / "same_length"
    folder.mkdir()
    (folder / "same_length.py").write_text(MODULE)
    return folder


def write_run(folder: Path, metric: str, answers: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    row = {"inputs": "?", "targets": "four", "task": "mine", "domain": "own", "metric": metric}
    lines = [json.dumps({"id": place, **row, "predicted_answer": answer}) for place, answer in enumerate(answers)]
    (folder / "base.jsonl").write_text("\n".join(lines))


def test_a_metric_in_a_local_folder_scores_the_rows_that_name_it(tmp_path: Path, module: Path) -> None:
    write_run(tmp_path / "results", str(module), ["five", "nine", "three", "seven"])
    (run,) = summarize(read_runs(tmp_path / "results"), Scoring("standard"))
    assert run.scored.main_scores() == {"mine": 50.0}
    statistics = run.scored.tasks["mine"].parts[0][1]
    assert statistics == pytest.approx(np.array([[100, 1], [100, 1], [0, 1], [0, 1]]))  # a mean: its rows' own scores
    (interval,) = {interval for quantity, interval in run.intervals.items() if quantity.level == "task"}
    assert interval[0] < 50 < interval[1]


def test_a_metric_that_is_no_mean_keeps_its_score_and_gets_an_interval_near_the_exact_one() -> None:
    class Ratio:
        """Shared characters per character of the answers: a ratio of sums."""

        def compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
            return {"ratio": sum(map(len, references)) / sum(map(len, predictions))}

    generator = np.random.default_rng(0)
    answers = ["x" * n for n in generator.integers(5, 15, 60)]
    targets = ["x" * n for n in generator.integers(5, 15, 60)]
    statistics = Evaluated("ratio", Ratio()).statistics(answers, targets)
    score = Ratio().compute(answers, targets)["ratio"]
    assert statistics[:, 0].mean() == pytest.approx(score, rel=1e-9)
    lengths = np.array([[len(answer), len(target)] for answer, target in zip(answers, targets, strict=True)])
    draws = generator.integers(0, 60, (4000, 60))
    exact = lengths[draws].sum(axis=1)
    spread = (exact[:, 1] / exact[:, 0]).std()
    assert statistics[draws, 0].mean(axis=1).std() == pytest.approx(spread, rel=0.1)


def test_rows_may_name_a_folder_but_no_script_of_the_hub(tmp_path: Path, module: Path) -> None:
    row = {"inputs": "a", "targets": "b", "task": "t", "domain": "d", "metric": str(module)}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert read_rows(tmp_path / "rows.json")[0].metric == str(module)
    write_run(tmp_path / "results", "bertscore", ["x"])
    (run,) = read_runs(tmp_path / "results")
    with pytest.raises(
        UserError, match=r"base: task 'mine' \(row 0 is its first\): unknown metric 'bertscore'.*--allow-hub"
    ):
        score_run(run, Scoring())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('broken')", "cannot be loaded: .*broken"),
        (MODULE.replace("100 * sum(equal)", "undefined"), "NameError: name 'undefined'"),
        (MODULE.replace('{"same_length": 100 * sum(equal) / len(equal)}', "{}"), "compute gave {}, no score"),
    ],
)
def test_a_metric_that_fails_is_named(tmp_path: Path, module: Path, script: str, message: str) -> None:
    (module / "same_length.py").write_text(script)
    write_run(tmp_path / "results", str(module), ["x"])
    (run,) = read_runs(tmp_path / "results")
    with pytest.raises(UserError, match=f"metric {module}: {message}"):
        score_run(run, Scoring())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "results", "./nowhere", ["x"])
    (run,) = read_runs(tmp_path / "results")
    with pytest.raises(UserError, match=r"metric \./nowhere: no such folder"):
        score_run(run, Scoring())
