"""Standard scoring against the libraries' own scores, SQuAD's rules by hand, and known figures of real answers."""

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
from lora_retriever.metrics.base import RowError, RowMean, compute
from lora_retriever.metrics.standard import (
    ACCURACY,
    BLEU,
    CHRF,
    EXACT_MATCH,
    F1,
    accuracy,
    bleu_tokenizer,
    rouge_metric,
    squad_exact_match,
    squad_f1,
)

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
    """The statistics of any choice of rows, with repetitions, give the scores that sacrebleu gives these rows."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(TARGETS), generator.integers(1, 7))
    targets, answers = [TARGETS[row] for row in rows], [ANSWERS[row] for row in rows]
    bleu = BLEU.combine(BLEU.statistics(ANSWERS, TARGETS)[rows].sum(axis=0))
    chrf = CHRF.combine(CHRF.statistics(ANSWERS, TARGETS)[rows].sum(axis=0))
    assert bleu == pytest.approx(sacrebleu.BLEU().corpus_score(answers, [targets]).score, abs=1e-9)
    assert chrf == pytest.approx(sacrebleu.CHRF().corpus_score(answers, [targets]).score, abs=1e-9)


def test_several_draws_of_rows_are_combined_each_for_itself() -> None:
    for metric in (BLEU, CHRF):
        sums = metric.statistics(ANSWERS, TARGETS)
        assert metric.combine(sums).tolist() == [metric.combine(row).tolist() for row in sums]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_no_rows_make_bleu_or_chrf_differ(pairs: Sequence[tuple[str, str]]) -> None:
    targets, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for metric, theirs in ((BLEU, sacrebleu.BLEU()), (CHRF, sacrebleu.CHRF())):
        (score,) = compute(metric, predictions=answers, references=targets).values()  # type: ignore[arg-type]
        assert score == pytest.approx(theirs.corpus_score(answers, [targets]).score, abs=1e-9)


ASCII_TARGETS = TARGETS[:3]
ASCII_ANSWERS = ANSWERS[:3]


def test_rouge_is_rouge_scores_f_and_stems_only_when_asked() -> None:
    for stemming in (False, True):
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemming)
        expected = [scorer.score(target, answer) for target, answer in zip(ASCII_TARGETS, ASCII_ANSWERS, strict=True)]
        scores = compute(rouge_metric(stemming), predictions=ASCII_ANSWERS, references=ASCII_TARGETS)
        for ours, theirs in {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}.items():
            assert scores[ours] == pytest.approx(100 * np.mean([row[theirs].fmeasure for row in expected]))
    plain, stemmed = (
        compute(rouge_metric(stemming), predictions=["running fishes"], references=["run fish"])["rouge-1"]
        for stemming in (False, True)
    )
    assert (plain, stemmed) == (0.0, 100.0)
    for target, answer, score in (("runs", "run", 100.0), ("was", "wa", 0.0)):  # four letters and three
        assert compute(rouge_metric(True), predictions=[answer], references=[target])["rouge-1"] == score


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_rouge_l_is_rouge_scores_own(target: list[str], answer: list[str]) -> None:
    texts = " ".join(target), " ".join(answer)
    expected = RougeScorer(["rougeL"]).score(*texts)["rougeL"].fmeasure
    scores = compute(rouge_metric(False), predictions=[texts[1]], references=[texts[0]])
    assert scores["rouge-l"] == pytest.approx(100 * expected, abs=1e-12)


@pytest.mark.slow
def test_rouge_of_a_long_text_needs_no_table() -> None:
    words = [f"w{number}" for number in range(20000)]  # a table would have 400 million entries
    scores = compute(rouge_metric(False), predictions=[" ".join(words)], references=[" ".join(words[::2])])
    assert scores["rouge-l"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    "text",
    [
        "сегодня хорошая погода сегодня",
        "今天天气很好",
        "ที่นี่อากาศดี",
        "오늘 날씨가 아주 좋다",
        "नमस्ते दुनिया में सब",
        "Müller aß über Öl",
    ],
)
def test_a_right_answer_of_any_script_scores_100_and_a_wrong_one_0(text: str) -> None:
    for metric in (rouge_metric(False), rouge_metric(True), BLEU, CHRF, EXACT_MATCH, F1):
        found = compute(metric, predictions=[text], references=[text])
        assert found == pytest.approx(dict.fromkeys(metric.scores, 100))
        assert set(compute(metric, predictions=["xyz"], references=[text]).values()) == {0}


def test_an_answer_does_not_gain_by_leaving_out_accents() -> None:
    scores = compute(rouge_metric(False), predictions=["Mller ber l"], references=["Müller über Öl"])
    assert set(scores.values()) == {0.0}


def test_stemming_leaves_words_of_other_scripts_alone() -> None:
    def score(answer: str, target: str) -> float:
        return compute(rouge_metric(True), predictions=[answer], references=[target])["rouge-1"]

    assert score("running 今天", "run 今天") == 100
    assert score("größes", "größe") == 0


@pytest.mark.parametrize(
    ("targets", "tokenizer"),
    [
        (["今天天气很好"], "zh"),
        (["今日は天気がいい"], "char"),
        (["오늘 날씨가"], "char"),
        (["วันนี้"], "char"),
        (["plain text", "да"], "13a"),
    ],
)
def test_bleu_of_a_task_is_sacrebleus_with_the_tokenizer_of_the_targets_script(
    targets: list[str], tokenizer: str
) -> None:
    answers = [target + " x" for target in targets]
    score = compute(BLEU, predictions=answers, references=targets)["bleu"]
    expected = sacrebleu.BLEU(tokenize=tokenizer).corpus_score(answers, [targets]).score
    assert score == pytest.approx(expected, abs=1e-9)
    assert bleu_tokenizer(targets) == bleu_tokenizer([targets]) == tokenizer


def test_texts_that_a_reader_sees_as_equal_match() -> None:
    answers, targets = ["un cafe\u0301 noir\r\nau soleil"], ["un café noir\nau soleil"]
    for metric in (rouge_metric(False), BLEU, CHRF, EXACT_MATCH, F1, ACCURACY):
        found = compute(metric, predictions=answers, references=targets)
        assert found == pytest.approx(dict.fromkeys(metric.scores, 100))


def test_several_references_score_as_the_libraries_score_them() -> None:
    answers = ["the old town lies by the quiet sea", "Mario buys a fish", "the hills"]
    targets = [[TARGETS[0], "the old town lies by the sea"], ["Mario buys fish", "He buys one", "a fish"], "the hills"]
    documents = [
        ["The old town of Ostia lies by the quiet sea.", "Mario buys fish", "the hills"],
        ["the old town lies by the sea", "He buys one", None],
        [None, "a fish", None],
    ]
    for metric, theirs in ((BLEU, sacrebleu.BLEU()), (CHRF, sacrebleu.CHRF())):
        (score,) = compute(metric, predictions=answers, references=targets).values()  # type: ignore[arg-type]
        assert score == pytest.approx(theirs.corpus_score(answers, documents).score, abs=1e-9)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    listed = [[target] if isinstance(target, str) else target for target in targets]
    expected = [scorer.score_multi(wanted, answer) for wanted, answer in zip(listed, answers, strict=True)]
    found = compute(rouge_metric(False), predictions=answers, references=targets)
    for ours, theirs in {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}.items():
        assert found[ours] == pytest.approx(100 * np.mean([row[theirs].fmeasure for row in expected]))
    assert compute(F1, predictions=["red car"], references=[["bus", "car"]])["f1"] == pytest.approx(100 * 2 / 3)


def test_a_metric_that_fails_or_gives_no_number_names_the_row() -> None:
    def score(target: str, answer: str) -> dict[str, float]:
        return {"ratio": float(answer) if answer in ("nan", "inf") else 1 / len(answer)}

    for odd, message in (("", "ratio: ZeroDivisionError"), ("nan", "ratio gives nan"), ("inf", "ratio gives inf")):
        with pytest.raises(RowError, match=message) as raised:
            RowMean(("ratio",), score).statistics(["a", "b", odd], ["x"] * 3)
        assert raised.value.row == 2


@pytest.mark.parametrize(
    ("target", "answer", "exact", "f1"),
    [
        ("The Beatles!", "beatles", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("red car", "a red, fast car", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("red", "blue", 0, 0),
        ("", "", 1, 1),
        ("", "something", 0, 0),
        ("«Да»!", "да", 1, 1),
        ("答案。", "答案", 1, 1),
        ("今天 天气", "今天天气", 1, 1),
        ("很好", "好", 0, 2 / 3),
        ("the", "", 1, 1),  # an article alone counts as no word
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
    (tmp_path / "kinds.yaml").write_text("qa: [2024-99-99, 7, cafe\u0301]")
    assert read_kinds(tmp_path / "kinds.yaml") == {"2024-99-99": "qa", "7": "qa", "caf\u00e9": "qa"}
    (tmp_path / "kinds.yaml").write_text("riddle: [x]")
    with pytest.raises(UserError, match="`qa` and `choice`"):
        read_kinds(tmp_path / "kinds.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("qa: 5", "a list of tasks under `qa`, found 5"),
        ("qa: [x]\nchoice: [x]", "'x' is under `qa` and under `choice`"),
        ("qa: [x]\nqa: [y]", "line 2: field 'qa' is there more than once"),
        ("[" * 100_000, "line 1: more than 20 levels of lists and mappings"),
        ("- x", "expected fields and values, found list"),
        ("[a]: [x]", "line 1: a field's name must be a text"),
        ("qa: !!python/name:os.system", "line 1: tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("qa: [", "not readable as YAML: line 1"),
    ],
)
def test_an_unusable_file_of_kinds_gives_one_message(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "kinds.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_kinds(tmp_path / "kinds.yaml")


def test_every_exact_match_task_of_the_benchmark_has_a_kind(official: Path) -> None:
    rows = json.loads((official / "combined_test.json").read_text())
    kinds = Scoring().kinds
    assert not {row["task"] for row in rows if row["metric"] == "em"} - kinds.keys()
    assert not {row["task"] for row in rows if row["metric"] != "em"} & kinds.keys()


@pytest.mark.long
def test_the_official_answers_score_as_measured(official_answers: Path) -> None:
    """Other code measured the expected figures: each score is averaged over the tasks that have this score."""
    scoring = Scoring("standard")
    summary = to_json(summarize(read_runs(official_answers), scoring), scoring)
    tasks = summary["runs"]["selection"]["tasks"].values()
    for score, expected in {"bleu": 20.6, "rouge-1": 64.0, "em": 61.0}.items():
        assert np.mean([task[score] for task in tasks if score in task]) == pytest.approx(expected, abs=0.1)
    assert summary["scoring_details"]["bleu"].startswith("sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert "no stemming" in summary["scoring_details"]["rouge"]


@pytest.mark.long
def test_both_scorings_stand_side_by_side(official_answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", str(official_answers), "--scoring", "both", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(",base paper,base paper low,base paper high,base standard")
    chrf = next(line for line in lines if line.startswith("translation chrf"))
    assert chrf.split(",")[1:4] == ["", "", ""]  # paper scoring has no chrF
    assert main(["summarize", str(official_answers), "--scoring", "both", "--format", "json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert set(both["scorings"]) == {"paper", "standard"}


def test_a_row_may_name_each_of_the_standard_metrics() -> None:
    assert set(METRICS) >= {"bleu", "choice", "choice_norm", "em", "kas", "rouge", "starts_with", "triples"}


def test_what_a_reader_of_the_scores_must_know_is_noted() -> None:
    tasks = {
        "plain": ("bleu", ["one two three four", "five six seven eight"]),
        "short": (
            "bleu",
            ["guten Tag", "one two three four", ["three words here", "a b"], ["x", "four words are here"]],
        ),
        "chinese": ("bleu", ["今天天气很好", "好"]),
        "thai": ("rouge", ["วันนี้อากาศดี"]),
        "exact": ("em", ["好", ["a", "b", "c"]]),
    }
    short, spaces, several = Scoring("paper").notes(tasks)
    assert "short (2 of 4), chinese (2 of 2)" in short and "0.0" in short
    assert "chinese (Han), thai (Thai, Lao, Khmer or Myanmar)" in spaces
    assert "short (up to 2), exact (up to 3)" in several
    tokenizer, short, several = Scoring("standard").notes(tasks)
    assert "chinese tok:zh" in tokenizer and "thai" not in tokenizer
    assert "short (2 of 4), chinese (1 of 2)" in short
    assert "exact (up to 3)" in several
    for scoring in (Scoring("paper"), Scoring("standard")):
        (script,) = scoring.notes({"plan": ("kas", ["STEP 1: \u8d70\u5230\u684c\u5b50 | END"])})
        assert script.endswith("a step in a script without spaces is one word: plan (Han).")
        assert scoring.notes({"plan": ("kas", ["STEP 1: Go left | END"])}) == []
        assert scoring.notes({"plain": tasks["plain"], "exact": ("em", ["good"])}) == []


@pytest.mark.slow
def test_the_notes_stand_under_the_table_and_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"inputs": "q", "task": "t", "domain": "d", "metric": "bleu", "targets": "guten Tag"}
    (tmp_path / "base.jsonl").write_text(json.dumps({"id": 0, **row, "predicted_answer": "guten Tag"}))
    for scoring in ("paper", "standard"):
        assert main(["summarize", str(tmp_path), "--scoring", scoring, "--no-intervals"]) == 0
        assert "t (1 of 1)" in capsys.readouterr().out
        assert main(["summarize", str(tmp_path), "--scoring", scoring, "--format", "json"]) == 0
        (note,) = json.loads(capsys.readouterr().out)["scoring_notes"]
        assert "t (1 of 1)" in note
