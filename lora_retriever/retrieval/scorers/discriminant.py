"""`discriminant`: directions that distinguish adapters count; directions that vary within all adapters do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lora_retriever.retrieval.scorers.base import HeldOut, Linear, Pool, Positions, scorer, spared, stacked

SHRINKAGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
NOTHING = 1e-10
"""Maximum variance, as a share of the mean square, that counts as rounding: all samples of each adapter are equal."""
WITHOUT_SAMPLES = 0.1
"""The shrinkage if no sample can be left out: adapters with one sample each, or a pool of means alone."""


@scorer("discriminant")
def discriminant(pool: Pool) -> Linear:
    """Linear discriminant x'C⁻¹μ − ½ μ'C⁻¹μ (Fisher, 1936), with C the covariance within adapters, shared by all.

    C = (1 − λ) W + λ tr(W)/dim I. W is the mean outer product of all samples' deviations from their adapter's mean. λ
    is the element of `SHRINKAGES` with which most samples, each left out in turn, find their own adapter.
    """
    return fit(Statistics(pool.means.astype(np.float64), pool.counts, pool.scatter), pool)


@dataclass(frozen=True)
class Statistics:
    """The statistics that the discriminant reads from a pool: means [adapters, dim], counts [adapters], scatter [dim,
    dim]."""

    means: NDArray[np.float64]
    counts: Positions
    scatter: NDArray[np.float64]

    @property
    def level(self) -> float:
        """The mean variance of a dimension within adapters, tr(W)/dim; 0 if the variance is only rounding."""
        variance = float(np.trace(self.scatter)) / max(int(self.counts.sum()), 1) / len(self.scatter)
        return variance if variance > NOTHING * float((self.means**2).mean()) else 0.0


def fit(known: Statistics, pool: Pool) -> Linear:
    """The discriminant of a pool's embeddings."""
    if not pool.has_samples:
        return discriminate(known, pool.constants.get("shrinkage", WITHOUT_SAMPLES))
    own, positions = spared(known.counts)
    return fit_features(known, stacked(pool)[positions].astype(np.float64), own)


def fit_features(known: Statistics, samples: NDArray[np.float64], own: Positions) -> Linear:
    """The discriminant with the shrinkage that has most hits on left-out `samples` [n, dim] of adapters `own` [n]."""
    if not len(own) or not known.level:
        return discriminate(known, WITHOUT_SAMPLES)
    shrinkage, held_out = max(leave_out(known, samples, own), key=lambda candidate: candidate[1].hits)
    return discriminate(known, shrinkage, held_out)


def discriminate(known: Statistics, shrinkage: float, held_out: HeldOut | None = None) -> Linear:
    """The discriminant with a given shrinkage, as inner products and offsets."""
    dim = len(known.scatter)
    within = known.scatter / max(int(known.counts.sum()), 1)
    # If nothing varies within adapters, as with one sample each, the plain distance to the mean remains.
    level = known.level
    covariance = (1 - shrinkage) * within + shrinkage * level * np.eye(dim) if level else np.eye(dim)
    vectors = np.linalg.solve(covariance, known.means.T).T  # [adapters, dim]
    offsets = -0.5 * (known.means * vectors).sum(axis=1)

    @cache
    def factor() -> tuple[NDArray[np.float64], bool]:
        """The Cholesky factor of the covariance, made when the first adapter is added."""
        from scipy.linalg import cho_factor

        return cho_factor(covariance)

    def vector_of(mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        from scipy.linalg import cho_solve

        vector = cho_solve(factor(), mean)
        return vector, float(-0.5 * mean @ vector)

    return Linear(
        vectors.astype(np.float32),
        offsets.astype(np.float32),
        leave_out=lambda: held_out,
        constants={"shrinkage": shrinkage},
        vector_of=vector_of,
    )


def leave_out(known: Statistics, samples: NDArray[np.float64], own: Positions) -> Iterator[tuple[float, HeldOut]]:
    """For every shrinkage the scores of samples [n, dim], each by a fit without the sample.

    The scores are exact, except that the level tr(W)/dim remains the level of all samples. Let x be a sample of an
    adapter with mean μ and m samples, and d = x − μ. Without x, the mean is μ − d/(m − 1), and the scatter is smaller
    by m/(m − 1) dd'. So the inverse covariance changes by one outer product (Sherman and Morrison, 1950). All scores
    are then sums of the products x'Pμ, d'Pμ and so on, where P is the inverse with the sample. P is diagonal in the
    axes of the scatter, so the products are cheap.
    """
    total = int(known.counts.sum())
    values, axes = np.linalg.eigh(known.scatter)
    values = np.maximum(values, 0)
    means, x = known.means @ axes, samples @ axes  # [adapters, dim], [n, dim]
    m = known.counts[own].astype(np.float64)
    d = x - means[own]  # [n, dim]
    rows = np.arange(len(own))
    for shrinkage in SHRINKAGES:
        share = (1 - shrinkage) / (total - 1)
        inverse = 1 / (share * values + shrinkage * known.level)  # [dim]
        weighted = d * inverse
        xm, dm = (x * inverse) @ means.T, weighted @ means.T  # x'P μ and d'P μ, [n, adapters]
        mm = (means * means) @ inverse  # μ'P μ, [adapters]
        xd, dd = (weighted * x).sum(axis=1), (weighted * d).sum(axis=1)  # [n]
        c = share * m / (m - 1)
        gain = c / np.maximum(1 - c * dd, np.finfo(float).eps)  # P' = P + gain (Pd)(Pd)'
        scores = xm + (gain * xd)[:, None] * dm - 0.5 * (mm + gain[:, None] * dm**2)
        grown = 1 + gain * dd  # d'P' y = grown · d'P y
        own_dm, own_mm = dm[rows, own], mm[own] + gain * dm[rows, own] ** 2
        without = own_mm - 2 * grown * own_dm / (m - 1) + grown * dd / (m - 1) ** 2
        scores[rows, own] = xm[rows, own] + gain * xd * own_dm - grown * xd / (m - 1) - 0.5 * without
        yield shrinkage, HeldOut(scores, own)
