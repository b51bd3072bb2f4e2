"""From a pool's samples to an index, and from the index to a `Ranking`: every adapter for every row, best first.

`evaluation` computes how good a ranking is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lora_retriever.analysis.retrieval.templates import Templates, find_templates
from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.resampling import Indices
from lora_retriever.retrieval.calibration import expected_calibration_error
from lora_retriever.retrieval.encoders import Embeddings, Encoder
from lora_retriever.retrieval.encoding import encode_samples, encode_texts
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.retrieval.scorers import Scorer, as_scorer

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TextsAndDomains:
    """The texts and domains of a pool and rows, which embeddings do not show.

    Attributes:
        samples: the inputs of every adapter's samples.
        inputs: the rows' inputs.
        adapter_domains: every adapter's domain.
        row_domains: every row's domain.
    """

    samples: tuple[tuple[str, ...], ...]
    inputs: tuple[str, ...]
    adapter_domains: tuple[str, ...]
    row_domains: tuple[str, ...]


@dataclass(frozen=True)
class RetrievalData:
    """A pool and the rows to retrieve for, with the embeddings of one encoder.

    Attributes:
        names: the adapters. A row's own adapter has the name of the row's task.
        pool: embeddings [samples, dim] of every adapter's samples.
        tasks: the rows' tasks.
        queries: embeddings [rows, dim] of the rows' inputs.
        described: texts and domains; None if only embeddings are known.
    """

    names: tuple[str, ...]
    pool: tuple[Embeddings, ...]
    tasks: tuple[str, ...]
    queries: Embeddings
    described: TextsAndDomains | None = None

    @cached_property
    def own(self) -> Indices:
        """The index of every row's own adapter [rows], −1 if the pool has no such adapter."""
        position_of = {name: position for position, name in enumerate(self.names)}
        return np.array([position_of.get(task, -1) for task in self.tasks])

    def with_samples(self, kept: Sequence[Indices]) -> RetrievalData:
        """The same data with only the samples at the indices `kept` of every adapter."""
        described = self.described and replace(
            self.described,
            samples=tuple(
                tuple(texts[at] for at in indices) for texts, indices in zip(self.described.samples, kept, strict=True)
            ),
        )
        pool = tuple(samples[indices] for samples, indices in zip(self.pool, kept, strict=True))
        return replace(self, pool=pool, described=described)

    def cut(self, samples: int) -> RetrievalData:
        """The same data with only the first `samples` samples of every adapter."""
        return self.with_samples([np.arange(min(samples, len(array))) for array in self.pool])


def describe(pool: Sequence[PoolEntry], rows: Sequence[Row]) -> TextsAndDomains:
    """The texts and domains of a pool file and a benchmark file."""
    return TextsAndDomains(
        tuple(tuple(sample.inputs for sample in entry.sample) for entry in pool),
        tuple(row.inputs for row in rows),
        tuple(entry.domain for entry in pool),
        tuple(row.domain for row in rows),
    )


def encode_data(encoder: Encoder | None, pool: Sequence[PoolEntry], rows: Sequence[Row]) -> RetrievalData:
    """A pool and a benchmark's rows, with the embeddings of an encoder.

    Args:
        encoder: None for scorers that read texts alone: the embeddings then have dimension 0.

    Raises:
        ValueError: the encoder gives no embeddings.
    """
    described = describe(pool, rows)
    samples = [np.zeros((len(texts), 0), np.float32) for texts in described.samples]
    queries = np.zeros((len(rows), 0), np.float32)
    if encoder is not None:
        samples, queries = encode_samples(encoder, described.samples), encode_texts(encoder, described.inputs)
    names, tasks = tuple(entry.model_name for entry in pool), tuple(row.task for row in rows)
    return RetrievalData(names, tuple(samples), tasks, queries, described)


def templates_of(data: RetrievalData) -> Templates | None:
    """The templates of samples and rows; None if their texts are not known."""
    if data.described is None:
        return None
    return find_templates(data.names, data.described.samples, data.tasks, data.described.inputs)


@dataclass(frozen=True)
class Ranking:
    """Every adapter for every row.

    Attributes:
        order: indices of adapters in the pool, best first: [rows, adapters].
        own: the index of every row's own adapter [rows], −1 if the pool has no such adapter.
        confidence: the probability that the scorer states for the best adapter [rows]; None: it states none.
    """

    order: Indices
    own: Indices
    confidence: Values | None

    @cached_property
    def ranks(self) -> Values:
        """The rank of every row's own adapter, from 1; infinite if the pool has no such adapter."""
        ranks = 1.0 + (self.order == self.own[:, None]).argmax(axis=1)
        ranks[self.own < 0] = np.inf
        return ranks

    def others(self, k: int) -> Indices:
        """The best `k` adapters of every row with the own adapter masked: [rows, k]."""
        return np.array([row[row != own][:k] for row, own in zip(self.order, self.own, strict=True)])

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error of the stated probabilities, in percent; None if none are stated."""
        if self.confidence is None:
            return None
        return 100 * expected_calibration_error(self.confidence, self.ranks == 1)


def rank(data: RetrievalData, scorer: str | Scorer) -> Ranking:
    """The ranking of a scorer for all rows.

    Raises:
        UserError: the scorer reads texts and only embeddings are known, or the scorer cannot be fitted to the pool.
    """
    rule, texts, inputs = as_scorer(scorer), None, None
    if rule.needs_texts:
        if data.described is None:
            raise UserError(f"scorer {rule.name} reads texts, not embeddings alone: name --pool and --inputs as well")
        texts, inputs = data.described.samples, data.described.inputs
    try:
        index = AdapterIndex.from_embeddings(data.names, data.pool, rule, texts)
        hits = index.search(data.queries, k=len(data.names), texts=inputs)
    except ValueError as error:
        raise UserError(f"scorer {rule.name}: {error}") from error
    position_of = {name: position for position, name in enumerate(data.names)}
    order = np.array([[position_of[name] for name in names] for names in hits.names])
    return Ranking(order, data.own, None if hits.probabilities is None else hits.probabilities[:, 0])


def rank_left_out(data: RetrievalData, scorer: str | Scorer, templates: Templates) -> tuple[Ranking, Indices]:
    """The ranking when every row's own adapter has no sample of the row's template, and the rows that are ranked.

    The pool is searched once per template number n: all adapters lose their samples of template n, and the rows of
    template n are ranked. So every row is ranked once, with a pool that is about a tenth smaller. An adapter whose
    samples all have one template keeps the samples, and its rows of that template are not ranked.
    """
    order = np.zeros((len(data.tasks), len(data.names)), dtype=np.int64)
    asked = np.zeros(len(data.tasks), dtype=bool)
    for number in range(max(int(groups.max()) for groups in (*templates.samples, templates.rows)) + 1):
        kept = [np.flatnonzero(groups != number) for groups in templates.samples]
        bare = [adapter for adapter, indices in enumerate(kept) if not len(indices)]
        whole = [np.arange(len(groups)) for groups in templates.samples]
        here = (templates.rows == number) & ~np.isin(data.own, bare)
        if here.any():
            left = data.with_samples([whole[at] if at in bare else indices for at, indices in enumerate(kept)])
            order[here] = rank(left, scorer).order[here]
        asked |= here
    rows = np.flatnonzero(asked)
    return Ranking(order[rows], data.own[rows], None), rows
