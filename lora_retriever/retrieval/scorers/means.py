"""`mean_ip` and `cosine`: an adapter is described by the mean of its samples."""

from __future__ import annotations

import numpy as np

from lora_retriever.retrieval.scorers.base import Array, HeldOut, Linear, Pool, Samples, scorer, spared, stacked, unit


@scorer("mean_ip")
def mean_ip(pool: Pool) -> Linear:
    """Inner product x·μ with the unnormalised mean. The original's code computes this product; the paper says cosine.

    Adapters with varied samples have short means, so their scores are low.
    """
    return _by_mean(pool, pool.means, unit_means=False)


@scorer("cosine", weights="cosine")
def cosine(pool: Pool) -> Linear:
    """Cosine of the query with the mean, x·μ / |x||μ|: the paper's text (section 3.1)."""
    return _by_mean(pool, unit(pool.means), unit_means=True)


def _by_mean(pool: Pool, vectors: Array, unit_means: bool) -> Linear:
    """Inner products with the means. A left-out sample is compared with its own adapter's mean without the sample."""

    def leave_out() -> HeldOut | None:
        if not pool.has_samples:
            return None
        own, positions = spared(pool.counts)
        if not len(own):
            return None
        samples, n = stacked(pool)[positions], pool.counts[own][:, None]
        without = (n * pool.means[own] - samples) / (n - 1)
        scores = linear.score(Samples(samples))
        compared = unit(without) if unit_means else without
        scores[np.arange(len(own)), own] = (linear.prepared(samples) * compared).sum(axis=1)
        return HeldOut(scores, own)

    linear = Linear(
        vectors,
        unit_queries=unit_means,
        leave_out=leave_out,
        vector_of=lambda mean: (unit(mean.astype(np.float32)) if unit_means else mean, 0.0),
    )
    return linear
