"""Scores of plans: KAS as published with G-PlanET (arXiv 2209.00465), and scores without its faults.

Step i of the answer is compared with step i of the reference. The published code pads a short plan with its last step,
and ignores steps beyond the reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from lora_retriever.data.plans import kinds_in, steps_of
from lora_retriever.metrics.base import Array, Metric, Reference, RowMean

if TYPE_CHECKING:
    from nltk.tokenize import TreebankWordTokenizer

Chunk = tuple[str, ...]
"""A word of a step, or a movement with its direction, such as `("turn", "left")`."""

MOVES, DIRECTIONS = ("turn", "go"), ("left", "right", "around")
EPSILON = 1e-8
"""The number that the published code adds to the denominator of KAS."""
_MARKS = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ; ( ) [ ] { } \""
PUNCTUATION = frozenset(_MARKS.split())
IGNORED = frozenset(["green", "red", "black", "white", "wooden", "wood", "back", "towards"])
_STOP_WORDS = """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
    himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this
    that that'll these those am is are was were be been being have has had having do does did doing a an the and but if
    or because as until while of at by for with about against between into through during before after above below to
    from up down in out on off over under again further then once here there when where why how all any both each few
    more most other some such no nor not only own same so than too very s t can will just don don't should should've now
    d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn
    isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won
    won't wouldn wouldn't
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""NLTK's 179 English stop words. NLTK fetches the words as data. The published code drops these words."""


def words(text: str) -> list[str]:
    """The words of a step in lower case by the Penn Treebank's rules, without punctuation.

    The published code calls Stanford's tokenizer for captions, which needs Java. This function has nltk's rules.
    """
    return [word for word in _treebank().tokenize(text.lower()) if word not in PUNCTUATION]


def chunks(step: str) -> list[Chunk]:
    """The chunks of a step, in order: content words, and movements joined with their directions.

    "walk" becomes "go". Stop words and the words of `IGNORED` are dropped. "turn" or "go" and a direction after this
    word are one chunk. A direction alone, and a final "turn" or "go", are dropped.
    """
    kept = [("go" if word == "walk" else word) for word in words(re.sub(r"(?i)^\s*step\s*\d+\s*:", "", step))]
    kept = [word for word in kept if word not in STOP_WORDS and word not in IGNORED]
    found: list[Chunk] = []
    place = 0
    while place < len(kept):
        word, following = kept[place], kept[place + 1] if place + 1 < len(kept) else None
        place += 1
        if word in MOVES:
            if following in DIRECTIONS:
                found.append((word, str(following)))
                place += 1
            elif following is not None:
                found.append((word,))
        elif word not in DIRECTIONS:
            found.append((word,))
    return found


def kas(reference: str, answer: str) -> float:
    """KAS of one step, exactly as published: |R ∩ P| / (|P| + 1e-8), with R and P the sets of chunks.

    If the reference has more than one chunk of "turn", such chunks are removed from both sides. The published loop
    removes elements from the list over which the loop runs, so the loop misses every other chunk. So KAS is a precision
    over words, and two empty sets score 0.
    """
    wanted, given = chunks(reference), chunks(answer)
    if sum(chunk[0] == "turn" for chunk in wanted) > 1:
        wanted, given = _without_turns(wanted), _without_turns(given)
    return len({*wanted} & {*given}) / (len({*given}) + EPSILON)


def _without_turns(found: list[Chunk]) -> list[Chunk]:
    left = [*found]
    for chunk in left:
        if chunk[0] == "turn":
            left.remove(chunk)  # changes the list under the loop, as published
    return left


@cache
def _treebank() -> TreebankWordTokenizer:
    from nltk.tokenize import TreebankWordTokenizer  # a second to import

    return TreebankWordTokenizer()


def padded_kas(reference: str, answer: str) -> float:
    """KAS of a plan, as published: the mean of KAS over the steps of the reference.

    A shorter answer is padded with its last step, and steps beyond the reference are ignored. An answer without any
    step scores 0.
    """
    wanted, given = steps_of(reference), steps_of(answer)
    if not wanted or not given:
        return 0.0
    given += [given[-1]] * (len(wanted) - len(given))
    return sum(map(kas, wanted, given)) / len(wanted)


def f1_in_order(reference: str, answer: str) -> float:
    """`chunk-f1`: step i against step i, F1 = 2 Σ|R_i ∩ P_i| / (Σ|R_i| + Σ|P_i|), over all steps of both plans.

    A step that the other plan lacks counts as a step without common chunks.
    """
    wanted, given = _sets(reference), _sets(answer)
    return _f1(sum(len(r & p) for r, p in zip(wanted, given, strict=False)), wanted, given)


def f1_aligned(reference: str, answer: str) -> float:
    """`aligned-f1`: as `f1_in_order`, with the pairing of steps that keeps their order and shares most chunks.

    Let S[i, j] be the maximum number of chunks that the first i steps of one plan and the first j steps of the other
    plan share: S[i, j] = max(S[i - 1, j], S[i, j - 1], S[i - 1, j - 1] + |R_i ∩ P_j|).
    """
    wanted, given = _sets(reference), _sets(answer)
    before = [0] * (len(given) + 1)
    for r in wanted:
        now = [0]
        for j, p in enumerate(given):
            now.append(max(before[j + 1], now[j], before[j] + len(r & p)))
        before = now
    return _f1(before[-1], wanted, given)


def length_error(reference: str, answer: str) -> float:
    """`length-error`: |steps of the answer − steps of the reference| / steps of the reference. Lower is better."""
    wanted, given = len(steps_of(reference)), len(steps_of(answer))
    return abs(given - wanted) / max(wanted, 1)


def cider(references: Sequence[str], answer: str) -> float:
    """`cider`: CIDEr-D of a plan by pycocoevalcap: n = 1 to 4, σ = 6, × 10; 0 to 10, which tables show × 100.

    As published, the steps of the plan are the corpus that gives the document frequencies, and a plan is padded as for
    KAS. With several references, the references of step i are the steps i of all plans.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    plans, given = [steps_of(reference) for reference in references], steps_of(answer)
    longest = max(map(len, plans), default=0)
    if not longest or not given:
        return 0.0
    scorer = CiderScorer(n=4, sigma=6.0)
    for number in range(longest):
        step = given[min(number, len(given) - 1)]
        wanted = [plan[number] for plan in plans if number < len(plan)]
        scorer += (" ".join(words(step)), [" ".join(words(text)) for text in wanted])
    return float(scorer.compute_score()[0])


def has_cider() -> bool:
    """Whether the library that computes CIDEr is installed."""
    return find_spec("pycocoevalcap") is not None


def _sets(plan: str) -> list[set[Chunk]]:
    return [{*chunks(step)} for step in steps_of(plan)]


def _f1(shared: int, wanted: Sequence[set[Chunk]], given: Sequence[set[Chunk]]) -> float:
    total = sum(map(len, wanted)) + sum(map(len, given))
    return 2 * shared / total if total else 0.0


class Objects:
    """`objects`: of the objects that an answer names, the share that is in the row's own object table.

    The names are the types of all objects in the tables of the task's rows, in words. A row without a table does not
    count; a task without tables, or whose answers name no object, scores 0.
    """

    scores = ("objects",)
    reads_inputs = True

    def statistics(
        self, predictions: Sequence[str], references: Sequence[Reference], inputs: Sequence[str] = ()
    ) -> Array:
        """How many named objects are in the table, and how many are named: [rows, 2]."""
        tables = [kinds_in(text) for text in inputs] or [set()] * len(predictions)
        names = sorted(set().union(*tables), key=lambda name: -len(name))
        if not names:
            return np.zeros((len(predictions), 2))
        # "countertop" and "counter top" are one name; a plural counts
        forms = {name.replace(" ", ""): name for name in names}
        pattern = re.compile(r"\b(" + "|".join(name.replace(" ", " ?") for name in names) + r")s?\b")
        rows = []
        for answer, table in zip(predictions, tables, strict=True):
            named = {forms[found.replace(" ", "")] for found in pattern.findall(answer.lower())} if table else set()
            rows.append([len(named & table), len(named)])
        return np.array(rows, dtype=np.float64)

    def combine(self, sums: Array) -> Array:
        """The share in percent."""
        named = sums[..., 1]
        return np.asarray(100 * sums[..., 0] / np.where(named > 0, named, 1))[..., None]


def _sound(references: Sequence[str], answer: str) -> dict[str, float]:
    return {
        "chunk-f1": max(f1_in_order(reference, answer) for reference in references),
        "aligned-f1": max(f1_aligned(reference, answer) for reference in references),
        "length-error": min(length_error(reference, answer) for reference in references),
    }


KAS: Metric = RowMean(("kas",), lambda reference, answer: {"kas": padded_kas(reference, answer)})
SOUND: Metric = RowMean(("chunk-f1", "aligned-f1", "length-error"), _sound, takes_several=True)
CIDER: Metric = RowMean(("cider",), lambda references, answer: {"cider": cider(references, answer)}, takes_several=True)
OBJECTS: Metric = Objects()
