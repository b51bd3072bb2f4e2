"""Confident compositions: the weights against a plain loop, and single adapters for inputs that are recognised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lora_retriever.methods.confident import Confident
from lora_retriever.methods.context import Context


def plain_weights(chances: list[float], presence: float, router: Confident) -> list[float]:
    """The formula of the module's docstring, one adapter after the other."""
    kept: list[float] = []
    for chance in chances[: router.most]:
        if kept and sum(kept) >= router.mass:
            break
        kept.append(chance)
    size = sum(chance**router.norm for chance in kept) ** (1 / router.norm)
    found = [chance / size for chance in kept] + [0.0] * (len(chances) - len(kept))
    return found if presence >= router.floor else [0.0] * len(chances)


@pytest.mark.parametrize(
    "router",
    [
        Confident(),
        Confident(mass=0.9, most=5, norm=1.0),
        Confident(mass=1.0, most=2, norm=8.0, floor=0.5),
        Confident(mass=0),
    ],
)
def test_weights_are_those_of_a_plain_loop(router: Confident) -> None:
    random = np.random.default_rng(0)
    chances = -np.sort(-random.dirichlet(np.full(8, 0.3), size=50), axis=1)[:, :6]  # what lies beyond is not found
    presence = random.uniform(size=50)
    found = router.weights(chances, presence)
    for row, (row_chances, row_presence) in enumerate(zip(chances.tolist(), presence.tolist(), strict=True)):
        assert found[row].tolist() == pytest.approx(plain_weights(row_chances, row_presence, router), abs=1e-9)


@pytest.mark.slow
def test_a_recognised_row_has_one_adapter_with_weight_1(context_of: Callable[..., Context]) -> None:
    routes = Confident(mass=0.3).route(context_of())
    single = [route for route in routes if len(route.adapters) == 1]
    assert len(single) > len(routes) / 2
    assert all(route.weights[route.adapters[0]] == pytest.approx(1) for route in single)
    for row, route in zip(context_of().rows, Confident().route(context_of(masked=True)), strict=True):
        assert row.task not in route.adapters
