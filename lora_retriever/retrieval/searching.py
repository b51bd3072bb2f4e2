"""The search of an index: a fitted scorer, its calibration, and the best adapters of each query."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_retriever.retrieval.calibration import RIVALS, Presence, fit_presence, fit_temperature, softmax
from lora_retriever.retrieval.scorers import Array, Fitted, Linear, Positions, Samples

LARGE = 4096
"""Minimum number of adapters for a search of inner products by faiss, which is exact and faster than sorting."""


class State:
    """Everything that is computed from a pool at its first search."""

    def __init__(self, fitted: Fitted, temperature: float | None) -> None:
        """Begin with a fitted scorer. `temperature`: recorded before, if the samples are not known any more."""
        self.fitted = fitted
        self._recorded = temperature

    @cached_property
    def temperature(self) -> float | None:
        """The softmax temperature of probabilities. None: no sample can be left out."""
        if self._recorded is not None:
            return self._recorded
        held_out = self.fitted.held_out()
        return None if held_out is None else fit_temperature(held_out)

    @cached_property
    def presence(self) -> Presence | None:
        """Gives the probability that the own adapter is in the pool. None: no sample can be left out."""
        held_out = self.fitted.held_out()
        return None if held_out is None else fit_presence(held_out)

    def changed(self, fitted: Fitted) -> State:
        """The state with a scorer to which an adapter was added, or from which an adapter was removed.

        The calibration is not fitted again.
        """
        state = State(fitted, self._recorded)
        calibrated = ("temperature", "presence")
        state.__dict__.update({name: self.__dict__[name] for name in calibrated if name in self.__dict__})
        return state

    def prepare(self) -> None:
        """Fit and calibrate now, and not at the first search."""
        _ = self.temperature
        if isinstance(self.fitted, Linear) and len(self.fitted.vectors) >= LARGE:
            _ = self.faiss

    @cached_property
    def faiss(self) -> Any:
        """faiss's exact index of the vectors with their offsets as one more dimension."""
        import faiss

        assert isinstance(self.fitted, Linear)
        vectors = _with_offset(self.fitted.vectors, self.fitted.offsets)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index


def search(
    state: State, queries: Samples, k: int, masked: dict[int, list[int]], available: int
) -> tuple[Positions, Array, NDArray[np.float64] | None]:
    """The best k adapters of each query: indices and scores [n, k], and their probabilities [n, k] if calibrated.

    Args:
        masked: for each query, the indices of the adapters that must not be found.
        available: the least number of adapters that a query can find.
    """
    if isinstance(state.fitted, Linear) and len(state.fitted.vectors) >= LARGE:
        wanted = k if state.temperature is None else max(k, RIVALS)
        best, scores = _search_large(state, state.fitted, queries, min(wanted, available), masked)
    else:
        best, scores = _search_all(state.fitted, queries, masked)
    probabilities = None if state.temperature is None else softmax(scores, state.temperature)[:, :k]
    return best[:, :k], scores[:, :k], probabilities


def _search_all(fitted: Fitted, queries: Samples, masked: dict[int, list[int]]) -> tuple[Positions, Array]:
    """All adapters for every query, best first: indices and scores [n, adapters]; masked adapters last, with −∞."""
    scores = np.array(fitted.score(queries))
    for row, positions in masked.items():
        scores[row, positions] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")
    return best, np.take_along_axis(scores, best, axis=1)


def _search_large(
    state: State, fitted: Linear, queries: Samples, k: int, masked: dict[int, list[int]]
) -> tuple[Positions, Array]:
    """The best k for every query by faiss, best first: indices and scores [n, k]; equal scores in faiss's order."""
    asked = _with_offset(
        fitted.prepared(queries.embeddings), np.ones(len(queries)) if fitted.offsets is not None else None
    )
    scores, best = state.faiss.search(asked, k + max(map(len, masked.values()), default=0))
    for row, positions in masked.items():
        kept = np.flatnonzero(~np.isin(best[row], positions))[:k]
        best[row, :k], scores[row, :k] = best[row, kept], scores[row, kept]
    return best[:, :k], scores[:, :k]


def _with_offset(vectors: Array, offsets: Array | None) -> NDArray[np.float32]:
    """Vectors [n, dim] with their offsets [n] as one more dimension, in the form that faiss reads."""
    joined = vectors if offsets is None else np.column_stack([vectors, offsets])
    return np.ascontiguousarray(joined, dtype=np.float32)
