"""From retrieval scores to probabilities, fitted on pool samples that are left out in turn.

Given that the pool has the input's own adapter, the probability that an adapter is the own adapter is a softmax with a
fitted temperature. The probability that the pool has the own adapter is a logistic regression on the two best scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_retriever.retrieval.scorers import Array, HeldOut

BINS = 15
RIVALS = 256
"""Maximum number of adapters with which a sample's own adapter is compared: the best ones. Others hardly count."""


def fit_temperature(held_out: HeldOut) -> float:
    """The temperature T with which softmax(scores / T) gives own adapters the highest likelihood (Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar  # takes a second to import

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

    # Scores have any scale: the search spans a factor of a million around their standard deviation.
    centre = np.log(max(float(scores[np.isfinite(scores)].std()), 1e-12))
    return float(np.exp(minimize_scalar(loss, bounds=(centre - 9, centre + 5), method="bounded").x))


def softmax(scores: Array, temperature: float) -> NDArray[np.float64]:
    """Probabilities [n, adapters] of scores [n, adapters]; a score of −∞ has probability 0."""
    from scipy import special

    return np.asarray(special.softmax(scores.astype(np.float64) / temperature, axis=1))


@dataclass(frozen=True)
class Presence:
    """The probability that an input's own adapter is in the pool: σ(w₀ + w₁ s₁ + w₂ (s₁ − s₂)), with s₁ ≥ s₂ ≥ ….

    Attributes:
        weights: w₀, w₁ and w₂, for scores in the scorer's unit.
    """

    weights: tuple[float, float, float]

    def probability(self, scores: Array) -> NDArray[np.float64]:
        """Probabilities [n] from the best scores [n, 2 or more], best first."""
        from scipy import special

        constant, best, gap = self.weights
        logits = constant + best * scores[:, 0] + gap * (scores[:, 0] - scores[:, 1])
        return np.asarray(special.expit(logits.astype(np.float64)))


def fit_presence(held_out: HeldOut) -> Presence:
    """Fit the probability to every pool sample twice: left out of its own adapter, and with the own adapter masked.

    Raises:
        ValueError: the pool has fewer than three adapters, so a masked sample has no two scores.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if held_out.scores.shape[1] < 3:
        raise ValueError("whether an adapter is in the pool cannot be learned from fewer than three adapters")
    masked = np.array(held_out.scores, dtype=np.float64)
    masked[np.arange(len(masked)), held_out.own] = -np.inf
    best = [-np.partition(-scores, 1, axis=1)[:, :2] for scores in (held_out.scores, masked)]
    features = np.concatenate([np.column_stack([pair[:, 0], pair[:, 0] - pair[:, 1]]) for pair in best])  # [2n, 2]
    known = np.repeat([1, 0], len(masked))  # [2n]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, known)
    scale, regression = model[0], model[1]
    slopes = regression.coef_[0] / scale.scale_
    constant = regression.intercept_[0] - float(slopes @ scale.mean_)
    return Presence((float(constant), float(slopes[0]), float(slopes[1])))


def expected_calibration_error(probabilities: Array, correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Mean distance of stated probabilities from shares of right results: Σ over bins of share × |mean − share right|.

    Args:
        probabilities: stated for the best adapter of each query, [n].
        correct: whether the best adapter is the own adapter, [n].
        bins: number of bins of equal width between 0 and 1.
    """
    bin_of = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    gaps = [
        (bin_of == number).mean() * abs(probabilities[bin_of == number].mean() - correct[bin_of == number].mean())
        for number in range(bins)
        if (bin_of == number).any()
    ]
    return float(np.sum(gaps))
