"""Micro precision, recall and F1 of triples and of relations, exactly as published with ReRe (arXiv 2105.10158)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_retriever.data.triples import relations_of, triples_of
from lora_retriever.metrics.base import Array, Metric, Reference, compared


class Triples:
    """Over all rows: TP = Σ|T ∩ P|, precision = TP / Σ|P|, recall = TP / Σ|T|, F1 = 2 TP / (Σ|P| + Σ|T|).

    T and P are a row's sets of triples, of the target and of the answer. Two triples are equal if relation, subject and
    object are, with their case. Several targets of a row are one set together. The same is computed for the sets of
    relations.
    """

    scores = ("f1", "precision", "recall", "relation-f1", "relation-precision", "relation-recall")

    def statistics(self, predictions: Sequence[str], references: Sequence[Reference]) -> Array:
        """Of triples, then of relations: in both, in the answer, in the target: [rows, 6].

        Raises:
            RowError: a row has an empty list of references.
        """
        rows = []
        for answer, texts in zip(*compared(predictions, references), strict=True):
            given, wanted = triples_of(answer), triples_of(texts)
            found, true = relations_of(given), relations_of(wanted)
            rows.append(
                [len(given & wanted), len(given), len(wanted), len(found & true), len(found), len(true)],
            )
        return np.array(rows, dtype=np.float64).reshape(len(rows), 6)

    def combine(self, sums: Array) -> Array:
        """The scores in percent. A ratio without a denominator is 0."""
        scores = []
        for first in (0, 3):
            both, given, wanted = (sums[..., first + place] for place in range(3))
            for top, bottom in ((2 * both, given + wanted), (both, given), (both, wanted)):
                scores.append(100 * top / np.where(bottom > 0, bottom, 1))
        return np.stack(scores, axis=-1)


TRIPLES: Metric = Triples()
