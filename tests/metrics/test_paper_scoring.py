"""The paper's scores against plain computations by the definitions."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rouge import Rouge

from lora_retriever.metrics.base import RowError, compute
from lora_retriever.metrics.paper import BLEU, EXACT_MATCH, ROUGE, bleu, exact_match, rouge, starts_with
from lora_retriever.metrics.subsequence import lcs_length, lcs_words

TARGET = "the old town of Ostia lies by the quiet sea and the hills"
ANSWER = "the old town lies by the sea and the quiet hills"


@pytest.mark.parametrize(
    ("target", "answer", "equal"),
    [
        ("Yes.", " yes", True),
        ("yes\n\nbecause", "yes", True),
        ("yes", "yes\n\nbecause", False),  # only the target is cut
        ("3.5", "35", True),  # every dot goes, as in the original
        ("straße", "STRASSE", False),  # lower case, and not upper case
        ("yes", "no", False),
        ("yes", "", False),
    ],
)
def test_exact_match_follows_the_originals_rules(target: str, answer: str, equal: bool) -> None:
    assert exact_match(target, answer) == {"em": float(equal)}


@pytest.mark.parametrize(
    ("target", "answer", "right"),
    [
        ("(A)", " (A) because it is.", True),
        ("Yes.", "yes, he does", True),
        ("no", "nobody", False),  # the target ends within a word
        ("no", "no body", True),
        ("7", "75", False),
        ("(A)", "(A)bc", True),  # a bracket ends the target
        ("no", "I say no", False),
        ("no", "n", False),
        ("", "no", False),
        (" . ", "no", False),
    ],
)
def test_an_answer_starts_with_its_target_where_the_target_ends_as_a_word(
    target: str, answer: str, right: bool
) -> None:
    assert starts_with(target, answer) == {"starts_with": float(right)}


@pytest.mark.parametrize(("target", "answer"), [("a b", " . ."), (" . .", "a b"), (".", ".")])
def test_rouge_of_dots_alone_is_0(target: str, answer: str) -> None:
    assert rouge(target, answer) == {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}


def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def test_bleu_is_the_geometric_mean_of_clipped_precisions_with_the_brevity_penalty() -> None:
    precisions = [
        sum((ngrams(ANSWER, n) & ngrams(TARGET, n)).values()) / sum(ngrams(ANSWER, n).values()) for n in (1, 2, 3)
    ]
    # No 4-gram is shared, and there is no smoothing, so BLEU is nearly 0; the n-grams up to three words are shared.
    assert bleu(TARGET, ANSWER)["bleu"] < 1e-60
    longer = "the old town of Ostia lies by the sea"
    precisions = [
        sum((ngrams(longer, n) & ngrams(TARGET, n)).values()) / sum(ngrams(longer, n).values()) for n in (1, 2, 3, 4)
    ]
    penalty = math.exp(1 - len(TARGET.split()) / len(longer.split()))
    expected = penalty * math.exp(sum(math.log(p) for p in precisions) / 4)
    assert bleu(TARGET, longer)["bleu"] == pytest.approx(expected)


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if left == right else max(lengths[i][j + 1], lengths[i + 1][j])
    return lengths[-1][-1]


WORDS = st.lists(st.sampled_from("abcd"), max_size=30)
TEXTS = st.lists(st.sampled_from(["a ", "b ", "c ", "d ", "a", ". ", ".", "  ", "\n"]), max_size=40).map("".join)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(WORDS, WORDS)
def test_the_length_of_a_subsequence_is_that_of_the_table(x: list[str], y: list[str]) -> None:
    assert lcs_length(x, y) == longest_common_subsequence(x, y)
    assert len(lcs_words(x, y)) <= lcs_length(x, y)


def walked(x: list[str], y: list[str]) -> set[str]:
    """The words on the package's path back through its table."""
    i, j, found = len(x), len(y), set()
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.add(x[i - 1])
            i, j = i - 1, j - 1
        elif longest_common_subsequence(x[: i - 1], y[:j]) > longest_common_subsequence(x[:i], y[: j - 1]):
            i -= 1
        else:
            j -= 1
    return found


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS)
def test_of_several_longest_subsequences_the_packages_is_found(x: list[str], y: list[str]) -> None:
    assert lcs_words(x, y) == walked(x, y)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
@example("a b. c . a b", "b a. a b")
@example(" . a", "a. .")
def test_rouge_is_the_packages_to_the_digit(target: str, answer: str) -> None:
    assume(target.replace(".", "").strip() and answer.replace(".", "").strip())
    (expected,) = Rouge().get_scores(answer, target)
    assert rouge(target, answer) == {name: score["f"] for name, score in expected.items()}


@pytest.mark.slow
def test_rouge_of_the_official_rows_is_the_packages_to_the_digit(official: Path) -> None:
    rows = json.loads((official / "predictions" / "fusion.json").read_text())
    pairs = [(row["targets"], row["predicted_answer"]) for row in rows if row["metric"] == "rouge"]
    answered = [pair for pair in pairs if pair[1].replace(".", "").strip()]
    assert len(answered) > 100
    for target, answer in answered:
        (expected,) = Rouge().get_scores(answer, target)
        assert rouge(target, answer) == {name: score["f"] for name, score in expected.items()}


@pytest.mark.slow
def test_a_target_of_any_length_is_scored() -> None:
    """The package calls itself once per word, and Python stops at 1,000 calls."""
    numbers = [f"w{number}" for number in range(4000)]
    assert rouge(" ".join(numbers), " ".join(numbers))["rouge-l"] == pytest.approx(1)
    assert rouge(" ".join(numbers), " ".join(numbers[::-1]))["rouge-l"] == pytest.approx(1 / 4000, rel=1e-3)
    assert rouge(". ".join(numbers), ". ".join(numbers[::-1]))["rouge-l"] == pytest.approx(1)


def test_rouge_is_the_harmonic_mean_of_precision_and_recall() -> None:
    """The package counts distinct n-grams.

    For rouge-l it compares distinct words with the longest common subsequence.
    """
    scores = rouge(TARGET, ANSWER)
    for n in (1, 2):
        target, answer = set(ngrams(TARGET, n)), set(ngrams(ANSWER, n))
        shared = len(target & answer)
        precision, recall = shared / len(answer), shared / len(target)
        assert scores[f"rouge-{n}"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    assert set(scores) == {"rouge-1", "rouge-2", "rouge-l"}
    assert 0 < scores["rouge-2"] < scores["rouge-l"] <= scores["rouge-1"]


@pytest.mark.parametrize("answer", ["", "  ", "...", ". ."])
def test_empty_and_dots_only_answers_score_zero(answer: str) -> None:
    assert set(rouge(TARGET, answer).values()) == {0.0}
    assert bleu(TARGET, answer) == {"bleu": 0.0}
    assert exact_match(TARGET, answer) == {"em": 0.0}


def test_texts_that_a_reader_sees_as_equal_match() -> None:
    for metric in (EXACT_MATCH, BLEU, ROUGE):
        answers, targets = ["un cafe\u0301 au soleil\r\nici"], ["un café au soleil\nici"]
        found = compute(metric, predictions=answers, references=targets)
        assert found == pytest.approx(dict.fromkeys(metric.scores, 100))
    assert compute(EXACT_MATCH, predictions=["yes"], references=["yes\r\n\r\nbecause"]) == {"em": 100}


def test_of_several_targets_the_best_counts_for_each_row() -> None:
    answers, targets = ["yes", "two words", "no"], [["no", "Yes."], ["two words"], "yes"]
    assert compute(EXACT_MATCH, predictions=answers, references=targets)["em"] == pytest.approx(200 / 3)
    found = compute(ROUGE, predictions=[ANSWER], references=[["nothing of it", TARGET]])
    assert found == pytest.approx({name: 100 * score for name, score in rouge(TARGET, ANSWER).items()})


def test_bleu_takes_several_targets_at_once() -> None:
    """The target with most copies of an n-gram clips it; the target nearest in length gives the brevity penalty."""
    targets = ["a b c d x x x x", "y c d e f y"]
    answer = "a b c d e f"
    counts = [ngrams(target, n) for n in (1, 2, 3, 4) for target in targets]
    precisions = [
        sum((ngrams(answer, n) & (counts[2 * n - 2] | counts[2 * n - 1])).values()) / (6 - n + 1) for n in (1, 2, 3, 4)
    ]
    expected = math.exp(sum(math.log(p) for p in precisions) / 4)
    assert bleu(targets, answer)["bleu"] == pytest.approx(expected)
    assert compute(BLEU, predictions=[answer], references=[targets])["bleu"] == pytest.approx(100 * expected)


def test_a_row_without_any_target_is_named() -> None:
    with pytest.raises(RowError, match="list of targets is empty") as raised:
        compute(EXACT_MATCH, predictions=["a", "b"], references=["a", []])
    assert raised.value.row == 1
