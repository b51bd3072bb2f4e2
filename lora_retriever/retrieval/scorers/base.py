"""The interface of scorers. A scorer reads a pool of adapters, each described by samples, and gives scores to queries.

A scorer is fitted to a pool and then scores queries against the pool's adapters; higher is better. The fit reads the
pool alone, never a query: the constants are chosen by leaving pool samples out. To add a scorer to the project,
register a function with `scorer`. A scorer of a user's own is a `Scorer` that a profile names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lora_retriever.escaping import quoted

Array = NDArray[np.floating]
Positions = NDArray[np.int64]
Weights = Literal["cosine", "probability"]
"""The numbers of which weights are made: `Scorer.weights`."""

HELD_OUT = 2000
"""Maximum number of pool samples that are left out in turn."""
HELD_OUT_SCORES = 4_000_000
"""Maximum number of scores, left-out samples times adapters. `FEWEST_HELD_OUT` samples are left out in any case."""
FEWEST_HELD_OUT = 100


@dataclass(frozen=True)
class Samples:
    """Texts in the form that scorers read: `embeddings` [n, dim], and the `texts` themselves if known.

    Where no encoder has read the texts, dim is 0.
    """

    embeddings: Array
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True)
class HeldOut:
    """Scores of pool samples, each by a fit without the sample.

    Attributes:
        scores: [samples, adapters].
        own: index of each sample's own adapter, [samples].
    """

    scores: Array
    own: Positions

    @property
    def hits(self) -> int:
        """The number of samples that find their own adapter first."""
        return int((self.scores.argmax(axis=1) == self.own).sum())


class Fitted(Protocol):
    """A scorer that was fitted to a pool."""

    @property
    def constants(self) -> dict[str, float]:
        """The constants that were chosen on the pool, by their names."""

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters], in the pool's order."""

    def held_out(self) -> HeldOut | None:
        """The scores of the pool's own samples, each left out in turn; None if no sample can be left out."""


@runtime_checkable
class Changeable(Protocol):
    """A fitted scorer that can add or remove an adapter without a new fit. The parts that all adapters share, such as a
    covariance, are not fitted again.
    """

    def with_adapter(self, samples: Samples) -> Fitted:
        """The scorer with one more adapter, in the last place."""

    def without_adapter(self, position: int) -> Fitted:
        """The scorer without the adapter at a place."""


@dataclass(frozen=True)
class Linear:
    """Inner products with one vector [dim] per adapter, plus an offset: the form of most fitted scorers.

    Attributes:
        vectors: [adapters, dim].
        offsets: [adapters], or None for zeros.
        unit_queries: whether queries are divided by their length first.
        leave_out: computes the scores of the pool's samples, each left out in turn.
        constants: the constants that were chosen on the pool.
        vector_of: gives the vector [dim] and the offset of an adapter, from the mean [dim] of its samples.
    """

    vectors: Array
    offsets: Array | None = None
    unit_queries: bool = False
    leave_out: Callable[[], HeldOut | None] = lambda: None
    constants: dict[str, float] = field(default_factory=dict)
    vector_of: Callable[[NDArray[np.float64]], tuple[Array, float]] = lambda mean: (mean, 0.0)

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters]."""
        scores = self.prepared(queries.embeddings) @ self.vectors.T
        return scores if self.offsets is None else scores + self.offsets

    def held_out(self) -> HeldOut | None:
        """The scores of the pool's samples, each left out in turn."""
        return self.leave_out()

    def with_adapter(self, samples: Samples) -> Linear:
        """The scorer with one more adapter, in the last place. The samples that are left out stay the same."""
        vector, offset = self.vector_of(samples.embeddings.mean(axis=0, dtype=np.float64))
        vectors = np.concatenate([self.vectors, vector[None].astype(self.vectors.dtype)])
        offsets = None if self.offsets is None else np.append(self.offsets, self.offsets.dtype.type(offset))
        return replace(self, vectors=vectors, offsets=offsets)

    def without_adapter(self, position: int) -> Linear:
        """The scorer without the adapter at a place. The samples that are left out stay the same."""
        offsets = None if self.offsets is None else np.delete(self.offsets, position)
        return replace(self, vectors=np.delete(self.vectors, position, axis=0), offsets=offsets)

    def prepared(self, embeddings: Array) -> Array:
        """The queries in the form that is multiplied with the vectors."""
        return unit(embeddings) if self.unit_queries else embeddings


class Pool(Protocol):
    """The part of a pool that a scorer may read. `AdapterIndex` holds a pool and keeps the pool up to date."""

    @property
    def means(self) -> Array:
        """The mean embedding of every adapter's samples, [adapters, dim]."""

    @property
    def counts(self) -> Positions:
        """The number of samples of each adapter, [adapters]."""

    @property
    def scatter(self) -> NDArray[np.float64]:
        """The sum over all samples x of (x − μ)(x − μ)', [dim, dim], with μ the mean of the sample's own adapter."""

    @property
    def has_samples(self) -> bool:
        """Whether the samples are known. A private index keeps no samples."""

    @property
    def constants(self) -> dict[str, float]:
        """The values that were fitted on samples that are not kept."""

    @property
    def samples(self) -> Sequence[Samples]:
        """Every adapter's samples."""


@dataclass(frozen=True)
class Scorer:
    """A rule by which queries are compared with adapters.

    Attributes:
        name: the scorer's name in an index. A profile names a scorer of a user's own by `module:object`.
        fit: fits the scorer to a pool.
        needs_samples: whether the scorer needs the samples (a private index keeps means and covariance only).
        needs_texts: whether the scorer reads the texts of samples and queries.
        needs_embeddings: whether the scorer reads embeddings. If not, no encoder is loaded for the scorer.
        weights: the numbers of which `retrieval.temperature` makes weights: the scores themselves if the scores are
            cosines, or the calibrated probabilities.
    """

    name: str
    fit: Callable[[Pool], Fitted]
    needs_samples: bool = False
    needs_texts: bool = False
    needs_embeddings: bool = True
    weights: Weights = "probability"

    def __post_init__(self) -> None:
        """Check the fields. A scorer that reads texts needs the samples.

        Raises:
            ValueError: the scorer reads neither texts nor embeddings, or a field is wrong.
        """
        if not isinstance(self.name, str) or not callable(self.fit):
            raise ValueError(f"a scorer has a name and a function that fits it, not {self.name!r} and {self.fit!r:.80}")
        if self.weights not in get_args(Weights):
            raise ValueError(f"scorer {self.name}: weights is {self.weights!r} (known: {', '.join(get_args(Weights))})")
        if not self.needs_texts and not self.needs_embeddings:
            raise ValueError(f"scorer {self.name}: it reads neither texts nor embeddings")
        object.__setattr__(self, "needs_samples", self.needs_samples or self.needs_texts)


Fit = TypeVar("Fit", bound=Callable[[Pool], Fitted])
SCORERS: dict[str, Scorer] = {}


def scorer(
    name: str,
    *,
    needs_samples: bool = False,
    needs_texts: bool = False,
    needs_embeddings: bool = True,
    weights: Weights = "probability",
) -> Callable[[Fit], Fit]:
    """Register a scorer of the project under the name that profiles and the command line use."""

    def register(fit: Fit) -> Fit:
        SCORERS[name] = Scorer(name, fit, needs_samples, needs_texts, needs_embeddings, weights)
        return fit

    return register


def as_scorer(scorer: str | Scorer) -> Scorer:
    """The scorer itself, or the project's scorer of this name.

    Raises:
        ValueError: there is no such scorer, or a scorer of a user's own has the name of a scorer of the project.
    """
    if isinstance(scorer, Scorer):
        if SCORERS.get(scorer.name, scorer) != scorer:
            raise ValueError(f"scorer {scorer.name!r}: the project has a scorer of this name; name yours otherwise")
        return scorer
    if scorer not in SCORERS:
        raise ValueError(f"unknown scorer {quoted(scorer)} (known: {', '.join(SCORERS)})")
    return SCORERS[scorer]


def unit(vectors: Array) -> Array:
    """Rows divided by their length; a row of zeros stays zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths))


def spared(counts: Positions) -> tuple[Positions, Positions]:
    """Pool samples to leave out in turn: the index of each sample's adapter, and its position among all samples.

    Both are in the samples' order. An adapter with a single sample keeps the sample. If there are more samples than the
    maximum, samples at even distances are taken.
    """
    own = np.repeat(np.arange(len(counts)), counts)
    positions = np.flatnonzero(counts[own] > 1)
    most = max(min(HELD_OUT, HELD_OUT_SCORES // max(len(counts), 1)), FEWEST_HELD_OUT)
    if len(positions) > most:
        positions = positions[np.linspace(0, len(positions) - 1, most).astype(int)]
    return own[positions], positions


def stacked(pool: Pool) -> Array:
    """The embeddings of all samples, [all samples, dim]."""
    return np.concatenate([samples.embeddings for samples in pool.samples])
