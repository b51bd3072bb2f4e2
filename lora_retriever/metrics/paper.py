"""The paper's scoring, bit for bit, faults of its own included. Each function scores one row between 0 and 1."""

from __future__ import annotations

import warnings

from nltk.translate.bleu_score import sentence_bleu
from rouge import Rouge

from lora_retriever.metrics.base import Metric, RowMean

_rouge = Rouge()


def exact_match(target: str, answer: str) -> dict[str, float]:
    """`em`: equal or not. The target is cut at its first blank line; both are stripped, lower-cased, rid of dots."""
    target = target.split("\n\n")[0]
    return {"em": float(_plain(target) == _plain(answer))}


def bleu(target: str, answer: str) -> dict[str, float]:
    """`bleu`: nltk's sentence BLEU on words split at white space, without smoothing. An empty answer scores 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns of every answer without a common 4-gram
        return {"bleu": float(sentence_bleu([target.split()], answer.split()))}


def rouge(target: str, answer: str) -> dict[str, float]:
    """`rouge-1`, `rouge-2`, `rouge-l`: F scores of the package `rouge`. Nothing but dots scores 0, where it raises."""
    if not answer.replace(".", "").strip() or not target.replace(".", "").strip():
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    (scores,) = _rouge.get_scores(answer, target)
    return {name: score["f"] for name, score in scores.items()}


def _plain(text: str) -> str:
    return text.strip().lower().replace(".", "")


PAPER: dict[str, Metric] = {
    "em": RowMean(("em",), exact_match),
    "bleu": RowMean(("bleu",), bleu),
    "rouge": RowMean(("rouge-1", "rouge-2", "rouge-l"), rouge),
}
