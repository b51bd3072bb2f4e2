"""Which prompt template each input of a task was made from, found from the inputs alone.

A benchmark such as FLAN fills about ten templates a task with its examples. A retriever that knows a template finds the
task without understanding the input, so retrieval is reported apart for rows whose template no sample of their own
adapter has. Templates are not given; they are found in what the inputs of one task share:

1. A template's words stand where lines begin and end: the *pieces* of an input are the first and the last 1 to
   `LONGEST` words (and punctuation marks) of each of its lines.
2. A piece that c of the n inputs have weighs c log(n / c). What one input alone has, or all, tells no templates apart.
3. Two inputs are as alike as the weight of the pieces both have is to that of the pieces either has. Groups of inputs
   grow while they are `ALIKE` on average (average linkage).
4. Groups below `FEWEST` inputs become one: what shares its words with nothing is from a template without words of its
   own, such as `{question}`.

The constants were set by looking at the official benchmark, whose templates are published; `docs/results/retrieval.md`
says how often the rule errs there. It serves evaluation only: no scorer sees its groups.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

LONGEST = 8
ALIKE = 0.4
FEWEST = 3
GAP = "…"

Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Templates:
    """The templates of every task, numbered within the task.

    Attributes:
        samples: the template of each of its samples, for every adapter.
        rows: the template of every row, numbered as the samples of its own adapter.
        own: the place of every row's own adapter, −1 where the pool has none.
    """

    samples: tuple[Groups, ...]
    rows: Groups
    own: Groups

    def unseen(self) -> NDArray[np.bool_]:
        """Which rows [rows] are of a template that no sample of their own adapter is of."""
        known = {(place, group) for place, groups in enumerate(self.samples) for group in groups.tolist()}
        return np.array([pair not in known for pair in zip(self.own.tolist(), self.rows.tolist(), strict=True)])


def find_templates(
    names: Sequence[str], samples: Sequence[Sequence[str]], tasks: Sequence[str], inputs: Sequence[str]
) -> Templates:
    """The templates of a pool's samples and a benchmark's rows, task by task.

    Args:
        names: the adapters; each is the own adapter of the rows of its task.
        samples: the inputs of every adapter's samples.
        tasks: every row's task.
        inputs: every row's inputs.
    """
    places = {name: place for place, name in enumerate(names)}
    own = np.array([places.get(task, -1) for task in tasks])
    of_samples, of_rows = [], np.zeros(len(inputs), dtype=np.int64)
    for place, texts in enumerate(samples):
        here = np.flatnonzero(own == place)
        groups = group_by_template([*texts, *(inputs[row] for row in here.tolist())])
        of_samples.append(groups[: len(texts)])
        of_rows[here] = groups[len(texts) :]
    return Templates(tuple(of_samples), of_rows, own)


def group_by_template(texts: Sequence[str]) -> Groups:
    """The template of each of a task's inputs, numbered from 0 in the order of their first inputs."""
    if len(texts) < 2:
        return np.zeros(len(texts), dtype=np.int64)
    tree = linkage(squareform(1 - _likeness(texts), checks=False), method="average")
    grown = fcluster(tree, 1 - ALIKE, criterion="distance")
    size = Counter(grown.tolist())
    numbers: dict[int, int] = {}
    return np.array(
        [numbers.setdefault(group if size[group] >= FEWEST else 0, len(numbers)) for group in grown.tolist()]
    )


def shared_words(texts: Sequence[str]) -> str:
    """The words that all the texts have in common, in their order, with `…` for what differs: the template as found."""
    first, *others = (_words(text.strip().replace("\n", " ⏎ ")) for text in texts)
    common: list[str] = reduce(_common, others, first)
    return " ".join(common)


def _likeness(texts: Sequence[str]) -> NDArray[np.float64]:
    """Weighted Jaccard likeness of the texts' pieces, [texts, texts]; texts without a weighty piece are all alike."""
    pieces = [set(_pieces(text)) for text in texts]
    count = Counter(piece for of_text in pieces for piece in of_text)
    kept = {piece: place for place, piece in enumerate(piece for piece, times in count.items() if times > 1)}
    weights = np.array([count[piece] * math.log(len(texts) / count[piece]) for piece in kept])
    rows, columns = [], []
    for row, of_text in enumerate(pieces):
        here = sorted(kept[piece] for piece in of_text if piece in kept)
        rows += [row] * len(here)
        columns += here
    has = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(kept)))
    both = (has.multiply(weights[None]) @ has.T).toarray()  # [texts, texts]
    total = both.diagonal()
    either = total[:, None] + total[None] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 1e-9)


def _pieces(text: str) -> Iterable[tuple[str, ...]]:
    for line in text.split("\n"):
        words = _words(line)
        for length in range(1, min(LONGEST, len(words)) + 1):
            yield ("first", *words[:length])
            yield ("last", *words[-length:])


def _words(line: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", line)


def _common(left: list[str], right: list[str]) -> list[str]:
    """The longest common parts of two lists of words, with a gap wherever either has something between them."""
    found: list[str] = []
    end_left = end_right = 0
    for start_left, start_right, length in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        skipped = left[end_left:start_left] + right[end_right:start_right]
        matched = left[start_left : start_left + length]
        if skipped:
            found.append(GAP)
        found += matched
        end_left, end_right = start_left + length, start_right + length
    return [word for place, word in enumerate(found) if word != GAP or found[place - 1 : place] != [GAP]]
