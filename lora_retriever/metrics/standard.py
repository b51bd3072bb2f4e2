"""The field's standard scoring, by its well-kept libraries: sacrebleu, rouge-score, and SQuAD's normalisation.

Only the sums behind BLEU and chrF are turned into scores here, for thousands of draws at once; tests hold both against
sacrebleu's own.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lora_retriever.metrics.base import Array, Metric, RowMean

ROUGE_NAMES = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}


class Bleu:
    """sacrebleu's corpus BLEU over a task's rows (Post, 2018), default settings."""

    scores = ("bleu",)

    def __init__(self) -> None:
        self._bleu = sacrebleu.BLEU()

    @property
    def signature(self) -> str:
        """What sacrebleu wants quoted beside the score."""
        return _signature(self._bleu)

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        """Length, reference's length, then per order the n-grams shared and those in the answer: [rows, 10]."""
        return np.array(self._bleu._extract_corpus_statistics(predictions, [references]), dtype=float)

    def combine(self, sums: Array) -> Array:
        """Brevity penalty × geometric mean of the four precisions; an order without a match counts 1/2, 1/4, ...

        That is sacrebleu's `exp` smoothing. An answer set without a single word in common scores 0.
        """
        length, reference = sums[..., 0], sums[..., 1]
        shared, total = sums[..., 2:6], sums[..., 6:10]  # [..., 4]
        unmatched = (shared == 0) & (total > 0)
        smoothed = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=-1), shared)
        with np.errstate(divide="ignore", invalid="ignore"):
            precisions = np.log(smoothed / total)
            penalty = np.where(length < reference, 1 - reference / length, 0)
            score = 100 * np.exp(penalty + precisions.mean(axis=-1))
        nothing = (total == 0).any(axis=-1) | (shared == 0).all(axis=-1)
        return np.where(nothing, 0, score)[..., None]


class Chrf:
    """sacrebleu's corpus chrF over a task's rows (Popović, 2015): character n-grams up to 6, beta 2."""

    scores = ("chrf",)

    def __init__(self) -> None:
        self._chrf = sacrebleu.CHRF()

    @property
    def signature(self) -> str:
        """What sacrebleu wants quoted beside the score."""
        return _signature(self._chrf)

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        """Per order the n-grams of the answer, of the reference, and those shared: [rows, 18]."""
        return np.array(self._chrf._extract_corpus_statistics(predictions, [references]), dtype=float)

    def combine(self, sums: Array) -> Array:
        """F of mean precision and mean recall over the orders that both sides have."""
        counts = sums.reshape(*sums.shape[:-1], -1, 3)
        answer, reference, shared = counts[..., 0], counts[..., 1], counts[..., 2]  # [..., orders]
        effective = (answer > 0) & (reference > 0)
        orders = np.maximum(effective.sum(axis=-1), 1)
        precision = (shared / np.where(effective, answer, np.inf)).sum(axis=-1) / orders
        recall = (shared / np.where(effective, reference, np.inf)).sum(axis=-1) / orders
        weight = self._chrf.beta**2
        denominator = weight * precision + recall
        score = 100 * (1 + weight) * precision * recall / np.where(denominator > 0, denominator, np.inf)
        return np.asarray(score)[..., None]


def squad_normalized(text: str) -> str:
    """Lower case, without punctuation and the articles a, an, the, white space joined (Rajpurkar et al., 2016)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_exact_match(target: str, answer: str) -> dict[str, float]:
    """`em`: equal after SQuAD's normalisation, or not."""
    return {"em": float(squad_normalized(target) == squad_normalized(answer))}


def squad_f1(target: str, answer: str) -> dict[str, float]:
    """`f1`: harmonic mean of the precision and recall of normalised words; two empty texts agree."""
    wanted, given = squad_normalized(target).split(), squad_normalized(answer).split()
    if not wanted or not given:
        return {"f1": float(wanted == given)}
    return {"f1": 2 * sum((Counter(wanted) & Counter(given)).values()) / (len(wanted) + len(given))}


def accuracy(target: str, answer: str) -> dict[str, float]:
    """`accuracy`: the very text of the right option, white space around it aside."""
    return {"accuracy": float(target.strip() == answer.strip())}


def rouge_metric(stemming: bool) -> RowMean:
    """`rouge-1`, `rouge-2`, `rouge-l`: F scores of the package rouge-score, averaged over rows."""
    scorer = RougeScorer(list(ROUGE_NAMES.values()), use_stemmer=stemming)

    def score(target: str, answer: str) -> dict[str, float]:
        scores = scorer.score(target, answer)
        return {ours: scores[theirs].fmeasure for ours, theirs in ROUGE_NAMES.items()}

    return RowMean(tuple(ROUGE_NAMES), score)


EXACT_MATCH: Metric = RowMean(("em",), squad_exact_match)
F1: Metric = RowMean(("f1",), squad_f1)
ACCURACY: Metric = RowMean(("accuracy",), accuracy)
BLEU, CHRF = Bleu(), Chrf()


def details(stemming: bool) -> dict[str, str]:
    """How each score was made, for whoever quotes it."""
    return {
        "bleu": f"sacrebleu {BLEU.signature}",
        "chrf": f"sacrebleu {CHRF.signature}",
        "rouge": f"rouge-score {version('rouge-score')}, {'with' if stemming else 'no'} stemming",
        "em": "SQuAD-normalised exact match; f1 beside it on question answering, plain accuracy on choice tasks",
    }


def _signature(metric: sacrebleu.BLEU | sacrebleu.CHRF) -> str:
    # The number of references shows only once a metric has seen some: there is always one here.
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())
