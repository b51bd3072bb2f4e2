"""Metrics of a user's own: `evaluate` modules in a local folder, named by the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.scores import score_run
from lora_retriever.analysis.summary import summarize
from lora_retriever.cli import main
from lora_retriever.data.rows import read_rows
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import PROFILES, load_profile
from lora_retriever.metrics import RowError, Scoring, ScoringName
from lora_retriever.metrics.own import Evaluated, find_metric

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


def allowing(folder: Path, name: ScoringName = "paper") -> Scoring:
    """A scoring that may run the metrics of a folder."""
    return Scoring(name, metric_folders=(folder,))


def write_run(folder: Path, metric: str, answers: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    row = {"inputs": "?", "targets": "four", "task": "mine", "domain": "own", "metric": metric}
    lines = [json.dumps({"id": place, **row, "predicted_answer": answer}) for place, answer in enumerate(answers)]
    (folder / "base.jsonl").write_text("\n".join(lines))


@pytest.mark.slow
def test_a_metric_in_a_local_folder_scores_the_rows_that_name_it(tmp_path: Path, module: Path) -> None:
    write_run(tmp_path / "results", str(module), ["five", "nine", "three", "seven"])
    (run,) = summarize(read_runs(tmp_path / "results"), allowing(tmp_path, "standard"))
    assert run.scored.main_scores() == {"mine": 50.0}
    statistics = run.scored.tasks["mine"].parts[0][1]
    assert statistics == pytest.approx(np.array([[100, 1], [100, 1], [0, 1], [0, 1]]))  # a mean of row scores
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


@pytest.mark.slow
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
        score_run(run, allowing(tmp_path))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "results", "./nowhere", ["x"])
    (run,) = read_runs(tmp_path / "results")
    with pytest.raises(UserError, match=r"metric \./nowhere: no such folder"):
        score_run(run, allowing(tmp_path))


def test_a_metric_in_a_folder_that_is_not_allowed_never_runs(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    write_run(tmp_path / "results", str(tmp_path / "evil.py"), ["x"])
    (run,) = read_runs(tmp_path / "results")
    for scoring in (Scoring(), allowing(tmp_path / "another")):
        with pytest.raises(UserError, match=f"from allowed folders.*--allow-metrics {tmp_path}.*`metrics: "):
            score_run(run, scoring)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="cannot be loaded"):  # the module is no metric, but ran
        score_run(run, allowing(tmp_path))
    assert (tmp_path / "ran").exists()


def test_a_link_does_not_lead_out_of_an_allowed_folder(tmp_path: Path, module: Path) -> None:
    allowed = tmp_path / "allowed"
    (allowed / "inner").mkdir(parents=True)
    (allowed / "linked").symlink_to(module)
    (allowed / "inner" / "inner.py").symlink_to(module / "same_length.py")
    for name in (allowed / "linked", allowed / "inner", allowed / ".." / "same_length", f"{allowed}-2"):
        with pytest.raises(UserError, match=r"from allowed folders|no such folder"):
            find_metric(str(name), False, [allowed])
    (tmp_path / "by_link").symlink_to(tmp_path)
    assert find_metric(str(module), False, [tmp_path / "by_link"]) == str(module / "same_length.py")


def test_names_that_are_no_paths_are_refused_with_one_message() -> None:
    for name in ("./a\0b", "~nobody-of-this-name/x", "./" + "x" * 5000, "."):
        with pytest.raises(UserError, match="metric"):
            find_metric(name, True, [Path("/")])


def test_a_hub_name_never_loads_a_file_that_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bertscore").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"also a path here; write \./bertscore"):
        find_metric("bertscore", True, [])
    assert find_metric("rouge", True, []) == "rouge"


@pytest.mark.slow
def test_summarize_runs_a_metric_once_its_folder_is_allowed(
    tmp_path: Path, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "results", str(module), ["five", "x"])
    assert main(["summarize", str(tmp_path / "results")]) == 2
    assert "--allow-metrics" in capsys.readouterr().err
    allowed = ["--allow-metrics", str(tmp_path / "elsewhere"), "--allow-metrics", str(tmp_path)]
    assert main(["summarize", str(tmp_path / "results"), "--no-intervals", *allowed]) == 0
    assert "50.0" in capsys.readouterr().out


def test_a_profile_names_folders_from_its_own_folder_on(tmp_path: Path) -> None:
    text = (PROFILES / "tiny.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text + "\nmetrics: [./metrics, /elsewhere]\n")
    assert load_profile(str(tmp_path / "mine.yaml")).metric_folders == (tmp_path / "metrics", Path("/elsewhere"))


class Lengths:
    """A metric in the form of an `evaluate` module: the mean of 12 / length, over rows or by one reference."""

    def __init__(self, odd: float = 0.0) -> None:
        self.odd = odd

    def compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        if self.odd:
            return {"share": sum(self.odd if p == "odd" else 1.0 for p in predictions) / len(predictions)}
        return {"share": sum(12 / len(p) for p in predictions) / len(predictions)}


@pytest.mark.parametrize(
    ("module", "answers", "message"),
    [
        (Lengths(), ["one", "", "two"], "metric mine: ZeroDivisionError"),
        (Lengths(float("nan")), ["one", "odd", "two"], "metric mine: compute gave nan for share"),
        (Lengths(float("inf")), ["one", "odd", "two"], "metric mine: compute gave inf for share"),
    ],
)
def test_the_row_that_a_metric_fails_on_is_named(
    tmp_path: Path, module: Lengths, answers: list[str], message: str
) -> None:
    with pytest.raises(RowError, match=message) as raised:
        Evaluated("mine", module).statistics(answers, ["x"] * len(answers))
    assert raised.value.row == 1
    scoring = Scoring()
    scoring._loaded["./mine"] = Evaluated("mine", module)
    write_run(tmp_path, "./mine", answers)
    (run,) = read_runs(tmp_path)
    with pytest.raises(UserError, match=f"^base: task 'mine', row 1: {message}"):
        score_run(run, scoring)


def test_no_row_is_blamed_where_a_metric_needs_several() -> None:
    class Spread:
        def compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
            lengths = [len(prediction) for prediction in predictions]
            return {"share": 1 / (max(lengths) - min(lengths))}

    with pytest.raises(UserError, match="ZeroDivisionError") as raised:
        Evaluated("mine", Spread()).statistics(["a", "b", "c"], ["x"] * 3)
    assert not isinstance(raised.value, RowError)
    with pytest.raises(RowError, match="without this row") as raised:
        Evaluated("mine", Spread()).statistics(["a", "b", "long"], ["x"] * 3)
    assert isinstance(raised.value, RowError) and raised.value.row == 2


def test_several_references_reach_the_module_as_lists() -> None:
    calls: list[list[object]] = []

    class Seen:
        def compute(self, predictions: list[str], references: list[object]) -> dict[str, float]:
            calls.append(references)
            return {"share": 1.0}

    Evaluated("mine", Seen()).statistics(["a"], [["x"]])
    Evaluated("mine", Seen()).statistics(["a", "b"], [["x", "cafe\u0301"], "y"])
    assert calls == [["x"], [["x", "café"], ["y"]], [["y"]], [["x", "café"]]]
