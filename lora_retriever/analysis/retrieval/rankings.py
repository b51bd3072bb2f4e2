"""From a pool's samples to an index, and from there to a `Ranking`: every adapter for every row, best first.

What a ranking is worth, `evaluation` computes.
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
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.retrieval.pooling import encode_samples
from lora_retriever.retrieval.scorers import needs_texts

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Described:
    """What is known of a pool and rows besides their embeddings.

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
    """A pool, and rows to retrieve for, as one encoder sees them.

    Attributes:
        names: the adapters. A row's own adapter is the one with its task's name.
        pool: embeddings [samples, dim] of every adapter's samples.
        tasks: the rows' tasks.
        queries: embeddings [rows, dim] of the rows' inputs.
        described: texts and domains; None where only embeddings are known.
    """

    names: tuple[str, ...]
    pool: tuple[Embeddings, ...]
    tasks: tuple[str, ...]
    queries: Embeddings
    described: Described | None = None

    @cached_property
    def own(self) -> Indices:
        """The place of every row's own adapter, −1 where the pool has none."""
        places = {name: place for place, name in enumerate(self.names)}
        return np.array([places.get(task, -1) for task in self.tasks])

    def with_samples(self, kept: Sequence[Indices]) -> RetrievalData:
        """The same with only these samples of every adapter."""
        described = self.described and replace(
            self.described,
            samples=tuple(
                tuple(texts[place] for place in places)
                for texts, places in zip(self.described.samples, kept, strict=True)
            ),
        )
        pool = tuple(samples[places] for samples, places in zip(self.pool, kept, strict=True))
        return replace(self, pool=pool, described=described)

    def cut(self, samples: int) -> RetrievalData:
        """The same with only the first `samples` samples of every adapter."""
        return self.with_samples([np.arange(min(samples, len(array))) for array in self.pool])


def describe(pool: Sequence[PoolEntry], rows: Sequence[Row]) -> Described:
    """Texts and domains as the files have them."""
    return Described(
        tuple(tuple(sample.inputs for sample in entry.sample) for entry in pool),
        tuple(row.inputs for row in rows),
        tuple(entry.domain for entry in pool),
        tuple(row.domain for row in rows),
    )


def encode_data(encoder: Encoder, pool: Sequence[PoolEntry], rows: Sequence[Row]) -> RetrievalData:
    """A pool and a benchmark's rows as an encoder sees them."""
    described = describe(pool, rows)
    return RetrievalData(
        tuple(entry.model_name for entry in pool),
        tuple(encode_samples(encoder, described.samples)),
        tuple(row.task for row in rows),
        encoder.encode(described.inputs),
        described,
    )


def templates_of(data: RetrievalData) -> Templates | None:
    """The templates of samples and rows; None where their texts are not known."""
    if data.described is None:
        return None
    return find_templates(data.names, data.described.samples, data.tasks, data.described.inputs)


@dataclass(frozen=True)
class Ranking:
    """Every adapter for every row.

    Attributes:
        order: adapters by their places in the pool, best first: [rows, adapters].
        own: the place of every row's own adapter, −1 where the pool has none.
        confidence: the probability stated for the best adapter [rows], if any is.
    """

    order: Indices
    own: Indices
    confidence: Values | None

    @cached_property
    def ranks(self) -> Values:
        """Every row's rank of its own adapter, from 1; infinite where the pool has none."""
        ranks = 1.0 + (self.order == self.own[:, None]).argmax(axis=1)
        ranks[self.own < 0] = np.inf
        return ranks

    def others(self, k: int) -> Indices:
        """The best `k` adapters of every row when its own is masked: [rows, k]."""
        return np.array([row[row != own][:k] for row, own in zip(self.order, self.own, strict=True)])

    @property
    def calibration_error(self) -> float | None:
        """How far the stated probabilities are from the shares of right ones, in percent."""
        if self.confidence is None:
            return None
        return 100 * expected_calibration_error(self.confidence, self.ranks == 1)


def rank(data: RetrievalData, scorer: str) -> Ranking:
    """What a scorer finds for all rows.

    Raises:
        UserError: the scorer reads texts, and only embeddings are known.
    """
    texts, inputs = None, None
    if needs_texts(scorer):
        if data.described is None:
            raise UserError(f"scorer {scorer} reads texts, not embeddings alone: name --pool and --inputs as well")
        texts, inputs = data.described.samples, data.described.inputs
    index = AdapterIndex.from_embeddings(data.names, data.pool, scorer, texts)
    hits = index.search(data.queries, k=len(data.names), texts=inputs)
    places = {name: place for place, name in enumerate(data.names)}
    order = np.array([[places[name] for name in names] for names in hits.names])
    return Ranking(order, data.own, None if hits.probabilities is None else hits.probabilities[:, 0])


def rank_left_out(data: RetrievalData, scorer: str, templates: Templates) -> tuple[Ranking, Indices]:
    """What a scorer finds when every row's own adapter has no sample of the row's template; and for which rows.

    The pool is searched once per template number: each time all adapters go without their samples of that number, and
    the rows of that number are asked. So every row is asked once, of a pool about a tenth smaller. An adapter whose
    samples are all of one template keeps them, and the rows of that template are not asked.
    """
    order = np.zeros((len(data.tasks), len(data.names)), dtype=np.int64)
    asked = np.zeros(len(data.tasks), dtype=bool)
    for number in range(max(int(groups.max()) for groups in (*templates.samples, templates.rows)) + 1):
        kept = [np.flatnonzero(groups != number) for groups in templates.samples]
        bare = [place for place, places in enumerate(kept) if not len(places)]
        whole = [np.arange(len(groups)) for groups in templates.samples]
        here = (templates.rows == number) & ~np.isin(data.own, bare)
        if here.any():
            left = data.with_samples([whole[place] if place in bare else places for place, places in enumerate(kept)])
            order[here] = rank(left, scorer).order[here]
        asked |= here
    rows = np.flatnonzero(asked)
    return Ranking(order[rows], data.own[rows], None), rows
