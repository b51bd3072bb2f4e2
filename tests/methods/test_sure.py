"""One adapter where retrieval is sure, else the average: the rule against a plain loop, and on the miniature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lora_retriever.errors import UserError
from lora_retriever.methods.context import Context
from lora_retriever.methods.sure import Sure

ContextOf = Callable[..., Context]


def plain_weights(chances: list[float], presence: float, router: Sure, k: int) -> list[float]:
    """The rule of the module's docstring, in words."""
    if presence >= router.presence or chances[0] >= router.first:
        return [1.0] + [0.0] * (k - 1)
    return [1 / k] * k


@pytest.mark.parametrize("router", [Sure(), Sure(presence=1.0), Sure(first=0.0), Sure(presence=0.2, first=1.0)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_weights_are_those_of_the_rule(router: Sure, k: int) -> None:
    random = np.random.default_rng(0)
    chances = -np.sort(-random.dirichlet(np.full(8, 0.3), size=60), axis=1)
    presence = random.uniform(size=60)
    found = router.weights(chances, presence, k)
    assert found.shape == (60, k)
    for row, (row_chances, row_presence) in enumerate(zip(chances.tolist(), presence.tolist(), strict=True)):
        assert found[row].tolist() == pytest.approx(plain_weights(row_chances, row_presence, router, k))


def test_both_thresholds_are_inclusive() -> None:
    chances = np.array([[0.95, 0.05], [0.949, 0.051], [0.6, 0.4], [0.6, 0.4]])
    weights = Sure().weights(chances, np.array([0.0, 0.499, 0.5, 0.499]), 2)
    assert weights.tolist() == [[1, 0], [0.5, 0.5], [1, 0], [0.5, 0.5]]


@pytest.mark.slow
def test_every_row_gets_one_adapter_or_k_and_more_rows_one_where_their_own_is_there(context_of: ContextOf) -> None:
    there, masked = (Sure().route(context) for context in (context_of(), context_of(masked=True)))
    k = context_of().k
    for row, composition in zip(context_of().rows, masked, strict=True):
        assert row.task not in composition.adapters
    for composition in (*there, *masked):
        assert list(composition.weights.values()) in ([1.0], [pytest.approx(1 / k)] * k)
    assert sum(len(one.adapters) == 1 for one in there) > sum(len(one.adapters) == 1 for one in masked)
    assert {len(one.adapters) for one in Sure(presence=1.0, first=1.0, k=2).route(context_of(masked=True))} == {2}


@pytest.mark.slow
def test_a_scorer_that_can_spare_no_sample_is_refused(context_of: ContextOf, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of()
    monkeypatch.setattr(type(context.index()), "presence", lambda index, hits: None)
    with pytest.raises(UserError, match="sure: scorer cosine cannot leave a sample"):
        Sure().route(context)
