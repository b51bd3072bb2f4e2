"""Standard scoring: against the libraries' own scores, SQuAD's rules by hand, and the figures known of real answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lora_retriever.analysis.runs import read_runs
from lora_retriever.analysis.summary import summarize, to_json
from lora_retriever.cli import main
from lora_retriever.data.rows import METRICS
from lora_retriever.errors import UserError
from lora_retriever.metrics import Metric, Scoring, read_kinds
from lora_retriever.metrics.base import compute
from lora_retriever.metrics.standard import BLEU, CHRF, accuracy, rouge_metric, squad_exact_match, squad_f1

TARGETS = [
    "The old town of Ostia lies by the quiet sea.",
    "Mario runs to the harbor, and buys fish!",
    "",
    "A château in Ångström county",
]
ANSWERS = [
    "the old town lies by the quiet sea and the hills",
    "Mario ran to the harbor and buys a fish",
    "nothing",
    "",
]
WORDS = st.lists(st.sampled_from(["the", "old", "town", "sea", "lies", "by", "quiet", "."]), max_size=9).map(" ".join)


@pytest.mark.parametrize("seed", range(20))
def test_bleu_and_chrf_of_any_rows_are_sacrebleus(seed: int) -> None:
    """The statistics are taken once; any choice of rows, with repetitions, scores as sacrebleu scores those rows."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(TARGETS), generator.integers(1, 7))
    targets, answers = [TARGETS[row] for row in rows], [ANSWERS[row] for row in rows]
    bleu = BLEU.combine(BLEU.statistics(ANSWERS, TARGETS)[rows].sum(axis=0))
    chrf = CHRF.combine(CHRF.statistics(ANSWERS, TARGETS)[rows].sum(axis=0))
    assert bleu == pytest.approx(sacrebleu.BLEU().corpus_score(answers, [targets]).score, abs=1e-9)
    assert chrf == pytest.approx(sacrebleu.CHRF().corpus_score(answers, [targets]).score, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_no_rows_make_bleu_or_chrf_differ(pairs: Sequence[tuple[str, str]]) -> None:
    targets, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for metric, theirs in ((BLEU, sacrebleu.BLEU()), (CHRF, sacrebleu.CHRF())):
        (score,) = compute(metric, predictions=answers, references=targets).values()  # type: ignore[arg-type]
        assert score == pytest.approx(theirs.corpus_score(answers, [targets]).score, abs=1e-9)


def test_rouge_is_rouge_scores_f_and_stems_only_when_asked() -> None:
    for stemming in (False, True):
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemming)
        expected = [scorer.score(target, answer) for target, answer in zip(TARGETS, ANSWERS, strict=True)]
        scores = compute(rouge_metric(stemming), predictions=ANSWERS, references=TARGETS)
        for ours, theirs in {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}.items():
            assert scores[ours] == pytest.approx(100 * np.mean([row[theirs].fmeasure for row in expected]))
    plain, stemmed = (
        compute(rouge_metric(stemming), predictions=["running fishes"], references=["run fish"])["rouge-1"]
        for stemming in (False, True)
    )
    assert (plain, stemmed) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("target", "answer", "exact", "f1"),
    [
        ("The Beatles!", "beatles", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("red car", "a red, fast car", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("red", "blue", 0, 0),
        ("", "", 1, 1),
        ("", "something", 0, 0),
        ("the", "", 1, 1),  # an article alone is nothing
        ("no no no", "no", 0, 2 * 1 * (1 / 3) / (1 + 1 / 3)),
    ],
)
def test_squads_rules(target: str, answer: str, exact: float, f1: float) -> None:
    assert squad_exact_match(target, answer) == {"em": exact}
    assert squad_f1(target, answer)["f1"] == pytest.approx(f1)


def test_plain_accuracy_wants_the_very_text() -> None:
    assert accuracy("yes", " yes\n") == {"accuracy": 1.0}
    assert accuracy("yes", "Yes") == {"accuracy": 0.0}


def names(metrics: Sequence[Metric]) -> list[str]:
    return [name for metric in metrics for name in metric.scores]


def test_which_scores_a_task_gets_is_data(tmp_path: Path) -> None:
    scoring = Scoring("standard")
    assert names(scoring.metrics_of("squad_v1", "em")) == ["em", "f1"]
    assert names(scoring.metrics_of("rte", "em")) == ["em", "accuracy"]
    assert names(scoring.metrics_of("a task of mine", "em")) == ["em"]
    assert names(scoring.metrics_of("wmt14_enfr", "bleu")) == ["bleu", "chrf"]
    (tmp_path / "kinds.yaml").write_text("qa: [a task of mine]")
    mine = Scoring("standard", read_kinds(tmp_path / "kinds.yaml"))
    assert names(mine.metrics_of("a task of mine", "em")) == ["em", "f1"]
    (tmp_path / "kinds.yaml").write_text("riddle: [x]")
    with pytest.raises(UserError, match="`qa` and `choice`"):
        read_kinds(tmp_path / "kinds.yaml")


def test_every_exact_match_task_of_the_benchmark_has_a_kind(official: Path) -> None:
    rows = json.loads((official / "combined_test.json").read_text())
    kinds = Scoring().kinds
    assert not {row["task"] for row in rows if row["metric"] == "em"} - kinds.keys()
    assert not {row["task"] for row in rows if row["metric"] != "em"} & kinds.keys()


def test_the_official_answers_score_as_measured(official_answers: Path) -> None:
    """Figures taken for this project with other code: per-task scores, averaged over the tasks that have them."""
    scoring = Scoring("standard")
    summary = to_json(summarize(read_runs(official_answers), scoring), scoring)
    tasks = summary["runs"]["selection"]["tasks"].values()
    for score, expected in {"bleu": 20.6, "rouge-1": 64.0, "em": 61.0}.items():
        assert np.mean([task[score] for task in tasks if score in task]) == pytest.approx(expected, abs=0.1)
    assert summary["scoring_details"]["bleu"].startswith("sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert "no stemming" in summary["scoring_details"]["rouge"]


def test_both_scorings_stand_side_by_side(official_answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(official_answers), "--scoring", "both", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(",base paper,base paper low,base paper high,base standard")
    chrf = next(line for line in lines if line.startswith("translation chrf"))
    assert chrf.split(",")[1:4] == ["", "", ""]  # the paper's scoring has none
    assert main(["summarize", str(official_answers), "--scoring", "both", "--format", "json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert set(both["scorings"]) == {"paper", "standard"}
    assert set(METRICS) == {"em", "bleu", "rouge"}
