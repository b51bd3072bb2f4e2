"""`nearest` and `knn`: an adapter is described by its samples, and the samples most similar to the query count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_retriever.retrieval.scorers.base import (
    Array,
    HeldOut,
    Pool,
    Positions,
    Samples,
    scorer,
    spared,
    stacked,
    unit,
)

NEIGHBOURS = (1, 2, 3, 5, 8, 12, 20)


@dataclass(frozen=True)
class Neighbours:
    """Mean cosine of the query with the `k` most similar samples of the adapter (with all, if there are fewer).

    Attributes:
        samples: unit embeddings of all samples, [all samples, dim], ordered by adapter.
        counts: number of samples of each adapter.
    """

    samples: Array
    counts: Positions
    k: int

    @property
    def constants(self) -> dict[str, float]:
        """The number of neighbours."""
        return {"neighbours": self.k}

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters]."""
        return best_means(unit(queries.embeddings) @ self.samples.T, self.counts, [self.k])[0]

    def with_adapter(self, samples: Samples) -> Neighbours:
        """The scorer with one more adapter, in the last place."""
        both = np.concatenate([self.samples, unit(samples.embeddings)])
        return replace(self, samples=both, counts=np.append(self.counts, len(samples)))

    def without_adapter(self, position: int) -> Neighbours:
        """The scorer without the adapter at a place."""
        end = int(self.counts[: position + 1].sum())
        gone = slice(end - int(self.counts[position]), end)
        return replace(self, samples=np.delete(self.samples, gone, axis=0), counts=np.delete(self.counts, position))

    def held_out(self) -> HeldOut | None:
        """The scores of pool samples, none of which counts as its own neighbour."""
        return leave_out(self.samples, self.counts, [self.k])[0]


@scorer("nearest", needs_samples=True, weights="cosine")
def nearest(pool: Pool) -> Neighbours:
    """Cosine with the most similar single sample of the adapter."""
    return Neighbours(unit(stacked(pool)), pool.counts, 1)


@scorer("knn", needs_samples=True, weights="cosine")
def knn(pool: Pool) -> Neighbours:
    """Mean cosine with the k most similar samples.

    k is the element of `NEIGHBOURS` with which most held-out samples find their own adapter first.
    """
    samples = unit(stacked(pool))
    found = leave_out(samples, pool.counts, NEIGHBOURS)
    hits = [0 if held_out is None else held_out.hits for held_out in found]
    return Neighbours(samples, pool.counts, NEIGHBOURS[int(np.argmax(hits))])


def leave_out(samples: Array, counts: Positions, ks: Sequence[int]) -> list[HeldOut | None]:
    """Scores of pool samples for several k. No sample counts as its own neighbour."""
    own, positions = spared(counts)
    if not len(own):
        return [None] * len(ks)
    similarities = samples[positions] @ samples.T
    similarities[np.arange(len(positions)), positions] = np.nan
    return [HeldOut(scores, own) for scores in best_means(similarities, counts, ks)]


def best_means(similarities: Array, counts: Positions, ks: Sequence[int]) -> list[Array]:
    """Per k, the mean of each adapter's k highest similarities, [n, adapters], from similarities [n, all samples].

    NaN is left out. An adapter with fewer than k similarities has the mean of all.
    """
    means = [np.empty((len(similarities), len(counts)), similarities.dtype) for _ in ks]
    for adapter, (end, count) in enumerate(zip(np.cumsum(counts), counts, strict=True)):
        best = -np.sort(-similarities[:, end - count : end], axis=1)  # NaN comes last
        known = np.maximum((~np.isnan(best)).sum(axis=1), 1)
        totals = np.cumsum(np.nan_to_num(best), axis=1)
        for mean, k in zip(means, ks, strict=True):
            taken = np.minimum(k, known)
            mean[:, adapter] = totals[np.arange(len(best)), taken - 1] / taken
    return means
