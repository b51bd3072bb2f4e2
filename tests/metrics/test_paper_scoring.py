"""The paper's scores, against plain computations of their definitions."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from lora_retriever.metrics.paper import bleu, exact_match, rouge

TARGET = "the old town of Ostia lies by the quiet sea and the hills"
ANSWER = "the old town lies by the sea and the quiet hills"


@pytest.mark.parametrize(
    ("target", "answer", "equal"),
    [
        ("Yes.", " yes", True),
        ("yes\n\nbecause", "yes", True),
        ("yes", "yes\n\nbecause", False),  # only the target is cut
        ("3.5", "35", True),  # every dot goes, as in the original
        ("yes", "no", False),
        ("yes", "", False),
    ],
)
def test_exact_match_follows_the_originals_rules(target: str, answer: str, equal: bool) -> None:
    assert exact_match(target, answer) == {"em": float(equal)}


def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def test_bleu_is_the_geometric_mean_of_clipped_precisions_with_the_brevity_penalty() -> None:
    precisions = [
        sum((ngrams(ANSWER, n) & ngrams(TARGET, n)).values()) / sum(ngrams(ANSWER, n).values()) for n in (1, 2, 3)
    ]
    # No 4-gram is shared and nothing is smoothed, so the answer scores next to nothing; up to three it counts.
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


def test_rouge_is_the_harmonic_mean_of_precision_and_recall() -> None:
    """The package counts distinct n-grams, and in rouge-l distinct words, against the longest common subsequence."""
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
