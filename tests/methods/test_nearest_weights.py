"""Nearest by weights: the adapter with the largest share by dense matrices answers alone; no masked adapter answers."""

from __future__ import annotations

from typing import Any

import pytest
from probing_cases import signals_by_loops

from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.generation.generator import Generator
from lora_retriever.methods import find_methods


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_the_adapter_of_the_largest_share_answers_alone(
    context_of: Any, benchmark: Benchmark, generator: Generator, masked: bool
) -> None:
    context = context_of(masked=masked, rows=benchmark.rows[:5])
    shares = signals_by_loops(context, generator)["share"]  # [rows, adapters]
    assert ((shares > 0) & (shares <= 1)).all()
    (method,) = find_methods(["nearest_weights"])
    for row, composition, values in zip(context.rows, method.router.route(context), shares.tolist(), strict=True):
        offered = {n: v for n, v in zip(context.names, values, strict=True) if not (masked and n == row.task)}
        assert composition.weights == {max(offered, key=lambda n: offered[n]): 1.0}


@pytest.mark.slow
def test_all_routes_are_the_same_again(context_of: Any) -> None:
    (method,) = find_methods(["nearest_weights_ood"])
    first, second = (method.router.route(context_of(masked=True)) for _ in range(2))
    assert first == second
    assert all(row.task not in route.adapters for row, route in zip(context_of().rows, first, strict=True))
