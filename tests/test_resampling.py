"""Intervals and tests have the promised error rates, checked on data whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lora_retriever.resampling import (
    BATCH,
    DRAWS,
    PERMUTATIONS,
    Array,
    Indices,
    bootstrap,
    exact_bound,
    holm,
    over_tasks,
    permutation_test,
    widened,
    wilson_interval,
)

DATASETS = 1000


def coverage(bounds: Array, truth: float) -> float:
    """Percent of the intervals [datasets, 2] that hold the truth."""
    return 100 * float(((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean())


def means_of(rows: Sequence[NDArray[np.float32]], positions: Sequence[Indices]) -> Array:
    """Mean over tasks of the mean of the drawn rows, of every dataset at once: [datasets, draws]."""
    tasks = [task[:, drawn].mean(axis=-1) for task, drawn in zip(rows, positions, strict=True)]
    return np.mean(tasks, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "size"),
    [([0.6], 50), ([0.3], 200), ([0.2, 0.5, 0.9], 50), ([0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.6], 30)],
)
def test_the_interval_of_right_and_wrong_rows_covers_the_truth(rates: list[float], size: int) -> None:
    generator = np.random.default_rng(1)
    rows = [(generator.random((DATASETS, size)) < rate).astype(np.float32) for rate in rates]
    bounds = bootstrap([size] * len(rates), lambda positions: means_of(rows, positions))
    assert 93 <= coverage(bounds, float(np.mean(rates))) <= 97


@pytest.mark.slow
def test_the_interval_of_graded_rows_covers_the_truth() -> None:
    generator = np.random.default_rng(2)
    sizes = [50, 45, 50]
    rows = [generator.beta(2, 3, (DATASETS, size)).astype(np.float32) for size in sizes]
    bounds = bootstrap(sizes, lambda positions: means_of(rows, positions))
    assert 93 <= coverage(bounds, 0.4) <= 97


@pytest.mark.slow
def test_the_interval_over_tasks_covers_the_mean_of_tasks_not_drawn() -> None:
    generator = np.random.default_rng(3)
    scores = generator.normal(60, 25, (DATASETS, 48))
    bounds = np.stack([over_tasks(row) for row in scores[:300]])
    assert 91 <= coverage(bounds, 60) <= 98  # 300 datasets only: each takes a bootstrap of its own


def p_values(left: Array, right: Array) -> Array:
    """The test's p-values for many datasets of pairs at once, [datasets, pairs] each."""
    # Swapping a pair changes the sign of its difference: the statistic is the mean of (1 − 2 side) × difference.
    differences = (left - right).T / left.shape[1]
    return permutation_test(left.shape[1], lambda sides: (1 - 2 * sides) @ differences, permutations=999)


@pytest.mark.slow
def test_the_permutation_test_raises_as_many_false_alarms_as_it_says() -> None:
    generator = np.random.default_rng(4)
    difficulty = generator.random((DATASETS, 60))  # shared by both runs: their answers go together
    graded = [np.clip(difficulty + generator.normal(0, 0.2, (DATASETS, 60)), 0, 1) for _ in range(2)]
    assert 3 <= 100 * (p_values(*graded) < 0.05).mean() <= 7
    difficulty = generator.random((DATASETS, 1000))
    right_or_wrong = [(generator.random((DATASETS, 1000)) < difficulty).astype(float) for _ in range(2)]
    assert 3 <= 100 * (p_values(*right_or_wrong) < 0.05).mean() <= 7


@pytest.mark.slow
def test_the_permutation_test_sees_what_is_there() -> None:
    generator = np.random.default_rng(5)
    difficulty = generator.random((DATASETS, 300))
    worse, better = ((generator.random((DATASETS, 300)) < difficulty + more).astype(float) for more in (0, 0.12))
    assert (p_values(better, worse) < 0.05).mean() > 0.8


def test_few_pairs_are_tested_exactly() -> None:
    """Five pairs all have the same sign. Of 2⁵ ways to swap the pairs, two are as extreme: p = 2/32."""
    p = permutation_test(5, lambda sides: ((1 - 2 * sides) @ np.ones(5))[..., None])
    assert p == pytest.approx([2 / 32])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]  # 2 · 0.6 is more than 1
    assert holm([0.9, 0.02]) == pytest.approx([0.9, 0.04])
    assert holm([]) == []


def test_rows_that_all_score_alike_have_the_exact_binomial_bound() -> None:
    """The upper end p for 0 of n right solves (1 − p)ⁿ = 0.025."""
    low, high = exact_bound(0, 50)
    assert low == 0
    assert (1 - high / 100) ** 50 == pytest.approx(0.025)
    assert exact_bound(100, 50) == pytest.approx((100 - high, 100))


def test_an_interval_is_widened_by_the_bound_of_the_smallest_task_without_variation() -> None:
    """Two of 4 tasks, of 20 and 50 rows, score 0 on all rows. The bound of 20 rows, over 4 tasks, adds in squares."""
    hidden = 100 * (1 - 0.025 ** (1 / 20)) / 4
    low, high = widened(40.0, (37.0, 44.0), below=[50, 20], above=[], tasks=4)
    assert (low, high) == (37.0, pytest.approx(40 + (4**2 + hidden**2) ** 0.5))
    low, high = widened(40.0, (37.0, 44.0), below=[], above=[20, 50], tasks=4)
    assert (low, high) == (pytest.approx(40 - (3**2 + hidden**2) ** 0.5), 44.0)
    assert widened(40.0, (37.0, 44.0), [], [], 4) == (37.0, 44.0)


def test_one_row_less_than_there_is_drawn_from_each_task_as_often_as_said() -> None:
    shapes: list[list[tuple[int, ...]]] = []

    def statistic(indices: Sequence[Indices]) -> Array:
        shapes.append([rows.shape for rows in indices])
        assert all(rows.min() >= 0 and rows.max() < size for rows, size in zip(indices, (7, 1, 2), strict=True))
        return np.zeros((1, len(indices[0])))

    bootstrap([7, 1, 2], statistic)
    assert sum(seven[0] for seven, _, _ in shapes) == DRAWS
    assert max(seven[0] for seven, _, _ in shapes) == BATCH
    assert {(seven[1], one[1], two[1]) for seven, one, two in shapes} == {(6, 1, 1)}


def test_as_many_permutations_are_drawn_as_asked() -> None:
    """30 pairs all have the same sign: no draw is as extreme, so p is 2 / (draws + 1)."""

    def statistic(sides: Array) -> Array:
        return ((1 - 2 * sides) @ np.ones(30))[..., None]

    assert permutation_test(30, statistic) == pytest.approx([2 / (PERMUTATIONS + 1)])
    assert permutation_test(30, statistic, 999) == pytest.approx([2 / 1000])


@pytest.mark.slow
def test_the_same_rows_give_the_same_interval_and_p_value() -> None:
    rows = np.random.default_rng(3).normal(size=40)  # other draws would change the last digits

    def mean(positions: Sequence[Indices]) -> Array:
        return (rows[positions[0]].mean(axis=-1) + 0 * positions[1].mean(axis=-1))[None]

    def difference(swapped: Array) -> Array:
        return ((1 - 2 * swapped) @ rows)[..., None]

    assert bootstrap([40, 1], mean).tolist() == bootstrap([40, 1], mean).tolist()
    assert permutation_test(40, difference).tolist() == permutation_test(40, difference).tolist()


def test_the_interval_of_a_single_row_is_its_score() -> None:
    rows = np.array([0.0, 1.0, 1.0, 0.5])
    (alone,) = bootstrap([1], lambda positions: rows[positions[0] + 2].mean(axis=-1)[None])
    assert alone.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("hits", "rows"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (9, 9), (499, 1000)])
def test_wilsons_interval_is_scipys(hits: int, rows: int) -> None:
    expected = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(hits, rows)
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert low >= 0 and high <= 100, "also where the last digits of the formula are rounded up"
