"""`AdapterIndex`: which adapters of a pool fit a query. Works on embeddings, and on texts if the scorer reads texts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from lora_retriever.data.rows import PoolEntry
from lora_retriever.files import sweep_unfinished, write_bytes
from lora_retriever.retrieval.encoders import Encoder
from lora_retriever.retrieval.encoding import encode_samples, encode_texts
from lora_retriever.retrieval.index_file import (
    MOST_SAMPLES,
    check_scatter,
    check_values,
    constants_of,
    float32,
    list_of_texts,
    read_parts,
)
from lora_retriever.retrieval.pool import AdapterPool
from lora_retriever.retrieval.scorers import (
    SCORERS,
    Array,
    Changeable,
    Positions,
    Samples,
    Scorer,
    as_scorer,
)
from lora_retriever.retrieval.scorers.base import unit
from lora_retriever.retrieval.searching import State, search

INDEX_FILE = "index.safetensors"


@dataclass(frozen=True)
class Hits:
    """The adapters that a search found, best first.

    Attributes:
        names: `[n][k]`, a list of k names for each query.
        scores: `[n, k]`, on the scorer's own scale.
        probabilities: `[n, k]`, that the adapter is the input's own, calibrated on the pool; None if no sample could be
            left out for the calibration. In a pool of `LARGE` adapters or more, only the best `RIVALS` adapters share
            the probability.
    """

    names: list[list[str]]
    scores: NDArray[np.floating]
    probabilities: NDArray[np.float64] | None


class AdapterIndex:
    """A pool of adapters, and the scorer that compares queries with them.

    Adapters may be added and removed at any time. A search then finds the same as in a new index of the same adapters
    (the running sums of `discriminant` differ by rounding in double precision).
    """

    def __init__(self, scorer: str | Scorer = "cosine", encoder: Encoder | None = None) -> None:
        """An empty index.

        Args:
            scorer: the name of one of the project's scorers, or a scorer of your own.
            encoder: the encoder by which `search_texts` encodes texts.

        Raises:
            ValueError: there is no such scorer.
        """
        self._rule = as_scorer(scorer)
        self._encoder = encoder
        self._pool = AdapterPool()
        self._state: State | None = None
        self._hidden: frozenset[str] = frozenset()

    @classmethod
    def from_embeddings(
        cls,
        names: Sequence[str],
        embeddings: Sequence[Array],
        scorer: str | Scorer = "cosine",
        texts: Sequence[Sequence[str]] | None = None,
    ) -> AdapterIndex:
        """An index of one array [samples_i, dim] per name, and the samples' texts if the scorer reads texts.

        An index without embeddings has arrays [samples_i, 0]; its scorer reads texts alone.

        Raises:
            ValueError: as for `add`, or the numbers of names, arrays and lists of texts differ.
        """
        if len(names) != len(embeddings) or (texts is not None and len(texts) != len(names)):
            described = "" if texts is None else f" and {len(texts)} lists of texts"
            raise ValueError(f"{len(names)} names but {len(embeddings)} arrays of embeddings{described}")
        index = cls(scorer)
        for position, (name, samples) in enumerate(zip(names, embeddings, strict=True)):
            index.add(name, samples, None if texts is None else texts[position])
        return index

    @classmethod
    def from_texts(
        cls,
        pool: Mapping[str, Sequence[str]] | Sequence[PoolEntry],
        encoder: Encoder | None = None,
        scorer: str | Scorer = "hybrid",
    ) -> AdapterIndex:
        """An index of texts, ready for `search_texts`.

        Args:
            pool: the result of `read_pool`, from which the samples' inputs are taken; or texts by the adapters' names.
            encoder: encodes the texts, if the scorer reads embeddings. None: the scorer reads texts alone.

        Raises:
            ValueError: as for `add`; there is no such scorer, the scorer reads embeddings and there is no encoder, or
                the encoder gives no embeddings.
        """
        described = pool if isinstance(pool, Mapping) else {e.model_name: [s.inputs for s in e.sample] for e in pool}
        index = cls(scorer, encoder)
        for name, texts in described.items():
            if isinstance(texts, str):
                raise ValueError(f"adapter {name!r}: give a list of texts, not one text")
        embeddings: Sequence[Array | None] = [None] * len(described)
        if described and index._rule.needs_embeddings:
            embeddings = encode_samples(index._needed_encoder(), list(described.values()))
        for (name, texts), samples in zip(described.items(), embeddings, strict=True):
            index.add(name, samples, texts)
        return index

    @property
    def scorer(self) -> str:
        """The scorer's name."""
        return self._rule.name

    @property
    def needs_embeddings(self) -> bool:
        """Whether the scorer reads embeddings."""
        return self._rule.needs_embeddings

    @property
    def has_embeddings(self) -> bool:
        """Whether the adapters have embeddings, or their samples' texts alone. An empty index may get any."""
        return self._pool.dim != 0

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they were added."""
        return self._pool.names

    @property
    def temperature(self) -> float | None:
        """The softmax temperature that turns scores into probabilities, fitted on left-out pool samples.

        None: no sample can be left out.

        Raises:
            ValueError: the index is empty.
        """
        return self._fitted().temperature

    @property
    def weight_unit(self) -> float:
        """The step of the score by which a weight of temperature 1 changes by the factor e.

        Weights of temperature T are w_p ∝ exp(s_p / (T u)) with this unit u. Where weights are made of cosines, u is 1.
        Where weights are made of calibrated probabilities P(p) ∝ exp(s_p / τ), u is τ, so that w_p ∝ P(p)^(1/T).

        Raises:
            ValueError: the index is empty, or no sample can be left out to calibrate the probabilities.
        """
        if self._rule.weights == "cosine":
            return 1.0
        if self.temperature is None:
            raise ValueError(
                f"scorer {self.scorer} has no calibrated probabilities for this pool, because no sample can be left out"
            )
        return self.temperature

    def rescored(self, scorer: str | Scorer) -> AdapterIndex:
        """The same pool under another scorer.

        Raises:
            ValueError: there is no such scorer, or the scorer needs samples, texts or embeddings that this index does
                not have.
        """
        index = AdapterIndex(scorer, self._encoder)
        index._pool = self._pool.copy()
        if index._rule == self._rule:
            index._pool.constants = self._pool.constants
        if index._rule.needs_texts and not self._pool.has_texts:
            raise ValueError(f"scorer {index.scorer} reads the samples' texts, which this index does not know")
        if index._rule.needs_samples and not self._pool.has_samples:
            raise ValueError(f"scorer {index.scorer} needs the samples, which a private index does not keep")
        if index._rule.needs_embeddings and not self.has_embeddings:
            raise ValueError(f"scorer {index.scorer} reads embeddings, which this index does not have")
        return index

    def hiding(self, names: Collection[str]) -> AdapterIndex:
        """The present index, but with searches that never find these adapters. Unknown names hide nothing."""
        index = AdapterIndex(self._rule, self._encoder)
        index._pool, index._state, index._hidden = self._pool, self._fitted(), self._hidden | frozenset(names)
        return index

    def with_adapter(
        self, name: str, embeddings: Array | None, texts: Sequence[str] | None = None, quick: bool = True
    ) -> AdapterIndex:
        """A new index with one more adapter. This index does not change, so searches go on meanwhile.

        Args:
            quick: whether the parts that all adapters share are kept without a new fit: the covariance, the n-grams,
                constants, the calibration. A quick change takes a small part of the time of a new fit; `refitted` fits
                the parts later. A scorer of your own is fitted anew, unless the scorer is `Changeable`.

        Raises:
            ValueError: as for `add`.
        """
        index = self._copy()
        index.add(name, embeddings, texts)
        if quick and self._state is not None and isinstance(self._state.fitted, Changeable):
            samples = index._pool.samples[-1]
            index._state = self._state.changed(self._state.fitted.with_adapter(samples))
        return index

    def without_adapter(self, name: str, quick: bool = True) -> AdapterIndex:
        """A new index without an adapter; see `with_adapter`.

        Raises:
            KeyError: the adapter is not in the index.
        """
        index = self._copy()
        index.remove(name)
        if quick and len(index._pool) and self._state is not None and isinstance(self._state.fitted, Changeable):
            index._state = self._state.changed(self._state.fitted.without_adapter(self.names.index(name)))
        return index

    def refitted(self) -> AdapterIndex:
        """A new index of the same adapters, with everything fitted anew and ready for its first search.

        Raises:
            ValueError: the index is empty.
        """
        index = self._copy()
        index.prepare()
        return index

    def prepare(self) -> None:
        """Fit and calibrate now, and not at the first search.

        Raises:
            ValueError: the index is empty.
        """
        self._fitted().prepare()

    def _copy(self) -> AdapterIndex:
        """The same adapters and scorer, not fitted."""
        index = AdapterIndex(self._rule, self._encoder)
        index._pool, index._hidden = self._pool.copy(), self._hidden
        index._pool.constants = self._pool.constants
        return index

    def add(self, name: str, embeddings: Array | None, texts: Sequence[str] | None = None) -> None:
        """Add an adapter by the embeddings [samples, dim] of its samples, and their texts if the scorer reads texts.

        Args:
            embeddings: None if the scorer reads texts alone.

        Raises:
            ValueError: the name is taken or no text, the array is empty, of another dimension, not finite, or has too
                large values, the number of texts differs, or something is missing that the scorer reads.
        """
        if not isinstance(name, str):
            raise ValueError(f"an adapter's name must be a text, not {name!r}")
        if embeddings is None and self._rule.needs_embeddings:
            raise ValueError(f"adapter {name!r}: scorer {self.scorer} reads the samples' embeddings; give them as well")
        given = np.zeros((len(texts or ()), 0)) if embeddings is None else embeddings
        vectors = float32(given, f"adapter {name!r}")
        if name in self._pool:
            raise ValueError(f"adapter {name!r} is in the index already; remove it first")
        if vectors.ndim != 2 or not len(vectors) or (self._rule.needs_embeddings and not vectors.size):
            raise ValueError(
                f"adapter {name!r}: embeddings must be [samples, dim] with at least one sample, not {vectors.shape}"
            )
        if texts is not None and len(texts) != len(vectors):
            raise ValueError(f"adapter {name!r}: {len(vectors)} embeddings but {len(texts)} texts")
        if texts is None and self._rule.needs_texts:
            raise ValueError(f"adapter {name!r}: scorer {self.scorer} reads the samples' texts; give them as well")
        self._check(vectors, f"adapter {name!r}")
        self._pool.add(name, Samples(vectors, None if texts is None else tuple(texts)))
        self._state = None

    def remove(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            KeyError: the adapter is not in the index.
        """
        if name not in self._pool:
            raise KeyError(f"adapter {name!r} is not in the index")
        self._pool.remove(name)
        self._state = None

    def search(
        self,
        queries: Array | None,
        k: int,
        exclude: Sequence[str | None] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Hits:
        """The `k` best adapters for each query [n, dim]. For equal scores, the adapter that was added earlier is first.

        Args:
            queries: None if the scorer reads texts alone.
            exclude: per query the adapter that is masked (out-of-domain), or None; a name that the pool does not have
                masks no adapter.
            texts: the queries' texts, if the scorer reads texts.

        Raises:
            ValueError: `k` exceeds the number of adapters that are not masked, the queries' shape or values are wrong,
                or something is missing that the scorer reads.
        """
        if queries is None and self._rule.needs_embeddings:
            raise ValueError(f"scorer {self.scorer} reads the queries' embeddings; give them as well")
        vectors = np.zeros((len(texts or ()), self._pool.dim or 0)) if queries is None else np.asarray(queries)
        if vectors.ndim != 2:
            raise ValueError(f"queries must be [n, dim], not {vectors.shape}")
        for what, given in (("exclusions", exclude), ("texts", texts)):
            if given is not None and len(given) != len(vectors):
                raise ValueError(f"{len(vectors)} queries but {len(given)} {what}")
        if texts is None and self._rule.needs_texts:
            raise ValueError(f"scorer {self.scorer} reads the queries' texts; give them as well")
        self._check(vectors, "queries")
        position_of = {name: position for position, name in enumerate(self.names)}
        hidden = [position_of[name] for name in self._hidden if name in position_of]
        masked = {
            row: sorted({*hidden, *([position_of[name]] if name in position_of else [])})
            for row, name in enumerate(exclude or [None] * len(vectors))
        }
        available = len(position_of) - max(map(len, masked.values()), default=len(hidden))
        if not 1 <= k <= available:
            without = f", {len(position_of) - available} of them masked" if available < len(position_of) else ""
            raise ValueError(
                f"k is {k}, but the pool has {len(position_of)} adapters{without}: k must be 1 to {available}"
            )
        if not len(vectors):
            return Hits([], np.zeros((0, k)), None)
        asked, names = Samples(vectors, None if texts is None else tuple(texts)), self.names
        best, scores, probabilities = search(self._fitted(), asked, k, masked, available)
        return Hits([[names[position] for position in row] for row in best.tolist()], scores, probabilities)

    def search_texts(self, texts: Sequence[str], k: int, exclude: Sequence[str | None] | None = None) -> Hits:
        """The `k` best adapters for each text, by `search`. The index's encoder encodes the texts.

        Raises:
            ValueError: as for `search`, or the scorer reads embeddings and the index has no encoder.
        """
        queries = encode_texts(self._needed_encoder(), texts) if self._rule.needs_embeddings else None
        return self.search(queries, k, exclude, texts)

    def presence(self, hits: Hits) -> NDArray[np.float64] | None:
        """The probability [n] that the query's own adapter is in the pool at all, from a search with k = 2 or more.

        The probability is fitted on held-out samples of the pool. Each sample is scored twice: with its own adapter in
        the pool, and with its own adapter masked. None if no sample can be left out, as in a private index.

        Raises:
            ValueError: the search was for fewer than two adapters, or the pool has fewer than three.
        """
        if hits.scores.shape[1] < 2:
            raise ValueError("presence needs the two best scores; search with k = 2 or more")
        presence = self._fitted().presence
        return None if presence is None else presence.probability(hits.scores)

    def similarity(self) -> NDArray[np.float64]:
        """Cosines between the adapters' mean embeddings, [adapters, adapters], in the order of `names`.

        Raises:
            ValueError: the index is empty, or has no embeddings.
        """
        self._check_filled()
        if not self.has_embeddings:
            raise ValueError("the index has no embeddings: its scorer reads texts alone")
        means = unit(self._pool.means.astype(np.float64))
        return np.asarray(means @ means.T)

    def sample_cosines(self, queries: Array) -> tuple[Array, Positions]:
        """Cosines [n, samples] of queries [n, dim] with all samples, and each sample's adapter as its place in `names`.

        Raises:
            ValueError: the index is empty, has no embeddings, or keeps no single samples.
        """
        self._check_filled()
        if not self.has_embeddings or not self._pool.has_samples:
            raise ValueError("the index has no embeddings of single samples")
        samples = np.concatenate([samples.embeddings for samples in self._pool.samples])
        owners = np.repeat(np.arange(len(self._pool)), self._pool.counts)
        return unit(queries) @ unit(samples).T, owners

    def save(self, folder: Path | str, private: bool = False) -> None:
        """Write the index to one file in `folder` in one atomic step; an older index stays readable until then.

        Texts are kept only if the scorer reads texts.

        Args:
            private: keep only the adapters' means, their numbers of samples, and the covariance that all share: no text
                and no single sample. Adapters may be added to a private index and removed from a private index. A
                private index keeps the covariance and the temperature of the adapters with which it was saved until all
                these adapters are removed.

        Raises:
            ValueError: a private index is asked for, and the index is empty, its scorer needs the samples, or an
                adapter has a single sample, whose embedding the mean would reveal.
        """
        if private and self._rule.needs_samples:
            fit = ", ".join(name for name, other in SCORERS.items() if not other.needs_samples)
            raise ValueError(f"scorer {self.scorer} needs the samples, which a private index does not keep (try {fit})")
        private = private or not self._pool.has_samples
        if private:
            self._check_filled()
            single = [name for name, count in zip(self.names, self._pool.counts, strict=True) if count == 1]
            if single:
                raise ValueError(f"adapter {single[0]!r} has a single sample, which a private index would give away")
        metadata = {"names": json.dumps(self.names), "scorer": self.scorer}
        if private:  # the values that were fitted on samples that are not kept
            metadata["constants"] = json.dumps({**self._fitted().fitted.constants, "temperature": self.temperature})
        sweep_unfinished(Path(folder))
        write_bytes(Path(folder) / INDEX_FILE, save(self._tensors(private), metadata))

    @classmethod
    def load(
        cls, folder: Path | str, encoder: Encoder | None = None, scorer: str | Scorer | None = None
    ) -> AdapterIndex:
        """Read the file that `save` wrote; no pickle is involved.

        Args:
            encoder: the encoder by which `search_texts` encodes texts.
            scorer: the scorer with which the index was saved. Needed for a scorer of your own: the file has its name
                alone.

        Raises:
            ValueError: there is no index in the folder, the file is damaged or holds no sound index, or the index has
                another scorer.
        """
        path = Path(folder) / INDEX_FILE
        try:
            return cls._read(path, encoder, scorer)
        except KeyError as error:
            raise ValueError(f"{path}: no readable index ({error} is missing)") from error
        except (OSError, SafetensorError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(f"{path}: no readable index ({error})") from error

    @classmethod
    def _read(cls, path: Path, encoder: Encoder | None, scorer: str | Scorer | None) -> AdapterIndex:
        """The index of a file.

        Raises:
            KeyError: a part is missing.
            ValueError: a part is not sound.
        """
        metadata, tensors = read_parts(path)
        saved = metadata["scorer"]
        index, counts = cls(saved if scorer is None else scorer, encoder), tensors["counts"]
        # a user's own scorer may have got another name since
        if index.scorer != saved and {index.scorer, saved} & SCORERS.keys():
            raise ValueError(f"its scorer is {saved!r}, not {index.scorer!r}")
        names = list_of_texts(metadata["names"], "names")
        if len(set(names)) != len(names):
            raise ValueError("an adapter is named twice")
        if len(counts) != len(names) or (len(counts) and not 1 <= counts.min() <= counts.max() <= MOST_SAMPLES):
            raise ValueError(f"{len(names)} adapters do not have {len(counts)} counts of samples from 1 on")
        if "means" in tensors:
            if index._rule.needs_samples:
                raise ValueError(f"scorer {index.scorer} needs the samples, which the file does not hold")
            means = float32(tensors["means"], "means")
            if len(means) != len(names) or not means.size:
                raise ValueError(f"{len(names)} adapters but means of shape {means.shape}")
            check_values(means, "means")
            scatter = tensors["scatter"].astype(np.float64)
            check_scatter(scatter, means, counts)
            index._pool = AdapterPool.of_means(names, means, counts, scatter)
            index._pool.constants = constants_of(metadata["constants"])
            return index
        samples = tensors["samples"]
        ends = np.cumsum(counts, dtype=np.int64)
        if len(samples) != sum(counts.tolist()):
            raise ValueError(f"the adapters count {sum(counts.tolist())} samples, but the file holds {len(samples)}")
        arrays = np.split(samples, ends[:-1]) if names else []
        texts = None
        if "texts" in tensors:
            every = list_of_texts(tensors["texts"].tobytes().decode("utf-8", "surrogatepass"), "texts")
            if len(every) != len(samples):
                raise ValueError(f"{len(every)} texts but {len(samples)} samples")
            texts = [every[end - count : end] for end, count in zip(ends, counts, strict=True)]
        for position, (name, array) in enumerate(zip(names, arrays, strict=True)):
            index.add(name, array, None if texts is None else texts[position])
        return index

    def _tensors(self, private: bool) -> dict[str, NDArray[Any]]:
        """The tensors of a file: samples, or means and scatter instead."""
        if private:
            return {"means": self._pool.means, "counts": self._pool.counts, "scatter": self._pool.scatter}
        samples = self._pool.samples
        tensors: dict[str, NDArray[Any]] = {
            "samples": np.concatenate([s.embeddings for s in samples]) if samples else np.zeros((0, 0), np.float32),
            "counts": self._pool.counts,  # [adapters]
        }
        if samples and self._rule.needs_texts:
            texts = json.dumps([text for s in samples for text in s.texts or ()], ensure_ascii=False)
            tensors["texts"] = np.frombuffer(texts.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        return tensors

    def _fitted(self) -> State:
        self._check_filled()
        if self._state is None:
            self._state = State(self._rule.fit(self._pool), self._pool.constants.get("temperature"))
        return self._state

    def _needed_encoder(self) -> Encoder:
        if self._encoder is None:
            raise ValueError(f"scorer {self.scorer} reads embeddings, and the index has no encoder; give one")
        return self._encoder

    def _check_filled(self) -> None:
        if not len(self._pool):
            raise ValueError("the index is empty")

    def _check(self, vectors: Array, what: str) -> None:
        if self._pool.dim is not None and vectors.shape[1] != self._pool.dim:
            raise ValueError(f"{what}: dimension {vectors.shape[1]}, but the index has {self._pool.dim}")
        check_values(vectors, what)
