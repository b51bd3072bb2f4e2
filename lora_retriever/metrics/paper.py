"""The paper's scoring, to the digit, including the original's faults. Each function scores one row between 0 and 1.

The original has no targets with decomposed letters or other line ends than `\\n`; here, texts are brought to one form
first (`metrics.base.compared`). Rouge-l's longest common subsequences come from `metrics.subsequence`, because the
package `rouge` recurses once per word: the values are the same, and a target of 8,000 words takes a second instead of
minutes.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

from rouge import Rouge
from rouge.rouge_score import f_r_p_rouge_n

from lora_retriever.metrics.base import Metric, Reference, RowMean
from lora_retriever.metrics.subsequence import lcs_words

_ngrams = Rouge(metrics=["rouge-1", "rouge-2"], stats=["f"])


def exact_match(target: str, answer: str) -> dict[str, float]:
    """`em`: equal or not. The target is cut at its first blank line; both are stripped, in lower case, without dots."""
    target = target.split("\n\n")[0]
    return {"em": float(_plain(target) == _plain(answer))}


def starts_with(target: str, answer: str) -> dict[str, float]:
    """`starts_with`: the answer begins with the target, and the target ends where a word ends.

    Both are stripped, in lower case, without dots, as for `exact_match`. An empty target is never right.
    """
    wanted, given = _plain(target), _plain(answer)
    further = given[len(wanted) :]
    ends = not (wanted[-1:].isalnum() and further[:1].isalnum())
    return {"starts_with": float(bool(wanted) and given.startswith(wanted) and ends)}


def bleu(targets: Reference, answer: str) -> dict[str, float]:
    """`bleu`: nltk's sentence BLEU on words split at white space, without smoothing. An empty answer scores 0.

    An answer of fewer than four words has no 4-gram and scores less than 1e-70, even if the answer equals the target.
    """
    from nltk.translate.bleu_score import sentence_bleu  # a second to import

    listed = [targets] if isinstance(targets, str) else targets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns of every answer without a common 4-gram
        return {"bleu": float(sentence_bleu([target.split() for target in listed], answer.split()))}


def rouge(target: str, answer: str) -> dict[str, float]:
    """`rouge-1`, `rouge-2`, `rouge-l`: F scores of the package `rouge`.

    A target or an answer of only dots and white space scores 0; the package would raise an error.
    """
    if not answer.replace(".", "").strip() or not target.replace(".", "").strip():
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    (scores,) = _ngrams.get_scores(answer, target)
    return {**{name: score["f"] for name, score in scores.items()}, "rouge-l": _rouge_l(target, answer)}


def _rouge_l(target: str, answer: str) -> float:
    """The F score of the package's summary-level rouge-l.

    The hits are the distinct words in the longest common subsequence of any sentence of the target with any sentence of
    the answer; precision and recall are the hits' shares of the distinct words of answer and target.
    """
    wanted, given = _sentences(target), _sentences(answer)
    words = [frozenset(sentence) for sentence in given]
    holding = defaultdict(list)  # per word, the positions of the answer's sentences that hold the word
    for position, distinct_words in enumerate(words):
        for word in distinct_words:
            holding[word].append(position)
    hits: set[str] = set()
    for sentence in wanted:
        # Only a sentence of the answer that shares a word which is no hit yet can add a hit.
        open_words = set(sentence) - hits
        for position in sorted({position for word in open_words for position in holding.get(word, ())}):
            if (open_words & words[position]) - hits:
                hits |= lcs_words(sentence, given[position])
    distinct = [len({word for sentence in side for word in sentence}) for side in (given, wanted)]
    return float(f_r_p_rouge_n(*distinct, len(hits))["f"])


def _sentences(text: str) -> list[tuple[str, ...]]:
    """The distinct sentences between dots, each as its words; a sentence of only white space has one empty word."""
    parts = [" ".join(part.split()) for part in text.split(".") if part]
    return [tuple(part.split(" ")) for part in dict.fromkeys(parts)]


def _plain(text: str) -> str:
    return text.strip().lower().replace(".", "")


EXACT_MATCH: Metric = RowMean(("em",), exact_match)
STARTS_WITH: Metric = RowMean(("starts_with",), starts_with)
BLEU: Metric = RowMean(("bleu",), bleu, takes_several=True)
ROUGE: Metric = RowMean(("rouge-1", "rouge-2", "rouge-l"), rouge)
