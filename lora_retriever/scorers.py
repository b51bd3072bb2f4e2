"""Scorers: how like an adapter's samples a query is.

A scorer is fitted to the pool's sample embeddings, one array [samples, dim] an adapter, and gives a function from
queries [n, dim] to scores [n, adapters], higher is better. Registering a function here is all it takes to add one.
Constants are chosen on the pool's samples alone; no scorer ever sees a test row before it scores it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Score = Callable[[Array], Array]
Scorer = Callable[[Sequence[Array]], Score]

SCORERS: dict[str, Scorer] = {}

SHRINKAGES = (0.03, 0.1, 0.3, 0.6)
FOLDS = 5


def scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Register a scorer under the name by which profiles and the command line ask for it."""

    def register(function: Scorer) -> Scorer:
        SCORERS[name] = function
        return function

    return register


@scorer("mean_ip")
def mean_ip(pool: Sequence[Array]) -> Score:
    """Inner product with the unnormalised mean of the samples: what the original computes; its paper says cosine.

    Adapters with varied samples have short means and lose.
    """
    means = _means(pool)
    return lambda queries: queries @ means.T


@scorer("cosine")
def cosine(pool: Sequence[Array]) -> Score:
    """Cosine of the query with the mean of the samples: the paper's text (section 3.1)."""
    means = _unit(_means(pool))
    return lambda queries: _unit(queries) @ means.T


@scorer("nearest")
def nearest(pool: Sequence[Array]) -> Score:
    """Cosine with the most similar single sample of the adapter."""
    samples = _unit(np.concatenate(list(pool)))
    starts = np.cumsum([0, *(len(samples) for samples in pool)])[:-1]
    return lambda queries: np.maximum.reduceat(_unit(queries) @ samples.T, starts, axis=1)


@scorer("discriminant")
def discriminant(pool: Sequence[Array]) -> Score:
    """Linear discriminant: x' S⁻¹ μ − ½ μ' S⁻¹ μ, with S the covariance within adapters, shared by all and shrunk.

    S = (1 − λ) W + λ tr(W)/dim I, where W averages the adapters' covariances. λ is the one of `SHRINKAGES` that
    puts most held-out pool samples first.
    """
    shrinkage = max(SHRINKAGES, key=lambda candidate: _held_out_hits(pool, candidate))
    return _fit_discriminant(pool, shrinkage)


def _fit_discriminant(pool: Sequence[Array], shrinkage: float) -> Score:
    means = _means(pool).astype(np.float64)
    deviations = np.concatenate([samples - mean for samples, mean in zip(pool, means, strict=True)])  # [samples, dim]
    within = deviations.T @ deviations / len(deviations)  # [dim, dim]
    dim = len(within)
    level = np.trace(within) / dim
    # One sample an adapter leaves no deviation; the plain distance to the mean remains.
    covariance = (1 - shrinkage) * within + shrinkage * level * np.eye(dim) if level > 0 else np.eye(dim)
    directions = np.linalg.solve(covariance, means.T)  # [dim, adapters]
    offsets = 0.5 * np.einsum("ad,da->a", means, directions)
    return lambda queries: queries @ directions - offsets


def _held_out_hits(pool: Sequence[Array], shrinkage: float) -> int:
    """How many pool samples find their own adapter when fold by fold they are left out of the fit."""
    hits = 0
    for fold in range(FOLDS):
        # An adapter of a single sample keeps it: it cannot be fitted without.
        held_out = [samples[fold::FOLDS] if len(samples) > 1 else samples[:0] for samples in pool]
        kept = [np.delete(s, np.s_[fold::FOLDS], axis=0) if len(s) > 1 else s for s in pool]
        score = _fit_discriminant(kept, shrinkage)
        own = np.repeat(np.arange(len(pool)), [len(samples) for samples in held_out])
        hits += int((score(np.concatenate(held_out)).argmax(axis=1) == own).sum())
    return hits


def _means(pool: Sequence[Array]) -> Array:
    return np.stack([samples.mean(axis=0) for samples in pool])  # [adapters, dim]


def _unit(vectors: Array) -> Array:
    """Rows divided by their length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
