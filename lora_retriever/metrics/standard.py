"""The field's standard scoring, by well-maintained libraries: sacrebleu, rouge-score, and SQuAD's normalisation.

This file itself computes only the scores of BLEU and chrF from their sums, for thousands of draws at once; tests
compare both with sacrebleu's own scores. ASCII texts have the same scores as under the libraries' defaults. Where these
defaults drop or join the words of other scripts, a tokenizer that knows the script is used, and `details` and `notes`
say which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import numpy as np
import sacrebleu

from lora_retriever.metrics.base import Array, Metric, Reference, RowMean, compared
from lora_retriever.metrics.subsequence import lcs_length
from lora_retriever.metrics.texts import Script, main_script, split_characters, without_punctuation, words

BLEU_TOKENIZERS: dict[Script | None, str] = {
    None: "13a",
    "Han": "zh",
    "kana": "char",
    "Hangul": "char",
    "Thai, Lao, Khmer or Myanmar": "char",
}
"""sacrebleu's tokenizer per script. Word tokenizers for Japanese and Korean need MeCab, so characters are used."""


class Bleu:
    """sacrebleu's corpus BLEU over a task's rows (Post, 2018), with default settings except for the tokenizer.

    The tokenizer follows from the references alone, so that all runs of a task get the same tokenizer
    (`bleu_tokenizer`).
    """

    scores = ("bleu",)

    def statistics(self, predictions: Sequence[str], references: Sequence[Reference]) -> Array:
        """Lengths of answer and closest reference; per order the shared n-grams, then the answer's: [rows, 10].

        Raises:
            RowError: a row has an empty list of references.
        """
        answers, targets = compared(predictions, references)
        metric = _bleu(bleu_tokenizer(references))
        return np.array(metric._extract_corpus_statistics(answers, _documents(targets)), dtype=np.float64)

    def combine(self, sums: Array) -> Array:
        """Brevity penalty × geometric mean of the four precisions; an order without a match counts 1/2, 1/4, ...

        This is sacrebleu's `exp` smoothing. A set of answers without any word in common with the references scores 0.
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
    """sacrebleu's corpus chrF over a task's rows (Popović, 2015): character n-grams up to 6, beta 2.

    Of several references, each row counts the reference with the highest F.
    """

    scores = ("chrf",)

    def __init__(self) -> None:
        self._chrf = sacrebleu.CHRF()

    def statistics(self, predictions: Sequence[str], references: Sequence[Reference]) -> Array:
        """Per order the numbers of n-grams of the answer, of the reference, and of both: [rows, 18].

        Raises:
            RowError: a row has an empty list of references.
        """
        answers, targets = compared(predictions, references)
        return np.array(self._chrf._extract_corpus_statistics(answers, _documents(targets)), dtype=np.float64)

    def combine(self, sums: Array) -> Array:
        """The F score of mean precision and mean recall over the orders that both sides have."""
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
    """Lower case, without punctuation and the articles a, an, the, white space joined (Rajpurkar et al., 2016).

    Punctuation of every script is dropped, and the characters of scripts without spaces are parted, as in MLQA's
    evaluation (Lewis et al., 2020). Only English articles are dropped. An ASCII text becomes the same as in SQuAD.
    """
    return " ".join(split_characters(re.sub(r"\b(a|an|the)\b", " ", without_punctuation(text.lower()))))


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
    """`accuracy`: exactly the text of the right option, except for white space around it."""
    return {"accuracy": float(target.strip() == answer.strip())}


class _Words:
    """`texts.words` as a tokenizer of rouge-score. Porter's stemmer takes ASCII words of more than three letters."""

    def __init__(self, stemming: bool) -> None:
        self._stemming = stemming

    def tokenize(self, text: str) -> list[str]:
        if not self._stemming:
            return words(text)
        return [_stemmer().stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]


def rouge_metric(stemming: bool) -> RowMean:
    """`rouge-1`, `rouge-2`, `rouge-l`: F scores of the package rouge-score, averaged over rows.

    The words come from `texts.words`. rouge-l is computed here, since rouge-score's table of two texts of 8,000 words
    has 64 million entries; the value is the same.
    """
    tokenizer = _Words(stemming)

    def score(target: str, answer: str) -> dict[str, float]:
        from rouge_score.scoring import fmeasure

        scores = _rouge_scorer(tokenizer).score(target, answer)
        wanted, given = tokenizer.tokenize(target), tokenizer.tokenize(answer)
        shared = lcs_length(wanted, given)
        return {
            "rouge-1": scores["rouge1"].fmeasure,
            "rouge-2": scores["rouge2"].fmeasure,
            "rouge-l": fmeasure(shared / len(given), shared / len(wanted)) if shared else 0.0,
        }

    return RowMean(("rouge-1", "rouge-2", "rouge-l"), score)


EXACT_MATCH: Metric = RowMean(("em",), squad_exact_match)
F1: Metric = RowMean(("f1",), squad_f1)
ACCURACY: Metric = RowMean(("accuracy",), accuracy)
BLEU, CHRF = Bleu(), Chrf()


def bleu_tokenizer(references: Sequence[Reference]) -> str:
    """The name of sacrebleu's tokenizer for a task with these references: by the script of most of their letters."""
    texts = (text for reference in references for text in ([reference] if isinstance(reference, str) else reference))
    return BLEU_TOKENIZERS[main_script(texts)]


def bleu_length(reference: str, tokenizer: str) -> int:
    """The number of words of a reference under a tokenizer of sacrebleu."""
    return len(_bleu(tokenizer)._preprocess_segment(reference).split())


def details(stemming: bool) -> dict[str, str]:
    """How each score was computed, for readers who quote the score."""
    return {
        "bleu": f"sacrebleu {_signature(sacrebleu.BLEU())}; tasks whose targets are mostly Han: tok:zh; "
        "mostly kana, Hangul, Thai, Lao, Khmer or Myanmar: tok:char",
        "chrf": f"sacrebleu {_signature(sacrebleu.CHRF())}",
        "rouge": f"rouge-score {version('rouge-score')}, {'with' if stemming else 'no'} stemming; words are runs of "
        "letters and digits of any script, Han, kana, Thai, Lao, Khmer and Myanmar a word per character",
        "em": "SQuAD-normalised exact match; f1 beside it on question answering, plain accuracy on choice tasks; "
        "punctuation of every script and English articles are dropped",
        "kas": "KAS as published with G-PlanET; chunk-f1 and aligned-f1 on its chunks; words by nltk's Penn Treebank "
        "rules; cider, if pycocoevalcap is installed: CIDEr-D × 100, the steps of a plan as the corpus",
        "triples": "micro precision, recall and F1 of sets of triples, and of relations, as published with ReRe",
    }


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # a second to import

    return PorterStemmer()


@cache
def _rouge_scorer(tokenizer: _Words) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # a second to import

    return RougeScorer(["rouge1", "rouge2"], tokenizer=tokenizer)


@cache
def _bleu(tokenizer: str) -> sacrebleu.BLEU:
    return sacrebleu.BLEU(tokenize=tokenizer)


def _documents(references: Sequence[Sequence[str]]) -> list[list[Any]]:
    """The references in the form of sacrebleu: the first reference of every row, the second of every row, ...; None
    where a row has fewer references."""
    return [list(document) for document in zip_longest(*references)]


def _signature(metric: sacrebleu.BLEU | sacrebleu.CHRF) -> str:
    # sacrebleu knows the number of references only after scoring some rows. The usual number is 1.
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())
