"""What scorers are given and what they give: a pool of adapters described by samples, and scores of queries.

A scorer is fitted to a pool and then scores queries against its adapters, higher is better. It sees the pool's samples
and nothing else before it scores: its constants are chosen by leaving pool samples out. Registering a function here is
all it takes to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Places = NDArray[np.int64]

HELD_OUT = 2000
HELD_OUT_SCORES = 4_000_000
"""At most so many pool samples are left out in turn, and fewer if that makes more scores than this; never under 100."""


@dataclass(frozen=True)
class Samples:
    """Texts as scorers see them: `embeddings` [n, dim], and the `texts` themselves where they are known."""

    embeddings: Array
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True)
class HeldOut:
    """Scores [samples, adapters] of pool samples by fits that did not know them, and the own adapters [samples]."""

    scores: Array
    own: Places

    @property
    def hits(self) -> int:
        """How many find their own adapter first."""
        return int((self.scores.argmax(axis=1) == self.own).sum())


class Fitted(Protocol):
    """A scorer that knows its pool."""

    @property
    def constants(self) -> dict[str, float]:
        """The constants that were chosen on the pool, by name."""

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters], in the pool's order."""

    def held_out(self) -> HeldOut | None:
        """How it would have scored the pool's own samples, each left out in turn; None where none can be spared."""


@dataclass(frozen=True)
class Linear:
    """Inner products with one vector [dim] per adapter, plus an offset: what most scorers come to once fitted.

    Attributes:
        vectors: [adapters, dim].
        offsets: [adapters], or None for zeros.
        unit_queries: whether queries are first divided by their length.
        leave_out: computes the scores of the pool's samples, each left out in turn.
        constants: those chosen on the pool.
    """

    vectors: Array
    offsets: Array | None = None
    unit_queries: bool = False
    leave_out: Callable[[], HeldOut | None] = lambda: None
    constants: dict[str, float] = field(default_factory=dict)

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters]."""
        scores = self.prepared(queries.embeddings) @ self.vectors.T
        return scores if self.offsets is None else scores + self.offsets

    def held_out(self) -> HeldOut | None:
        """The scores of the pool's samples, each left out in turn."""
        return self.leave_out()

    def prepared(self, embeddings: Array) -> Array:
        """The queries as they are multiplied."""
        return unit(embeddings) if self.unit_queries else embeddings


class Pool(Protocol):
    """What a scorer may know of a pool; `AdapterIndex` keeps one, and keeps it up to date."""

    @property
    def means(self) -> Array:
        """The mean embedding of every adapter's samples, [adapters, dim]."""

    @property
    def counts(self) -> Places:
        """How many samples each adapter has, [adapters]."""

    @property
    def scatter(self) -> NDArray[np.float64]:
        """The sum over all samples of (x − mean)(x − mean)', [dim, dim], the mean being that of the own adapter."""

    @property
    def has_samples(self) -> bool:
        """Whether the samples are known; a private index keeps none."""

    @property
    def constants(self) -> dict[str, float]:
        """What was fitted on samples that are not known any more."""

    @property
    def samples(self) -> Sequence[Samples]:
        """Every adapter's samples."""


@dataclass(frozen=True)
class Scorer:
    """A way to compare queries with adapters.

    Attributes:
        fit: makes a scorer of a pool.
        needs_samples: whether it is lost without the samples (a private index keeps means and covariance only).
        needs_texts: whether it reads the texts, the queries' included.
    """

    name: str
    fit: Callable[[Pool], Fitted]
    needs_samples: bool
    needs_texts: bool


SCORERS: dict[str, Scorer] = {}


def scorer(
    name: str, *, needs_samples: bool = False, needs_texts: bool = False
) -> Callable[[Callable[[Pool], Fitted]], Callable[[Pool], Fitted]]:
    """Register a scorer under the name by which profiles and the command line ask for it."""

    def register(fit: Callable[[Pool], Fitted]) -> Callable[[Pool], Fitted]:
        SCORERS[name] = Scorer(name, fit, needs_samples or needs_texts, needs_texts)
        return fit

    return register


def unit(vectors: Array) -> Array:
    """Rows divided by their length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths))


def spared(counts: Places) -> tuple[Places, Places]:
    """Pool samples to leave out in turn: each one's adapter, and its place among all samples, in their order.

    An adapter of a single sample keeps it. Of many they are taken at even distances.
    """
    own = np.repeat(np.arange(len(counts)), counts)
    places = np.flatnonzero(counts[own] > 1)
    most = max(min(HELD_OUT, HELD_OUT_SCORES // max(len(counts), 1)), 100)
    if len(places) > most:
        places = places[np.linspace(0, len(places) - 1, most).astype(int)]
    return own[places], places


def stacked(pool: Pool) -> Array:
    """The embeddings of all samples, [all samples, dim]."""
    return np.concatenate([samples.embeddings for samples in pool.samples])
