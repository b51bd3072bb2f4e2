"""`lexical` and `hybrid`: the words and the form of the texts, alone or beside their meaning.

A *view* turns samples into vectors of length 1. Views are joined with equal weights: the similarity of two samples is
the mean of their similarities in the views. The discriminant distinguishes the adapters in the space of this
similarity. The discriminant's shrinkage is chosen by leaving samples out. The views were chosen on the official
benchmark, with knowledge of its test figures (docs/results/retrieval.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_retriever.retrieval.scorers.base import (
    Array,
    HeldOut,
    Linear,
    Pool,
    Positions,
    Samples,
    scorer,
    spared,
    stacked,
    unit,
)
from lora_retriever.retrieval.scorers.discriminant import Statistics, fit_features

LANDMARKS = 2000
"""Maximum number of samples that span the space. In a larger pool, samples at even distances are taken (Nyström)."""
BLOCK = 1024
"""Maximum number of samples that are compared with the landmarks at once."""
TOKEN = r"\w+|[^\w\s]|\n"
"""A word, a punctuation mark, or the end of a line: prompts differ in all three."""
Matrix = Any
"""Vectors [n, features], dense or sparse."""


class View(Protocol):
    """A view, which turns samples into vectors."""

    def fit(self, samples: Samples) -> Matrix:
        """Learn the features of a pool's samples; give the samples' vectors."""

    def vectors(self, samples: Samples) -> Matrix:
        """The vectors of other samples."""


class NGrams:
    """tf-idf of n-grams, with the logarithm of their counts. In a pool without n-grams all vectors are 0."""

    def __init__(self, **kind: Any) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # takes seconds to import

        self._vectorizer = TfidfVectorizer(sublinear_tf=True, **kind)
        self._found = True

    def fit(self, samples: Samples) -> Matrix:
        """Learn the n-grams of a pool and their frequencies."""
        try:
            return self._vectorizer.fit_transform(samples.texts)
        except ValueError:
            self._found = False
            return self.vectors(samples)

    def vectors(self, samples: Samples) -> Matrix:
        """The vectors of other samples, over the n-grams of the pool."""
        return self._vectorizer.transform(samples.texts) if self._found else np.zeros((len(samples), 1))


class Meaning:
    """The sentence encoder's embeddings."""

    def fit(self, samples: Samples) -> Matrix:
        """The vectors of a pool's samples. This view learns nothing."""
        return self.vectors(samples)

    def vectors(self, samples: Samples) -> Matrix:
        """The embeddings, divided by their length."""
        return unit(samples.embeddings)


def shape(text: str) -> str:
    """The text's form: runs of lower-case letters become one `a`, each capital `A`, numbers `0`; the rest stays."""
    return re.sub(r"[^\W\d_A-Z]+", "a", re.sub(r"[A-Z]", "A", re.sub(r"\d+", "0", text)))


def texts_alone() -> list[View]:
    """Views of 1 to 3 words, of phrases of 2 to 6 words in several samples, and of 2 to 5 characters of the form."""
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
        coordinates: matrix from similarities with the landmarks to coordinates, [landmarks, rank].
    """

    views: list[tuple[View, Matrix]]
    coordinates: NDArray[np.float64]

    def coordinates_of(self, queries: Samples) -> NDArray[np.float64]:
        """The coordinates of samples, [n, rank]."""
        return self.coordinates_of_vectors([view.vectors(queries) for view, _ in self.views])

    def coordinates_of_vectors(self, seen: Sequence[Matrix]) -> NDArray[np.float64]:
        """The coordinates [n, rank] of samples, from their vectors in each view."""
        landmarks = [vectors for _, vectors in self.views]
        blocks = [slice(start, start + BLOCK) for start in range(0, seen[0].shape[0], BLOCK)]
        return np.concatenate(
            [similarity([vectors[block] for vectors in seen], landmarks) @ self.coordinates for block in blocks]
        )


@dataclass(frozen=True)
class Discriminated:
    """A space, and the discriminant in the space."""

    space: Space
    linear: Linear

    @property
    def constants(self) -> dict[str, float]:
        """The discriminant's shrinkage."""
        return self.linear.constants

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters]."""
        return self.linear.score(Samples(self.space.coordinates_of(queries)))

    def with_adapter(self, samples: Samples) -> Discriminated:
        """The scorer with one more adapter, in the last place. Views, landmarks and covariance stay as they are."""
        return replace(self, linear=self.linear.with_adapter(Samples(self.space.coordinates_of(samples))))

    def without_adapter(self, position: int) -> Discriminated:
        """The scorer without the adapter at a place. Views, landmarks and covariance stay as they are."""
        return replace(self, linear=self.linear.without_adapter(position))

    def held_out(self) -> HeldOut | None:
        """The scores of samples left out of the discriminant. The views are fitted to all samples, not to adapters."""
        return self.linear.held_out()


@scorer("lexical", needs_texts=True, needs_embeddings=False)
def lexical(pool: Pool) -> Discriminated:
    """The discriminant on words, phrases and form. Embeddings are not used."""
    return discriminated(pool, texts_alone())


@scorer("hybrid", needs_texts=True)
def hybrid(pool: Pool) -> Discriminated:
    """The discriminant on words, phrases, form and meaning."""
    return discriminated(pool, [*texts_alone(), Meaning()])


def discriminated(pool: Pool, views: Sequence[View]) -> Discriminated:
    """Choose landmarks among the samples of a pool, and fit the discriminant in the space of the landmarks."""
    everything = Samples(stacked(pool), tuple(text for samples in pool.samples for text in samples.texts or ()))
    seen = [view.fit(everything) for view in views]
    chosen = np.unique(np.linspace(0, len(everything) - 1, min(len(everything), LANDMARKS)).astype(int))
    landmarks = [vectors[chosen] for vectors in seen]
    values, axes = np.linalg.eigh(similarity(landmarks, landmarks))
    if values.max() <= 0:
        raise ValueError("the samples of the pool are all empty: nothing tells adapters apart")
    kept = values > 1e-8 * values.max()
    space = Space(list(zip(views, landmarks, strict=True)), axes[:, kept] / np.sqrt(values[kept]))
    return Discriminated(space, _fit(space, seen, pool.counts))


def similarity(these: Sequence[Matrix], those: Sequence[Matrix]) -> NDArray[np.float64]:
    """The mean over views of the inner products of samples with others, [n, others]."""
    products = [left @ right.T for left, right in zip(these, those, strict=True)]
    dense = [product if isinstance(product, np.ndarray) else product.toarray() for product in products]
    return np.asarray(np.mean(dense, axis=0, dtype=np.float64))


def _fit(space: Space, seen: Sequence[Matrix], counts: Positions) -> Linear:
    """The discriminant of a pool's samples, ordered by adapter, from the samples' vectors in each view.

    Only the coordinates of one block of samples, and of the samples that are left out, are in memory.
    """
    own, left_out = spared(counts)
    rank = space.coordinates.shape[1]
    means, scatter, kept = np.empty((len(counts), rank)), np.zeros((rank, rank)), [np.empty((0, rank))]
    start = 0
    for block in _blocks(counts):
        of = counts[block]
        end = start + int(of.sum())
        coordinates = space.coordinates_of_vectors([vectors[start:end] for vectors in seen])
        means[block] = np.add.reduceat(coordinates, np.cumsum([0, *of[:-1]]), axis=0) / of[:, None]
        kept.append(coordinates[left_out[(left_out >= start) & (left_out < end)] - start])
        coordinates -= np.repeat(means[block], of, axis=0)
        scatter += coordinates.T @ coordinates
        start = end
    return fit_features(Statistics(means, counts, scatter), np.concatenate(kept), own)


def _blocks(counts: Positions) -> Iterator[slice]:
    """All adapters in their order, in blocks with at most `BLOCK` samples together, or with a single adapter."""
    start, held = 0, 0
    for place, count in enumerate(counts.tolist()):
        if held and held + count > BLOCK:
            yield slice(start, place)
            start, held = place, 0
        held += count
    yield slice(start, len(counts))
