"""`AdapterIndex`: which adapters of a pool fit a query. Works on embeddings, and on texts where a scorer reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lora_retriever.retrieval.calibration import RIVALS, Presence, fit_presence, fit_temperature, softmax
from lora_retriever.retrieval.pool import AdapterPool
from lora_retriever.retrieval.scorers import SCORERS, Array, Fitted, Linear, Places, Samples
from lora_retriever.retrieval.scorers.base import unit

INDEX_FILE = "index.safetensors"
LARGE = 4096
"""From so many adapters on, scorers that are inner products are searched by faiss: exact, and faster than sorting."""


@dataclass(frozen=True)
class Hits:
    """What a search found, best first.

    Attributes:
        names: [n][k].
        scores: [n, k], on the scorer's own scale.
        probabilities: [n, k], that this adapter is the input's own, calibrated on the pool; None where no sample could
            be left out for it. In a pool of `LARGE` or more they are shared among the best `RIVALS` alone.
    """

    names: list[list[str]]
    scores: NDArray[np.floating]
    probabilities: NDArray[np.float64] | None


class _State:
    """What is computed of a pool when it is first searched, and thrown away when it changes."""

    def __init__(self, fitted: Fitted, temperature: float | None) -> None:
        self.fitted = fitted
        self._recorded = temperature

    @cached_property
    def temperature(self) -> float | None:
        if self._recorded is not None:
            return self._recorded
        held_out = self.fitted.held_out()
        return None if held_out is None else fit_temperature(held_out)

    @cached_property
    def presence(self) -> Presence | None:
        held_out = self.fitted.held_out()
        return None if held_out is None else fit_presence(held_out)

    @cached_property
    def faiss(self) -> Any:
        """faiss's exact index of the vectors with their offsets as one more dimension."""
        import faiss

        assert isinstance(self.fitted, Linear)
        vectors = _with_offset(self.fitted.vectors, self.fitted.offsets)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index


class AdapterIndex:
    """A pool of adapters, and the scorer that compares queries with them.

    Adapters may be added and removed at any time; what is then found equals what a new index of the same adapters finds
    (the running sums behind `discriminant` differ by rounding in double precision).
    """

    def __init__(self, scorer: str = "cosine") -> None:
        """An empty index.

        Raises:
            ValueError: no such scorer.
        """
        if scorer not in SCORERS:
            raise ValueError(f"unknown scorer {scorer!r} (known: {', '.join(SCORERS)})")
        self.scorer = scorer
        self._pool = AdapterPool()
        self._state: _State | None = None

    @classmethod
    def from_embeddings(
        cls,
        names: Sequence[str],
        embeddings: Sequence[Array],
        scorer: str = "cosine",
        texts: Sequence[Sequence[str]] | None = None,
    ) -> AdapterIndex:
        """An index of one array [samples_i, dim] per name, and the samples' texts where the scorer reads them.

        Raises:
            ValueError: as `add`, or they differ in number.
        """
        if len(names) != len(embeddings) or (texts is not None and len(texts) != len(names)):
            described = "" if texts is None else f" and {len(texts)} lists of texts"
            raise ValueError(f"{len(names)} names but {len(embeddings)} arrays of embeddings{described}")
        index = cls(scorer)
        for place, (name, samples) in enumerate(zip(names, embeddings, strict=True)):
            index.add(name, samples, None if texts is None else texts[place])
        return index

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they were added."""
        return self._pool.names

    @property
    def temperature(self) -> float | None:
        """The softmax temperature that makes scores probabilities, fitted on pool samples left out; None: no such.

        Raises:
            ValueError: the index is empty.
        """
        return self._fitted().temperature

    def rescored(self, scorer: str) -> AdapterIndex:
        """The same pool under another scorer.

        Raises:
            ValueError: no such scorer, or one that needs samples or texts which this index does not have.
        """
        index = AdapterIndex(scorer)
        index._pool = self._pool.copy()
        if scorer == self.scorer:
            index._pool.constants = self._pool.constants
        if SCORERS[scorer].needs_texts and not self._pool.has_texts:
            raise ValueError(f"scorer {scorer} reads the samples' texts, which this index does not know")
        if SCORERS[scorer].needs_samples and not self._pool.has_samples:
            raise ValueError(f"scorer {scorer} needs the samples, which a private index does not keep")
        return index

    def add(self, name: str, embeddings: Array, texts: Sequence[str] | None = None) -> None:
        """Add an adapter by the embeddings [samples, dim] of its samples, and their texts where the scorer reads them.

        Raises:
            ValueError: the name is taken, the array is empty, of another dimension, or not finite, or the texts are not
                as many.
        """
        vectors = np.array(embeddings, dtype=np.float32)
        if name in self._pool:
            raise ValueError(f"adapter {name!r} is in the index already; remove it first")
        if vectors.ndim != 2 or vectors.size == 0:
            raise ValueError(
                f"adapter {name!r}: embeddings must be [samples, dim] with at least one sample, not {vectors.shape}"
            )
        if texts is not None and len(texts) != len(vectors):
            raise ValueError(f"adapter {name!r}: {len(vectors)} embeddings but {len(texts)} texts")
        if texts is None and SCORERS[self.scorer].needs_texts:
            raise ValueError(f"adapter {name!r}: scorer {self.scorer} reads the samples' texts; give them as well")
        self._check(vectors, f"adapter {name!r}")
        self._pool.add(name, Samples(vectors, None if texts is None else tuple(texts)))
        self._state = None

    def remove(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            KeyError: it is not in the index.
        """
        if name not in self._pool:
            raise KeyError(f"adapter {name!r} is not in the index")
        self._pool.remove(name)
        self._state = None

    def search(
        self,
        queries: Array,
        k: int,
        exclude: Sequence[str | None] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Hits:
        """The `k` best adapters for each query [n, dim]; of equal scores the adapter added first wins.

        Args:
            exclude: one adapter a query that must not be found (out-of-domain), or None; names that the pool does not
                have exclude nothing.
            texts: the queries' texts, where the scorer reads them.

        Raises:
            ValueError: `k` exceeds the adapters that may be found, the queries' shape or values are wrong, or texts are
                wanted and not given.
        """
        vectors = np.asarray(queries)
        if vectors.ndim != 2:
            raise ValueError(f"queries must be [n, dim], not {vectors.shape}")
        for what, given in (("exclusions", exclude), ("texts", texts)):
            if given is not None and len(given) != len(vectors):
                raise ValueError(f"{len(vectors)} queries but {len(given)} {what}")
        if texts is None and SCORERS[self.scorer].needs_texts:
            raise ValueError(f"scorer {self.scorer} reads the queries' texts; give them as well")
        self._check(vectors, "queries")
        places = {name: place for place, name in enumerate(self.names)}
        masked = {row: places[name] for row, name in enumerate(exclude or ()) if name in places}
        available = len(places) - bool(masked)
        if not 1 <= k <= available:
            without = ", one of them excluded" if masked else ""
            raise ValueError(f"k is {k}, but the pool has {len(places)} adapters{without}: k must be 1 to {available}")
        if not len(vectors):
            return Hits([], np.zeros((0, k)), None)
        state, asked = self._fitted(), Samples(vectors, None if texts is None else tuple(texts))
        if len(places) >= LARGE and isinstance(state.fitted, Linear):
            wanted = k if state.temperature is None else max(k, RIVALS)
            best, scores = _search_large(state, state.fitted, asked, min(wanted, available), masked)
        else:
            best, scores = _search_all(state.fitted, asked, masked)
        probabilities = None if state.temperature is None else softmax(scores, state.temperature)[:, :k]
        names = self.names
        return Hits([[names[place] for place in row[:k]] for row in best.tolist()], scores[:, :k], probabilities)

    def presence(self, hits: Hits) -> NDArray[np.float64] | None:
        """The probability [n] that the query's own adapter is in the pool at all, from a search for two or more.

        Fitted on pool samples, each scored as if left out and with its own adapter masked. None where no sample can be
        left out, as in a private index.

        Raises:
            ValueError: the hits are of fewer than two adapters, or the pool has fewer than three.
        """
        if hits.scores.shape[1] < 2:
            raise ValueError("presence is judged by the two best scores; search for k = 2 or more")
        presence = self._fitted().presence
        return None if presence is None else presence.probability(hits.scores)

    def similarity(self) -> NDArray[np.float64]:
        """Cosine of every adapter's mean embedding with every other's, [adapters, adapters], ordered as `names`."""
        self._check_filled()
        means = unit(self._pool.means.astype(np.float64))
        return np.asarray(means @ means.T)

    def save(self, folder: Path | str, private: bool = False) -> None:
        """Write the index to one file in `folder` in one atomic step; an older index stays readable until then.

        Texts are kept only where the scorer reads them.

        Args:
            private: keep only the adapters' means, their numbers of samples, and the covariance that all share: no text
                and no single sample. Adapters may still be added to such an index and removed from it; until all of
                those it was saved with are removed, it keeps their covariance and temperature.

        Raises:
            ValueError: a private index is asked for, and it is empty, its scorer cannot do without the samples, or an
                adapter has a single one, which its mean would give away.
        """
        scorer = SCORERS[self.scorer]
        if private and scorer.needs_samples:
            fit = ", ".join(name for name, other in SCORERS.items() if not other.needs_samples)
            raise ValueError(f"scorer {self.scorer} needs the samples, which a private index does not keep (try {fit})")
        private = private or not self._pool.has_samples
        if private:
            self._check_filled()
            single = [name for name, count in zip(self.names, self._pool.counts, strict=True) if count == 1]
            if single:
                raise ValueError(f"adapter {single[0]!r} has a single sample, which a private index would give away")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self._tensors(private)
        metadata = {"names": json.dumps(self.names), "scorer": self.scorer}
        if private:  # what was fitted on samples that are not kept
            metadata["constants"] = json.dumps({**self._fitted().fitted.constants, "temperature": self.temperature})
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
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            names, scorer, counts = json.loads(metadata["names"]), metadata["scorer"], tensors["counts"]
            if "means" in tensors:
                index = cls(scorer)
                index._pool = AdapterPool.of_means(names, tensors["means"], counts, tensors["scatter"])
                index._pool.constants = json.loads(metadata["constants"])
                return index
            ends = np.cumsum(counts)
            arrays = np.split(tensors["samples"], ends[:-1]) if names else []
            texts = None
            if "texts" in tensors:
                every = json.loads(tensors["texts"].tobytes().decode("utf-8", "surrogatepass"))
                texts = [every[end - count : end] for end, count in zip(ends, counts, strict=True)]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no readable index ({error})") from error
        return cls.from_embeddings(names, arrays, scorer, texts)

    def _tensors(self, private: bool) -> dict[str, NDArray[Any]]:
        """What a file holds: samples, or means and scatter in their place."""
        if private:
            return {"means": self._pool.means, "counts": self._pool.counts, "scatter": self._pool.scatter}
        samples = self._pool.samples
        tensors: dict[str, NDArray[Any]] = {
            "samples": np.concatenate([s.embeddings for s in samples]) if samples else np.zeros((0, 0), np.float32),
            "counts": self._pool.counts,  # [adapters]
        }
        if samples and SCORERS[self.scorer].needs_texts:
            texts = json.dumps([text for s in samples for text in s.texts or ()], ensure_ascii=False)
            tensors["texts"] = np.frombuffer(texts.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        return tensors

    def _fitted(self) -> _State:
        self._check_filled()
        if self._state is None:
            self._state = _State(SCORERS[self.scorer].fit(self._pool), self._pool.constants.get("temperature"))
        return self._state

    def _check_filled(self) -> None:
        if not len(self._pool):
            raise ValueError("the index is empty")

    def _check(self, vectors: Array, what: str) -> None:
        if self._pool.dim is not None and vectors.shape[1] != self._pool.dim:
            raise ValueError(f"{what}: dimension {vectors.shape[1]}, but the index has {self._pool.dim}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{what}: NaN or infinite values")


def _search_all(fitted: Fitted, queries: Samples, masked: dict[int, int]) -> tuple[Places, Array]:
    """All adapters for every query, best first: places and scores [n, adapters]; the masked come last with −∞."""
    scores = np.array(fitted.score(queries))
    for row, place in masked.items():
        scores[row, place] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")
    return best, np.take_along_axis(scores, best, axis=1)


def _search_large(
    state: _State, fitted: Linear, queries: Samples, k: int, masked: dict[int, int]
) -> tuple[Places, Array]:
    """The best k for every query by faiss, best first: places and scores [n, k]. Equal scores come in faiss's order."""
    asked = _with_offset(
        fitted.prepared(queries.embeddings), np.ones(len(queries)) if fitted.offsets is not None else None
    )
    scores, best = state.faiss.search(asked, k + bool(masked))
    for row, place in masked.items():
        kept = np.flatnonzero(best[row] != place)[:k]
        best[row, :k], scores[row, :k] = best[row, kept], scores[row, kept]
    return best[:, :k], scores[:, :k]


def _with_offset(vectors: Array, offsets: Array | None) -> NDArray[np.float32]:
    """Vectors [n, dim] with their offsets [n] as one more dimension, as faiss wants them."""
    joined = vectors if offsets is None else np.column_stack([vectors, offsets])
    return np.ascontiguousarray(joined, dtype=np.float32)
