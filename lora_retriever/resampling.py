"""Intervals and tests by drawing rows anew. The functions draw indices of rows; the caller turns indices into scores.

The tasks of a benchmark are fixed, and the rows of a task are a sample: rows are drawn within their own task, so a mean
over tasks varies as the rows vary. `over_tasks` says how a mean would vary with other tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LEVEL = 0.95
"""Confidence level of all intervals."""
DRAWS = 2000
"""Number of bootstrap draws."""
PERMUTATIONS = 9999
"""Number of draws of a permutation test, unless the caller asks for more."""
SEED = 0
"""Seed of all draws: the same rows give the same intervals and p-values."""
FEWEST_TASKS = 5
"""Minimum number of tasks for an interval over tasks."""
BATCH = 500
"""Number of draws held in memory at once."""


def bootstrap(sizes: Sequence[int], statistic: Callable[[Sequence[Indices]], Array]) -> Array:
    """95 % percentile bootstrap intervals, [quantities, 2], of quantities computed from the rows of several tasks.

    Of a task with n rows, n − 1 rows are drawn with replacement: n drawn rows would give intervals that are too narrow
    by √((n − 1)/n) (Hesterberg, 2015). The row of a task of one row is always drawn.

    Args:
        sizes: number of rows of every task.
        statistic: from the indices of drawn rows, [draws, n_t − 1] per task, to the quantities [quantities, draws].
    """

    def drawn(*indices: Indices, axis: int = -1) -> Array:
        return statistic([rows[..., : max(rows.shape[-1] - 1, 1)] for rows in indices])

    from scipy import stats  # a second to import

    samples = [np.arange(size) for size in sizes]
    result = stats.bootstrap(
        # scipy refuses a sample of one row, so scipy gets that row twice.
        [sample if len(sample) > 1 else np.zeros(2, dtype=int) for sample in samples],
        drawn,
        n_resamples=DRAWS,
        batch=BATCH,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return np.stack([result.confidence_interval.low, result.confidence_interval.high], axis=-1)


def over_tasks(values: Sequence[float]) -> Array:
    """95 % interval [2] of the mean of one value per task, if the tasks are a sample, too: whole tasks are drawn.

    The method is the cluster bootstrap, where a cluster is a task with its rows.
    """
    scores = np.asarray(values)
    return bootstrap([len(scores)], lambda indices: scores[indices[0]].mean(axis=-1)[None])[0]


def permutation_test(pairs: int, statistic: Callable[[Array], Array], permutations: int = PERMUTATIONS) -> Array:
    """Two-sided p-values [quantities] of the paired permutation test: each draw swaps the two sides of random pairs.

    Args:
        pairs: number of pairs.
        statistic: from 0 (not swapped) or 1 (swapped) per pair, [..., pairs], to the differences [..., quantities].
        permutations: number of draws; the smallest p-value is 2 / (permutations + 1). Few pairs are tested exactly.
    """
    # A single pair has the same difference, up to the sign, in both orders, so p is 1. scipy refuses a sample of one.
    if pairs == 1:
        return np.ones_like(statistic(np.zeros(1)))

    from scipy import stats  # a second to import

    # scipy permutes two samples; the first sample holds, for each pair, the side that comes first.
    result = stats.permutation_test(
        (np.zeros(pairs), np.ones(pairs)),
        lambda first, second, axis: statistic(first),
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=BATCH,
        rng=np.random.default_rng(SEED),
    )
    return np.atleast_1d(np.asarray(result.pvalue, dtype=float))


def widened(
    value: float, interval: tuple[float, float], below: Sequence[int], above: Sequence[int], tasks: int
) -> tuple[float, float]:
    """The interval of a mean over tasks, widened for tasks in which drawing rows shows no variation.

    If all n rows of a task have the lowest possible score, the task's true score may be as high as the exact binomial
    bound for 0 of n; the same holds for the highest possible score. The bound of the smallest such task stands for all
    such tasks together, divided by the number of tasks, and is added to the interval as an independent error (the root
    of the sum of squares).

    Args:
        value: the mean.
        interval: the bootstrap interval of the mean.
        below: numbers of rows of the tasks with the lowest possible score, whose true score may be higher.
        above: numbers of rows of the tasks with the highest possible score, whose true score may be lower.
        tasks: the number of tasks of the mean.
    """
    low, high = interval
    more = exact_bound(0, min(below))[1] / tasks if below else 0.0
    less = exact_bound(0, min(above))[1] / tasks if above else 0.0
    return (value - float(np.hypot(value - low, less)) if less else low), (
        value + float(np.hypot(high - value, more)) if more else high
    )


def exact_bound(value: float, rows: int) -> tuple[float, float]:
    """The exact binomial 95 % interval, in percent, of a task in which all `rows` score 0, or all score 100."""
    from scipy import stats  # a second to import

    share = stats.binomtest(rows if value else 0, rows).proportion_ci(LEVEL, method="exact")
    return 100 * share.low, 100 * share.high


def wilson_interval(hits: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share of `hits` among `rows`, in percent.

    The bounds are the shares p with |hits/rows − p| = z √(p (1 − p) / rows), where z = Φ⁻¹(0.975).
    """
    z, share = NormalDist().inv_cdf((1 + LEVEL) / 2), hits / rows
    centre = share + z**2 / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    low, high = ((centre + sign * half) / (1 + z**2 / rows) for sign in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979): p₍ᵢ₎ · (m − i + 1), made monotone, at most 1."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected
