"""Temperatures and calibration error on data whose right result is known."""

from __future__ import annotations

import numpy as np
import pytest

from lora_retriever.retrieval.calibration import (
    Presence,
    expected_calibration_error,
    fit_presence,
    fit_temperature,
    softmax,
)
from lora_retriever.retrieval.scorers import HeldOut


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_the_temperature_that_made_the_data_is_found(scale: float) -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(scale=2, size=(4000, 10))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    own = np.array([generator.choice(10, p=row) for row in chances])
    assert fit_temperature(HeldOut(scores * scale, own)) == pytest.approx(scale, rel=0.05)
    assert softmax(scores * scale, scale) == pytest.approx(chances)


def planted_presence(samples: int, seed: int) -> HeldOut:
    """Scores [samples, 4]. The best score and its lead over the next score follow a normal distribution.

    With the own adapter in the pool, the means are 3.2 and 1.2; with the own adapter masked, 2 and 1. The covariance is
    always [[1, 0.02], [0.02, 0.04]].
    """
    random = np.random.default_rng(seed)

    def lead(best: np.ndarray, mean_best: float, mean: float) -> np.ndarray:
        """The lead of the best score over the next score, [samples]: a part that follows the best score, and noise."""
        return mean + 0.02 * (best - mean_best) + random.normal(scale=np.sqrt(0.04 - 0.02**2), size=samples)

    own = random.normal(3.2, size=samples)
    first = own - lead(own, 3.2, 1.2)  # the best other adapter: variance 1 + 0.04 - 2 * 0.02
    second = first - lead(first, 2.0, 1.0)
    scores = np.column_stack([own, first, second, second - 1])
    places = random.permuted(np.tile(np.arange(4), (samples, 1)), axis=1)  # the adapter that gets each score
    shuffled = np.empty_like(scores)
    np.put_along_axis(shuffled, places, scores, axis=1)
    return HeldOut(shuffled, places[:, 0])


@pytest.mark.slow
def test_presence_is_the_posterior_of_the_planted_scores() -> None:
    """For two normals with one covariance, the posterior is logistic: w = Σ⁻¹ (μ₁ - μ₀), w₀ = -w (μ₁ + μ₀) / 2."""
    slopes = np.linalg.solve([[1, 0.02], [0.02, 0.04]], np.array([3.2 - 2, 1.2 - 1]))
    constant = -slopes @ np.array([3.2 + 2, 1.2 + 1]) / 2
    presence = fit_presence(planted_presence(40_000, seed=0))
    assert presence.weights == pytest.approx((constant, *slopes), rel=0.05)


def test_presence_of_a_probability_is_as_frequent_as_it_says() -> None:
    presence = fit_presence(planted_presence(5_000, seed=1))
    new = planted_presence(20_000, seed=2)
    masked = new.scores.copy()
    masked[np.arange(len(masked)), new.own] = -np.inf
    found = np.concatenate([presence.probability(-np.sort(-scores, axis=1)) for scores in (new.scores, masked)])
    there = np.repeat([True, False], len(masked))
    for low in np.arange(0, 1, 0.1):
        near = (found >= low) & (found < low + 0.1)
        assert near.sum() > 500
        assert there[near].mean() == pytest.approx(found[near].mean(), abs=0.04)
    assert found[there].mean() > 0.6 > 0.4 > found[~there].mean()


def test_presence_wants_three_adapters() -> None:
    with pytest.raises(ValueError, match="fewer than three adapters"):
        fit_presence(HeldOut(np.zeros((4, 2)), np.zeros(4, dtype=int)))


def test_three_adapters_are_enough_for_presence() -> None:
    planted = planted_presence(2_000, seed=3)
    own = planted.scores[np.arange(2_000), planted.own]
    others = np.sort(planted.scores, axis=1)[:, [0, 1]]
    presence = fit_presence(HeldOut(np.column_stack([own, others]), np.zeros(2_000, dtype=int)))
    assert all(slope > 0 for slope in presence.weights[1:])


def test_the_order_of_the_adapters_does_not_matter_to_presence() -> None:
    """With many adapters, a partial sort leaves the best scores in no fixed order, unless the call wants an order."""
    random = np.random.default_rng(4)
    scores, own = random.normal(size=(300, 80)), random.integers(80, size=300)
    scores[np.arange(300), own] += 1
    order = random.permutation(80)
    there = np.argsort(order)  # the place of each adapter in the other order
    first, second = fit_presence(HeldOut(scores, own)), fit_presence(HeldOut(scores[:, order], there[own]))
    assert first.weights == pytest.approx(second.weights, rel=1e-9)


def test_what_may_not_be_found_has_no_probability() -> None:
    assert softmax(np.array([[0.0, -np.inf, 0.0]]), 2.0) == pytest.approx(np.array([[0.5, 0.0, 0.5]]))


def test_calibration_error_by_hand() -> None:
    stated = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, True])
    assert expected_calibration_error(stated, right, bins=10) == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.45)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert expected_calibration_error(np.array([1.0]), np.array([False])) == 1, "1 belongs to the last bin"


def test_calibration_error_has_fifteen_bins_unless_told_otherwise() -> None:
    stated, right = np.array([0.62, 0.68]), np.array([True, False])  # one bin of ten, two of fifteen
    assert expected_calibration_error(stated, right) == pytest.approx((0.38 + 0.68) / 2)
    assert expected_calibration_error(stated, right, bins=10) == pytest.approx(abs(0.65 - 0.5))


def temperature_by_hand(scores: np.ndarray, own: np.ndarray, rivals: int) -> float:
    """The temperature with the smallest loss on a fine grid, by a loop over samples and their best adapters."""
    grid = np.exp(np.linspace(-4, 4, 4001))
    losses = np.zeros(len(grid))
    for row, adapter in zip(scores, own, strict=True):
        compared = {*np.argsort(-row)[:rivals].tolist(), int(adapter)}
        powers = sum(np.exp((row[other] - row[adapter]) / grid) for other in compared)
        losses += np.log(powers)
    return float(grid[losses.argmin()])


@pytest.mark.parametrize("rivals", [2, 3, 5, 6, 7])
def test_of_a_large_pool_the_best_rivals_and_the_own_adapter_count(
    monkeypatch: pytest.MonkeyPatch, rivals: int
) -> None:
    """With six adapters, the own adapter has every rank: also the last rank of the best, and ranks below the best."""
    monkeypatch.setattr("lora_retriever.retrieval.calibration.RIVALS", rivals)
    generator = np.random.default_rng(5)
    scores = generator.normal(size=(120, 6))
    own = np.array(
        [np.argsort(-row)[rank] for row, rank in zip(scores, [0] * 90 + [0, 1, 2, 3, 4, 5] * 5, strict=True)]
    )
    assert fit_temperature(HeldOut(scores, own)) == pytest.approx(temperature_by_hand(scores, own, rivals), rel=0.01)


def test_a_temperature_far_below_the_spread_of_the_scores_is_found() -> None:
    generator = np.random.default_rng(6)
    scores = np.column_stack([generator.normal(scale=0.02, size=(20_000, 2)), np.full((20_000, 2), -10.0)])
    first = 1 / (1 + np.exp((scores[:, 1] - scores[:, 0]) / 0.01))  # the other two adapters have probability 0
    own = np.where(generator.random(20_000) < first, 0, 1)
    assert fit_temperature(HeldOut(scores, own)) == pytest.approx(0.01, rel=0.1)


@pytest.mark.slow
def test_a_temperature_far_above_the_spread_of_the_scores_is_found() -> None:
    generator = np.random.default_rng(7)
    scores = generator.normal(size=(200_000, 3))
    chances = np.exp(scores / 20)
    bounds = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
    own = (generator.random(200_000)[:, None] > bounds).sum(axis=1)
    assert fit_temperature(HeldOut(scores, own)) == pytest.approx(20, rel=0.2)


def test_presence_can_be_learned_from_three_adapters() -> None:
    generator = np.random.default_rng(8)
    scores, own = generator.normal(size=(300, 3)), generator.integers(0, 3, 300)
    scores[np.arange(300), own] += 4
    presence = fit_presence(HeldOut(scores, own))
    best = -np.sort(-scores, axis=1)
    assert (presence.probability(best) > 0.5).mean() > 0.9


def test_presence_of_extreme_scores_is_0_or_1_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    presence = Presence((0.0, 1.0, 0.0))
    assert presence.probability(np.array([[-1e6, -2e6], [1e6, 0.0], [0.0, 0.0]])).tolist() == [0, 1, 0.5]
    assert not recwarn.list
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    apart = expected_calibration_error(np.array([0.85, 0.95]), np.array([True, False]), bins=10)
    assert apart == pytest.approx(0.15 / 2 + 0.95 / 2)
