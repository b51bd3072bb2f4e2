"""`lexical` and `hybrid`: the words and the form of the texts, alone or beside their meaning.

A *view* turns samples into vectors of length 1. Views are put side by side with equal weights, so the similarity of two
samples is the mean of their similarities in each view; in the space of that similarity the adapters are told apart by
the discriminant. The views weigh alike; the shrinkage is chosen by leaving samples out. Which views there are was
decided on the official benchmark, with its test figures in sight (docs/results/retrieval.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_retriever.retrieval.scorers.base import (
    Array,
    HeldOut,
    Linear,
    Places,
    Pool,
    Samples,
    scorer,
    spared,
    stacked,
    unit,
)
from lora_retriever.retrieval.scorers.discriminant import Statistics, fit_features

LANDMARKS = 2000
"""At most so many samples span the space; of a larger pool they are taken at even distances (Nyström)."""
BLOCK = 1024  # samples compared at once
TOKEN = r"\w+|[^\w\s]|\n"
"""A word, a sign, or the end of a line: prompts differ in all three."""
Matrix = Any
"""Vectors [n, features], dense or sparse."""


class View(Protocol):
    """One way of looking at samples."""

    def fit(self, samples: Samples) -> Matrix:
        """Learn what there is in a pool; the vectors of its samples."""

    def vectors(self, samples: Samples) -> Matrix:
        """The vectors of other samples."""


class NGrams:
    """tf-idf of n-grams, with the logarithm of their counts. A pool that has none is seen as nothing."""

    def __init__(self, **kind: Any) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # seconds, and most commands need none of it

        self._vectorizer = TfidfVectorizer(sublinear_tf=True, **kind)
        self._found = True

    def fit(self, samples: Samples) -> Matrix:
        """Learn the n-grams of a pool and how rare they are."""
        try:
            self._vectorizer.fit(samples.texts)
        except ValueError:
            self._found = False
        return self.vectors(samples)

    def vectors(self, samples: Samples) -> Matrix:
        """Other samples, by the n-grams that the pool has."""
        return self._vectorizer.transform(samples.texts) if self._found else np.zeros((len(samples), 1))


class Meaning:
    """The sentence encoder's embeddings."""

    def fit(self, samples: Samples) -> Matrix:
        """There is nothing to learn."""
        return self.vectors(samples)

    def vectors(self, samples: Samples) -> Matrix:
        """The embeddings, at length 1."""
        return unit(samples.embeddings)


def shape(text: str) -> str:
    """The text's form: runs of lower-case letters become one `a`, capitals `A`, numbers `0`; the rest stays."""
    return re.sub(r"[^\W\d_A-Z]+", "a", re.sub(r"[A-Z]", "A", re.sub(r"\d+", "0", text)))


def texts_alone() -> list[View]:
    """Words up to three in a row; phrases of two to six that samples share, as prompts do; form up to five wide."""
    return [
        NGrams(token_pattern=TOKEN, ngram_range=(1, 3)),
        NGrams(token_pattern=TOKEN, ngram_range=(2, 6), min_df=2, lowercase=False),
        NGrams(analyzer="char", ngram_range=(2, 5), preprocessor=shape),
    ]


@dataclass(frozen=True)
class Space:
    """The space spanned by landmark samples.

    Attributes:
        views: each view with its vectors of the landmarks, [landmarks, features].
        coordinates: from similarities with the landmarks to coordinates, [landmarks, rank].
    """

    views: list[tuple[View, Matrix]]
    coordinates: NDArray[np.float64]

    def place(self, queries: Samples) -> NDArray[np.float64]:
        """The coordinates of samples, [n, rank]."""
        return self.place_vectors([view.vectors(queries) for view, _ in self.views])

    def place_vectors(self, seen: Sequence[Matrix]) -> NDArray[np.float64]:
        """The coordinates [n, rank] of samples as each view has seen them."""
        landmarks = [vectors for _, vectors in self.views]
        blocks = [slice(start, start + BLOCK) for start in range(0, seen[0].shape[0], BLOCK)]
        return np.concatenate(
            [similarity([vectors[block] for vectors in seen], landmarks) @ self.coordinates for block in blocks]
        )


@dataclass(frozen=True)
class Discriminated:
    """A space, and the discriminant in it."""

    space: Space
    linear: Linear

    @property
    def constants(self) -> dict[str, float]:
        """The discriminant's shrinkage."""
        return self.linear.constants

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters]."""
        return self.linear.score(Samples(self.space.place(queries)))

    def held_out(self) -> HeldOut | None:
        """How samples were scored when left out of the discriminant; the views know them, but not whose they are."""
        return self.linear.held_out()


@scorer("lexical", needs_texts=True)
def lexical(pool: Pool) -> Discriminated:
    """The discriminant on words, phrases and form; embeddings are not looked at."""
    return discriminated(pool, texts_alone())


@scorer("hybrid", needs_texts=True)
def hybrid(pool: Pool) -> Discriminated:
    """The discriminant on words, phrases, form and meaning."""
    return discriminated(pool, [*texts_alone(), Meaning()])


def discriminated(pool: Pool, views: Sequence[View]) -> Discriminated:
    """Span the space by the pool's samples, place them in it, and fit the discriminant to their coordinates."""
    everything = Samples(stacked(pool), tuple(text for samples in pool.samples for text in samples.texts or ()))
    seen = [view.fit(everything) for view in views]
    chosen = np.unique(np.linspace(0, len(everything) - 1, min(len(everything), LANDMARKS)).astype(int))
    landmarks = [vectors[chosen] for vectors in seen]
    values, axes = np.linalg.eigh(similarity(landmarks, landmarks))
    if values.max() <= 0:
        raise ValueError("the samples of the pool are all empty: nothing tells adapters apart")
    kept = values > 1e-8 * values.max()
    space = Space(list(zip(views, landmarks, strict=True)), axes[:, kept] / np.sqrt(values[kept]))
    return Discriminated(space, _fit(space.place_vectors(seen), pool.counts))


def similarity(these: Sequence[Matrix], those: Sequence[Matrix]) -> NDArray[np.float64]:
    """The mean over views of the inner products of samples with others, [n, others]."""
    products = [left @ right.T for left, right in zip(these, those, strict=True)]
    dense = [product if isinstance(product, np.ndarray) else product.toarray() for product in products]
    return np.asarray(np.mean(dense, axis=0, dtype=np.float64))


def _fit(places: NDArray[np.float64], counts: Places) -> Linear:
    starts = np.cumsum([0, *counts[:-1]])
    means = np.add.reduceat(places, starts, axis=0) / counts[:, None]
    deviations = places - np.repeat(means, counts, axis=0)
    own, left_out = spared(counts)
    return fit_features(Statistics(means, counts, deviations.T @ deviations), places[left_out], own)
