"""Longest common subsequences of words by bit vectors: fast, iterative, and in little memory.

Both functions follow Hyyrö, "Bit-parallel LCS-length computation revisited" (2004). A column is an integer with one bit
per word of the first sequence x. The column of a prefix of y has bit i = 0 where the LCS length of x[: i + 1] and the
prefix is one more than the LCS length of x[:i] and the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt


def lcs_length(x: Sequence[str], y: Sequence[str]) -> int:
    """The length of the longest common subsequence of two sequences of words."""
    column = full = (1 << len(x)) - 1
    for column in _columns(_positions(x), y, full, full):  # noqa: B007 (the last column counts)
        pass
    return len(x) - column.bit_count()


def lcs_words(x: Sequence[str], y: Sequence[str]) -> set[str]:
    """The distinct words of one longest common subsequence of x and y: the subsequence that the package `rouge` finds.

    The package walks its table from the ends of both sequences: over an equal pair of words; else to x without its last
    word, if the LCS is then longer than for y without its last word; else to y without its last word. The package needs
    len(x) · len(y) entries of a table and as many nested calls as the longer sequence has words. This function keeps
    every √len(y)-th column and computes the columns between anew, one stretch at a time.
    """
    positions, full = _positions(x), (1 << len(x)) - 1
    stretch = max(isqrt(len(y)), 1)  # number of columns from one kept column to the next
    kept = [full]
    for number, column in enumerate(_columns(positions, y, full, full), start=1):
        if number % stretch == 0:
            kept.append(column)
    found = set()
    i, j = len(x), len(y)
    start, columns = len(y) + 1, [full]  # columns[n] is the column of y[: start + n]
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.add(x[i - 1])
            i, j = i - 1, j - 1
            continue
        if j - 1 < start:
            start = (j - 1) // stretch * stretch
            first = kept[start // stretch]
            columns = [first, *_columns(positions, y[start : start + stretch], first, full)]
        above, left = columns[j - start], columns[j - 1 - start]
        if _length(above, i - 1) > _length(left, i):
            i -= 1
        else:
            j -= 1
    return found


def _columns(positions: dict[str, int], y: Sequence[str], column: int, full: int) -> Iterator[int]:
    """The columns after each word of y, given the column before."""
    for word in y:
        matched = column & positions.get(word, 0)
        column = ((column + matched) | (column - matched)) & full
        yield column


def _positions(x: Sequence[str]) -> dict[str, int]:
    """Per word, an integer with the bits of the word's positions in x."""
    positions: dict[str, int] = {}
    for position, word in enumerate(x):
        positions[word] = positions.get(word, 0) | (1 << position)
    return positions


def _length(column: int, i: int) -> int:
    """The LCS length of x[:i] and a column's prefix of y."""
    return i - (column & ((1 << i) - 1)).bit_count()
