"""`joint`: `cosine` and `hybrid` together, so that neither the wording nor the meaning decides alone.

`hybrid` recognises inputs that are worded like the samples, and relies too much on words if the wording is new.
`cosine` reads the meaning, and loses little on new wording. Each input's scores of both scorers are standardised over
the adapters (mean 0, standard deviation 1), and added. Nothing is chosen: both count alike.
(docs/results/instructions-gemma-270m.md)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_retriever.retrieval.scorers.base import Array, HeldOut, Linear, Pool, Samples, scorer
from lora_retriever.retrieval.scorers.means import cosine
from lora_retriever.retrieval.scorers.texts import Discriminated, hybrid


@dataclass(frozen=True)
class Joint:
    """The sum of the standardised scores of several fitted scorers."""

    parts: tuple[Linear | Discriminated, ...]

    @property
    def constants(self) -> dict[str, float]:
        """The constants of all parts."""
        return {name: value for part in self.parts for name, value in part.constants.items()}

    def score(self, queries: Samples) -> Array:
        """Scores [n, adapters]."""
        return np.asarray(np.sum([standardised(part.score(queries)) for part in self.parts], axis=0))

    def with_adapter(self, samples: Samples) -> Joint:
        """The scorer with one more adapter, in the last place. The parts that all adapters share do not change."""
        return Joint(tuple(part.with_adapter(samples) for part in self.parts))

    def without_adapter(self, position: int) -> Joint:
        """The scorer without the adapter at a place. The parts that all adapters share do not change."""
        return Joint(tuple(part.without_adapter(position) for part in self.parts))

    def held_out(self) -> HeldOut | None:
        """The scores of pool samples. All parts leave out the same samples."""
        found = [held_out for part in self.parts if (held_out := part.held_out()) is not None]
        if len(found) < len(self.parts):
            return None
        return HeldOut(np.sum([standardised(held_out.scores) for held_out in found], axis=0), found[0].own)


@scorer("joint", needs_texts=True)
def joint(pool: Pool) -> Joint:
    """The sum of `cosine` and `hybrid`, each standardised over the adapters."""
    return Joint((cosine(pool), hybrid(pool)))


def standardised(scores: Array) -> Array:
    """Scores [n, adapters] with mean 0 and standard deviation 1 in every row; a row of equal scores becomes zeros."""
    deviation = scores.std(axis=1, keepdims=True)
    return np.asarray((scores - scores.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1))
