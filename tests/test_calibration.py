"""Temperatures and calibration error on data of known truth."""

from __future__ import annotations

import numpy as np
import pytest

from lora_retriever.calibration import expected_calibration_error, fit_temperature, softmax
from lora_retriever.scorers import HeldOut


@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_the_temperature_that_made_the_data_is_found(scale: float) -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(scale=2, size=(4000, 10))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    own = np.array([generator.choice(10, p=row) for row in chances])
    assert fit_temperature(HeldOut(scores * scale, own)) == pytest.approx(scale, rel=0.05)
    assert softmax(scores * scale, scale) == pytest.approx(chances)


def test_what_may_not_be_found_has_no_probability() -> None:
    assert softmax(np.array([[0.0, -np.inf, 0.0]]), 2.0) == pytest.approx(np.array([[0.5, 0.0, 0.5]]))


def test_calibration_error_by_hand() -> None:
    stated = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, True])
    assert expected_calibration_error(stated, right, bins=10) == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.45)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
