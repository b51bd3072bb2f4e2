"""`AdapterIndex`: which adapters of a pool fit a query. Works on embeddings; knows neither texts nor encoders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lora_retriever.scorers import SCORERS, Array, Score

INDEX_FILE = "index.safetensors"


@dataclass(frozen=True)
class Hits:
    """What a search found: `names` [n][k] and `scores` [n, k], best first."""

    names: list[list[str]]
    scores: NDArray[np.floating]


class AdapterIndex:
    """A pool of adapters, each described by its samples' embeddings, and the scorer that compares queries with them."""

    def __init__(self, scorer: str = "cosine") -> None:
        """An empty index.

        Raises:
            ValueError: no such scorer.
        """
        if scorer not in SCORERS:
            raise ValueError(f"unknown scorer {scorer!r} (known: {', '.join(SCORERS)})")
        self.scorer = scorer
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        self._score: Score | None = None  # the scorer fitted to the pool as it stands; None after a change

    @classmethod
    def from_embeddings(cls, names: Sequence[str], embeddings: Sequence[Array], scorer: str = "cosine") -> AdapterIndex:
        """An index of one array [samples_i, dim] per name.

        Raises:
            ValueError: as `add`, or the two differ in number.
        """
        if len(names) != len(embeddings):
            raise ValueError(f"{len(names)} names but {len(embeddings)} arrays of embeddings")
        index = cls(scorer)
        for name, samples in zip(names, embeddings, strict=True):
            index.add(name, samples)
        return index

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they were added."""
        return list(self._embeddings)

    def rescored(self, scorer: str) -> AdapterIndex:
        """The same pool under another scorer."""
        return AdapterIndex.from_embeddings(self.names, list(self._embeddings.values()), scorer)

    def add(self, name: str, embeddings: Array) -> None:
        """Add an adapter by the embeddings [samples, dim] of its samples.

        Raises:
            ValueError: the name is taken, or the array is empty, of another dimension, or not finite.
        """
        samples = np.array(embeddings, dtype=np.float32)
        if name in self._embeddings:
            raise ValueError(f"adapter {name!r} is in the index already; remove it first")
        if samples.ndim != 2 or samples.size == 0:
            raise ValueError(
                f"adapter {name!r}: embeddings must be [samples, dim] with at least one sample, not {samples.shape}"
            )
        self._check(samples, f"adapter {name!r}")
        self._embeddings[name] = samples
        self._score = None

    def remove(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            KeyError: it is not in the index.
        """
        if name not in self._embeddings:
            raise KeyError(f"adapter {name!r} is not in the index")
        del self._embeddings[name]
        self._score = None

    def search(self, queries: Array, k: int, exclude: Sequence[str | None] | None = None) -> Hits:
        """The `k` best adapters for each query [n, dim]; of equal scores the adapter added first wins.

        Args:
            exclude: one adapter a query that must not be found (out-of-domain), or None.

        Raises:
            ValueError: `k` exceeds the adapters that may be found, or the queries' shape or values are wrong.
        """
        queries = np.asarray(queries)
        if queries.ndim != 2:
            raise ValueError(f"queries must be [n, dim], not {queries.shape}")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"{len(queries)} queries but {len(exclude)} exclusions")
        self._check(queries, "queries")
        places = {name: place for place, name in enumerate(self._embeddings)}
        masked = [(row, places[name]) for row, name in enumerate(exclude or ()) if name in places]
        available = len(places) - bool(masked)
        if not 1 <= k <= available:
            without = ", one of them excluded" if masked else ""
            raise ValueError(f"k is {k}, but the pool has {len(places)} adapters{without}: k must be 1 to {available}")
        if self._score is None:
            self._score = SCORERS[self.scorer](list(self._embeddings.values()))
        scores = np.array(self._score(queries))  # [n, adapters]
        for row, place in masked:
            scores[row, place] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # [n, k]
        names = self.names
        return Hits([[names[place] for place in row] for row in best], np.take_along_axis(scores, best, axis=1))

    def similarity(self) -> Array:
        """Cosine of every adapter's mean embedding with every other's, [adapters, adapters], in `names`' order."""
        samples = list(self._embeddings.values())
        return SCORERS["cosine"](samples)(np.stack([array.mean(axis=0) for array in samples]))

    def save(self, folder: Path | str) -> None:
        """Write the index to one file in `folder` in one atomic step; an older index stays readable until then."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        samples = list(self._embeddings.values())
        tensors: dict[str, NDArray[Any]] = {
            "samples": np.concatenate(samples) if samples else np.zeros((0, 0), np.float32),  # [all samples, dim]
            "counts": np.array([len(array) for array in samples], dtype=np.int64),  # [adapters]
        }
        metadata = {"names": json.dumps(self.names), "scorer": self.scorer}
        unfinished = folder / f".{INDEX_FILE}.{os.getpid()}"
        try:
            unfinished.write_bytes(save(tensors, metadata))
            os.replace(unfinished, folder / INDEX_FILE)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path | str) -> AdapterIndex:
        """Read what `save` wrote; no pickle is involved.

        Raises:
            ValueError: there is no index in the folder, or it is damaged.
        """
        path = Path(folder) / INDEX_FILE
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
                samples, counts = file.get_tensor("samples"), file.get_tensor("counts")
            names = json.loads(metadata["names"])
            arrays = np.split(samples, np.cumsum(counts)[:-1]) if names else []
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no readable index ({error})") from error
        return cls.from_embeddings(names, arrays, metadata["scorer"])

    def _check(self, vectors: Array, what: str) -> None:
        known = next(iter(self._embeddings.values()), None)
        if known is not None and vectors.shape[1] != known.shape[1]:
            raise ValueError(f"{what}: dimension {vectors.shape[1]}, but the index has {known.shape[1]}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{what}: NaN or infinite values")
