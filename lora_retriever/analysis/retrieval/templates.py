"""The input template from which each input of a task was made, found from the inputs alone.

A benchmark such as FLAN fills about ten templates per task with its examples. A retriever that knows a template finds
the task without understanding the input. So retrieval is reported separately for rows whose template occurs in no
sample of their own adapter. The templates are not known. The module finds the templates in the words that inputs of one
task share:

1. The words of a template are at the beginnings and ends of lines. The *pieces* of an input are the first and the last
   1 to `LONGEST` words (and punctuation marks) of each of its lines.
2. A piece that c of the n inputs have weighs c log(n / c). A piece that only one input has, or that all inputs have,
   does not distinguish templates.
3. The similarity of two inputs is the weight of the pieces that both have, divided by the weight of the pieces that one
   or both have. Groups of inputs grow while their mean similarity is at least `ALIKE` (average linkage).
4. Groups with fewer than `FEWEST` inputs become one group: an input that shares no words with others is from a template
   without words of its own, such as `{question}`.

The constants were set on the official benchmark, whose templates are published; `docs/results/retrieval.md` says how
often the rule errs there. Only evaluation uses the groups: no scorer reads them.
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

LONGEST = 8  # Maximum length of a piece, in words.
ALIKE = 0.4  # Minimum mean similarity of two groups that become one.
FEWEST = 3  # Minimum number of inputs in a group.
MOST_LINES = 400  # Maximum number of lines of an input from which pieces are taken, half of the lines from either end.
LONGEST_LINE = 10_000  # Maximum length of a line, in characters; of a longer line only the two ends are read.
MOST_PAIRS = 60_000  # Maximum number of pairs of equal words by which two texts are matched word by word.
GAP = "…"

Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Templates:
    """The templates of every task, numbered within the task.

    Attributes:
        samples: for every adapter, the template of each of its samples.
        rows: the template of every row, with the same numbers as the samples of the row's own adapter.
        own: the index of every row's own adapter, −1 if the pool has no such adapter.
    """

    samples: tuple[Groups, ...]
    rows: Groups
    own: Groups

    def unseen(self) -> NDArray[np.bool_]:
        """Which rows [rows] have a template that occurs in no sample of their own adapter."""
        known = {(adapter, group) for adapter, groups in enumerate(self.samples) for group in groups.tolist()}
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
    position_of = {name: position for position, name in enumerate(names)}
    own = np.array([position_of.get(task, -1) for task in tasks])
    of_samples, of_rows = [], np.zeros(len(inputs), dtype=np.int64)
    for adapter, texts in enumerate(samples):
        here = np.flatnonzero(own == adapter)
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
    """The words that all texts have in common, in their order, with `…` for the parts that differ."""
    first, *others = (_words(text.strip().replace("\n", " ⏎ ")) for text in texts)
    common: list[str] = reduce(_common, others, first)
    return " ".join(common)


def _likeness(texts: Sequence[str]) -> NDArray[np.float64]:
    """Weighted Jaccard similarity of the texts' pieces, [texts, texts]; 1 between texts without weighty pieces."""
    pieces = [set(_pieces(text)) for text in texts]
    count = Counter(piece for of_text in pieces for piece in of_text)
    kept = {piece: column for column, piece in enumerate(piece for piece, times in count.items() if times > 1)}
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
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines = lines[: MOST_LINES // 2] + lines[-MOST_LINES // 2 :]
    for line in lines:
        cut = len(line) > LONGEST_LINE
        words = _words(f"{line[: LONGEST_LINE // 2]} {line[-LONGEST_LINE // 2 :]}" if cut else line)
        for length in range(1, min(LONGEST, len(words)) + 1):
            yield ("first", *words[:length])
            yield ("last", *words[-length:])


def _words(line: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", line)


def _common(left: list[str], right: list[str]) -> list[str]:
    """The longest common parts of two lists of words, with a gap wherever one list has words between the parts.

    The time of the matching grows with the square of the number of pairs of equal words. With more than `MOST_PAIRS`
    pairs, as between two texts of 20,000 dots, only the common beginning and the common end are found.
    """
    counts = Counter(right)
    if sum(counts[word] for word in left) > MOST_PAIRS:
        return _common_ends(left, right)
    found: list[str] = []
    end_left = end_right = 0
    for start_left, start_right, length in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        skipped = left[end_left:start_left] + right[end_right:start_right]
        matched = left[start_left : start_left + length]
        if skipped:
            found.append(GAP)
        found += matched
        end_left, end_right = start_left + length, start_right + length
    return [word for at, word in enumerate(found) if word != GAP or found[at - 1 : at] != [GAP]]


def _common_ends(left: list[str], right: list[str]) -> list[str]:
    """The common beginning and the common end of two lists of words, with a gap between them if words are left out."""
    shorter = min(len(left), len(right))
    begin = next((at for at in range(shorter) if left[at] != right[at]), shorter)
    end = next((at for at in range(shorter - begin) if left[-1 - at] != right[-1 - at]), shorter - begin)
    gap = [] if begin + end == len(left) == len(right) else [GAP]
    return [*left[:begin], *gap, *left[len(left) - end :]]
