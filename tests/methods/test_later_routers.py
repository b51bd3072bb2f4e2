"""Nucleus and token-level adaptation: the weights against sums over one row after the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lora_retriever.methods.context import Context
from lora_retriever.methods.nucleus import Votes
from lora_retriever.methods.token_level import Boosted

ContextOf = Callable[..., Context]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_the_nearest_samples_vote_and_the_tail_is_cut(context_of: ContextOf, masked: bool) -> None:
    context = context_of(masked=masked)
    pool = context._resources.embeddings[0]
    samples = dict(zip(pool.names, (s.embeddings for s in pool._pool.samples), strict=True))
    for router in (Votes(), Votes(neighbours=3, mass=0.5)):
        routes = router.route(context)
        for row, query, composition in list(zip(context.rows, context.queries, routes, strict=True))[:4]:
            known = [
                (cosine(query, vector), name)
                for name, vectors in samples.items()
                if not (masked and name == row.task)
                for vector in vectors
            ]
            votes: dict[str, float] = {}
            for value, name in sorted(known, reverse=True)[: router.neighbours]:
                votes[name] = votes.get(name, 0) + max(value, 0)
            kept: dict[str, float] = {}
            for name in sorted(votes, key=lambda name: -votes[name]):
                if kept and sum(kept.values()) >= router.mass * sum(votes.values()):
                    break
                kept[name] = votes[name]
            expected = {name: vote / sum(kept.values()) for name, vote in kept.items()}
            assert composition.weights == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_nearest_adapter_counts_four_times_in_the_softmax(context_of: ContextOf) -> None:
    context = context_of(masked=True)
    pool = context._resources.embeddings[0]
    means = {n: s.embeddings.mean(axis=0) for n, s in zip(pool.names, pool._pool.samples, strict=True)}
    for row, query, composition in zip(context.rows, context.queries, Boosted().route(context), strict=True):
        cosines = {name: cosine(query, mean) for name, mean in means.items() if name != row.task}
        cosines[max(cosines, key=lambda name: cosines[name])] *= 4
        total = sum(math.exp(value) for value in cosines.values())
        expected = {name: math.exp(value) / total for name, value in cosines.items()}
        assert composition.weights == pytest.approx(expected, abs=1e-5)
