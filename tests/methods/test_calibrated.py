"""Mixtures by calibrated probabilities: the weights against a plain loop, and the weights on the miniature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.methods.calibrated import Calibrated
from lora_retriever.methods.context import Context

ContextOf = Callable[..., Context]


def plain_weights(chances: list[float], presence: float, router: Calibrated) -> list[float]:
    """The formula of the module's docstring, computed number by number."""
    there = router.trust * presence
    m = min(router.nearest, len(chances))
    weights = [there * chance + ((1 - there) / m if place < m else 0) for place, chance in enumerate(chances)]
    kept = [weight if weight >= router.least or weight == max(weights) else 0.0 for weight in weights]
    if presence < router.floor:
        return [0.0] * len(kept)
    return [weight / sum(kept) for weight in kept]


@pytest.mark.parametrize(
    "router",
    [
        Calibrated(),
        Calibrated(nearest=5, least=0.2),
        Calibrated(trust=0.5, least=0.0),
        Calibrated(floor=0.5),
        Calibrated(least=2),
    ],
)
def test_weights_are_those_of_a_plain_loop(router: Calibrated) -> None:
    random = np.random.default_rng(0)
    chances = -np.sort(-random.dirichlet(np.full(8, 0.3), size=50), axis=1)[:, :6]  # the other two are not found
    presence = random.uniform(size=50)
    found = router.weights(chances, presence)
    for row, (row_chances, row_presence) in enumerate(zip(chances.tolist(), presence.tolist(), strict=True)):
        assert found[row].tolist() == pytest.approx(plain_weights(row_chances, row_presence, router), abs=1e-12)


def test_a_sure_row_gets_one_adapter_and_a_strange_one_the_average_of_the_nearest() -> None:
    chances = np.array([[0.98, 0.01, 0.01, 0.0], [0.98, 0.01, 0.01, 0.0]])
    sure, strange = Calibrated().weights(chances, np.array([1.0, 0.0]))
    assert sure.tolist() == [1, 0, 0, 0]
    assert strange.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.slow
def test_a_floor_leaves_strange_rows_to_the_base(context_of: ContextOf) -> None:
    assert all(composition.adapters == () for composition in Calibrated(floor=1.1).route(context_of()))


def largest(composition: Composition) -> float:
    return max(composition.weights.values())


@pytest.mark.slow
def test_rows_are_given_few_adapters_where_their_own_is_there_and_more_where_it_is_masked(
    context_of: ContextOf,
) -> None:
    there, masked = (Calibrated().route(context) for context in (context_of(), context_of(masked=True)))
    sizes = [np.mean([len(composition.adapters) for composition in routes]) for routes in (there, masked)]
    assert sizes[0] < sizes[1]
    shared = Calibrated(trust=0.5).route(context_of())
    assert np.mean([largest(route) for route in shared]) < np.mean([largest(route) for route in there])
    for row, composition in zip(context_of().rows, masked, strict=True):
        assert row.task not in composition.adapters
        assert sum(composition.weights.values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_scorer_that_can_spare_no_sample_is_refused(context_of: ContextOf, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of()
    monkeypatch.setattr(type(context.index()), "presence", lambda index, hits: None)
    with pytest.raises(UserError, match="calibrated: scorer cosine cannot leave a sample"):
        Calibrated().route(context)


@pytest.mark.slow
def test_an_own_adapter_is_likelier_there_where_it_is_than_where_it_is_masked(context_of: ContextOf) -> None:
    there, masked = (context.index().presence(context.search(3)) for context in (context_of(), context_of(masked=True)))
    assert there is not None and masked is not None
    assert (there > masked).mean() > 2 / 3
    assert there.mean() > 0.5 > masked.mean()


@pytest.mark.slow
def test_presence_is_not_judged_by_a_single_score(context_of: ContextOf) -> None:
    context = context_of()
    with pytest.raises(ValueError, match="k = 2 or more"):
        context.index().presence(context.search(1))
