"""LoRAuter's mixtures against the paper's formula, computed row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lora_retriever.methods import registered
from lora_retriever.methods.context import Context

ContextOf = Callable[..., Context]


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_the_softmax_of_cosines_with_the_tasks_mean_samples(context_of: ContextOf, masked: bool) -> None:
    context = context_of(masked=masked, scorer="nearest")  # the profile's scorer and k are not LoRAuter's
    index = context._resources.embeddings[0]
    tasks = {
        name: samples.embeddings.mean(axis=0) for name, samples in zip(index.names, index._pool.samples, strict=True)
    }
    routes = registered()["lorauter"].router.route(context)
    for row, query, composition in zip(context.rows, context.queries, routes, strict=True):
        cosines = {
            name: float(query @ task / np.linalg.norm(query) / np.linalg.norm(task))
            for name, task in tasks.items()
            if not (masked and name == row.task)
        }
        best = sorted(cosines, key=lambda name: -cosines[name])[:3]
        powers = [math.exp(cosines[name] / 0.2) for name in best]
        assert composition.adapters == tuple(best)
        assert list(composition.weights.values()) == pytest.approx([power / sum(powers) for power in powers], abs=1e-5)
