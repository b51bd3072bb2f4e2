"""Intervals and tests by drawing rows anew. Knows positions and numbers only; what they score is the caller's business.

The tasks of a benchmark are fixed and its rows are a sample of each: rows are drawn within their own task, so a mean
over tasks varies as its rows do. `over_tasks` answers the other question, how a mean would vary with other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LEVEL = 0.95
DRAWS = 2000
PERMUTATIONS = 9999
SEED = 0
FEWEST_TASKS = 5  # from fewer tasks nothing can be said about others
BATCH = 500  # draws held in memory at once


def bootstrap(sizes: Sequence[int], statistic: Callable[[Sequence[Indices]], Array]) -> Array:
    """95 % percentile bootstrap intervals, [quantities, 2], of quantities computed from the rows of several tasks.

    Of a task's n rows n − 1 are drawn with replacement: with n the intervals would be too narrow by √((n − 1)/n)
    (Hesterberg, 2015). A task of one row has nothing to draw from and stays as it is.

    Args:
        sizes: rows of every task.
        statistic: from drawn positions, [draws, n_t − 1] per task, to the quantities [quantities, draws].
    """

    def drawn(*positions: Indices, axis: int = -1) -> Array:
        return statistic([rows[..., : max(rows.shape[-1] - 1, 1)] for rows in positions])

    samples = [np.arange(size) for size in sizes]
    result = stats.bootstrap(
        # scipy refuses a sample of one: it is given twice the same.
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
    """95 % interval [2] of the mean of one value per task if the tasks are a sample, too: whole tasks are drawn.

    This is the cluster bootstrap, a task with its rows being a cluster.
    """
    scores = np.asarray(values)
    return bootstrap([len(scores)], lambda positions: scores[positions[0]].mean(axis=-1)[None])[0]


def permutation_test(pairs: int, statistic: Callable[[Array], Array], permutations: int = PERMUTATIONS) -> Array:
    """Two-sided p-values [quantities] of the paired permutation test: in every pair, which side is which is drawn.

    Args:
        pairs: number of pairs.
        statistic: from 0 (as it is) or 1 (swapped) per pair, [..., pairs], to the differences [..., quantities].
        permutations: how many are drawn; the smallest p-value is 2 / (permutations + 1).
    """
    # scipy permutes two samples, of which the first says for each pair which side has come to stand first.
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
    """An interval of a mean over `tasks`, some of which show no variation at all, as if they could not vary.

    Of a task whose n rows all score the least possible, the true score may be as high as the exact binomial bound for 0
    of n, and likewise for the most possible. At the confidence level that much is left for all such tasks together, and
    weighs most in the smallest. It is added to the interval as an independent error is.

    Args:
        below: the numbers of rows of tasks that cannot be lower, and may be higher.
        above: of those that cannot be higher, and may be lower.
    """
    low, high = interval
    more = exact_bound(0, min(below))[1] / tasks if below else 0.0
    less = exact_bound(0, min(above))[1] / tasks if above else 0.0
    return (value - float(np.hypot(value - low, less)) if less else low), (
        value + float(np.hypot(high - value, more)) if more else high
    )


def exact_bound(value: float, rows: int) -> tuple[float, float]:
    """The exact binomial 95 % interval, in percent, where all `rows` score 0, or all 100: drawing shows nothing."""
    share = stats.binomtest(rows if value else 0, rows).proportion_ci(LEVEL, method="exact")
    return 100 * share.low, 100 * share.high


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979): p₍ᵢ₎ · (m − i + 1), made monotone, at most 1."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = highest
    return corrected
