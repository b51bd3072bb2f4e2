"""`AdapterPool`: the adapters that can be found, each described by samples, and the statistics that scorers read.

Adapters are added and removed one at a time. Only the changed adapter's mean is computed again; the scatter of all
samples is a running sum, in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_retriever.retrieval.scorers import Array, Positions, Samples

TOGETHER = 256  # Maximum number of adapters whose scatter is summed in one matrix product.


@dataclass(frozen=True)
class PooledAdapter:
    """One adapter: the mean embedding [dim] of its samples, their number, and the samples (None: not kept)."""

    mean: NDArray[np.float32]
    count: int
    samples: Samples | None


class AdapterPool:
    """Adapters by name, in the order in which they were added.

    Attributes:
        constants: the values that were fitted on samples that are not kept; empty if all samples are known.
    """

    def __init__(self) -> None:
        self.constants: dict[str, float] = {}
        self._adapters: dict[str, PooledAdapter] = {}
        self._means: NDArray[np.float32] | None = None  # stacked when it is read; None after a change
        self._scatter: NDArray[np.float64] | None = None  # summed when it is first read, then kept up to date

    @classmethod
    def of_means(
        cls, names: Sequence[str], means: Array, counts: Positions, scatter: NDArray[np.float64] | None
    ) -> AdapterPool:
        """A pool without samples, of names, means [adapters, dim], counts [adapters] and scatter [dim, dim]."""
        pool = cls()
        for name, mean, count in zip(names, means.astype(np.float32), counts.tolist(), strict=True):
            pool._adapters[name] = PooledAdapter(mean, count, None)
        pool._scatter = scatter
        return pool

    def __len__(self) -> int:
        return len(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    @property
    def names(self) -> list[str]:
        """The adapters."""
        return list(self._adapters)

    @property
    def dim(self) -> int | None:
        """The embeddings' dimension; None for an empty pool."""
        first = next(iter(self._adapters.values()), None)
        return None if first is None else len(first.mean)

    @property
    def has_samples(self) -> bool:
        """Whether every adapter's samples are known."""
        return all(adapter.samples is not None for adapter in self._adapters.values())

    @property
    def has_texts(self) -> bool:
        """Whether every sample's text is known."""
        adapters = self._adapters.values()
        return all(adapter.samples is not None and adapter.samples.texts is not None for adapter in adapters)

    @property
    def means(self) -> NDArray[np.float32]:
        """The mean embedding of every adapter's samples, [adapters, dim]."""
        if self._means is None:
            self._means = np.stack([adapter.mean for adapter in self._adapters.values()])
        return self._means

    @property
    def counts(self) -> Positions:
        """The number of samples of each adapter, [adapters]."""
        return np.array([adapter.count for adapter in self._adapters.values()], dtype=np.int64)

    @property
    def samples(self) -> list[Samples]:
        """Every adapter's samples; complete only if `has_samples`."""
        return [adapter.samples for adapter in self._adapters.values() if adapter.samples is not None]

    @property
    def scatter(self) -> NDArray[np.float64]:
        """The sum over all samples x of (x − μ)(x − μ)', [dim, dim], with μ the mean of the sample's own adapter."""
        if self._scatter is None:
            assert self.dim is not None, "an empty pool has no scatter"
            self._scatter = np.zeros((self.dim, self.dim))
            adapters = list(self._adapters.values())
            for start in range(0, len(adapters), TOGETHER):
                self._scatter += _scatter_of(adapters[start : start + TOGETHER])
        return self._scatter

    def copy(self) -> AdapterPool:
        """A pool of the same adapters. Changes of either pool do not change the other."""
        pool = AdapterPool()
        pool._adapters, pool._means, pool._scatter = dict(self._adapters), self._means, self._scatter
        return pool

    def add(self, name: str, samples: Samples) -> None:
        """Add an adapter. The caller has checked its name and its embeddings."""
        mean = samples.embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
        adapter = PooledAdapter(mean, len(samples), samples)
        self._adapters[name] = adapter
        self._means = None
        if self._scatter is not None:
            self._scatter = self._scatter + _scatter_of([adapter])

    def remove(self, name: str) -> None:
        """Remove an adapter. The scatter keeps the parts of adapters without samples until all are removed."""
        adapter = self._adapters.pop(name)
        self._means = None
        if not self._adapters:
            self._scatter = None
        elif adapter.samples is None and self.has_samples:  # the last adapter without known samples
            self._scatter, self.constants = None, {}
        elif self._scatter is not None and adapter.samples is not None:
            self._scatter = self._scatter - _scatter_of([adapter])


def _scatter_of(adapters: Sequence[PooledAdapter]) -> NDArray[np.float64]:
    deviations = []
    for adapter in adapters:
        assert adapter.samples is not None, "a pool without samples comes with its scatter"
        samples = adapter.samples.embeddings.astype(np.float64)
        deviations.append(samples - samples.mean(axis=0))
    together = np.concatenate(deviations)
    return np.asarray(together.T @ together)
