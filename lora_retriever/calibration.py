"""From scores to probabilities: a softmax whose temperature is fitted on pool samples left out in turn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_retriever.scorers import Array, HeldOut

BINS = 15
RIVALS = 256
"""In a larger pool a sample's own adapter is weighed against its best so many alone; the others hardly count."""


def fit_temperature(held_out: HeldOut) -> float:
    """The temperature T under which softmax(scores / T) makes own adapters likeliest (Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar  # a second to import, and `--help` needs none of it

    own = held_out.scores[np.arange(len(held_out.own)), held_out.own][:, None]
    scores = held_out.scores
    if scores.shape[1] > RIVALS:
        best = -np.partition(-scores, RIVALS, axis=1)[:, :RIVALS]
        scores = np.column_stack([best, np.where(own < best.min(axis=1, keepdims=True), own, -np.inf)])
    highest = scores.max(axis=1, keepdims=True)
    scores, own = scores - highest, (own - highest)[:, 0]

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((np.log(np.exp(scores / temperature).sum(axis=1)) - own / temperature).mean())

    # Scores are of any scale: the search spans a factor of a million around their own spread.
    centre = np.log(max(float(scores[np.isfinite(scores)].std()), 1e-12))
    return float(np.exp(minimize_scalar(loss, bounds=(centre - 9, centre + 5), method="bounded").x))


def softmax(scores: Array, temperature: float) -> NDArray[np.float64]:
    """Probabilities [n, adapters] of scores [n, adapters]; a score of −∞ has none."""
    scaled = scores.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def expected_calibration_error(probabilities: Array, correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """How far stated and true frequency of being right lie apart: Σ over bins of share × |mean stated − share right|.

    Args:
        probabilities: stated for what was found first, [n].
        correct: whether that was right, [n].
        bins: of equal width over 0 to 1.
    """
    places = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    gaps = [
        (places == place).mean() * abs(probabilities[places == place].mean() - correct[places == place].mean())
        for place in range(bins)
        if (places == place).any()
    ]
    return float(np.sum(gaps))
