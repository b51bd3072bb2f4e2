"""Uniform and random: the floors that every router should beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark
from lora_retriever.methods.context import Context
from lora_retriever.methods.simple import METHODS, Alike, Drawn

ContextOf = Callable[..., Context]


def test_uniform_weighs_every_adapter_alike(context_of: ContextOf) -> None:
    context = context_of()
    for composition in Alike().route(context):
        assert list(composition.adapters) == context.names
        assert set(composition.weights.values()) == {1 / len(context.names)}


def test_uniform_without_a_rows_own_is_the_average_of_the_others(context_of: ContextOf) -> None:
    context = context_of(masked=True)
    for row, composition in zip(context.rows, Alike().route(context), strict=True):
        assert set(composition.adapters) == set(context.names) - {row.task}
        assert set(composition.weights.values()) == {1 / (len(context.names) - 1)}


def test_random_draws_the_profiles_k_unless_it_has_its_own(context_of: ContextOf) -> None:
    for router, k in ((Drawn(), 5), (Drawn(k=2), 2)):
        for composition in router.route(context_of(k=5)):
            assert len(set(composition.adapters)) == k
            assert set(composition.weights.values()) == {1 / k}


def test_a_rows_draw_depends_on_nothing_but_itself_and_the_seed(context_of: ContextOf, benchmark: Benchmark) -> None:
    drawn = Drawn().route(context_of())
    assert Drawn().route(context_of()) == drawn
    assert Drawn().route(context_of(rows=benchmark.rows[::-3])) == drawn[::-3]
    assert Drawn().route(context_of(seed=1)) != drawn
    assert len({composition.adapters for composition in drawn}) > 1
    renamed = [row.model_copy(update={"inputs": row.inputs + "?"}) for row in benchmark.rows]
    assert Drawn().route(context_of(rows=renamed)) != drawn


def test_a_smaller_draw_is_the_beginning_of_a_larger_one(context_of: ContextOf) -> None:
    for few, many in zip(Drawn(k=2).route(context_of()), Drawn(k=6).route(context_of()), strict=True):
        assert few.adapters == many.adapters[:2]


def test_a_masked_draw_replaces_the_rows_own_alone(context_of: ContextOf) -> None:
    context = context_of(masked=True)
    for row, free, masked in zip(context.rows, Drawn().route(context_of()), Drawn().route(context), strict=True):
        assert row.task not in masked.adapters
        assert set(free.adapters) - {row.task} <= set(masked.adapters)
        assert len(masked.adapters) == 3


@pytest.mark.slow
def test_every_adapter_is_drawn_about_as_often(context_of: ContextOf, benchmark: Benchmark) -> None:
    rows = [benchmark.rows[0].model_copy(update={"id": place}) for place in range(2000)]
    counts = Counter(name for composition in Drawn(k=3).route(context_of(rows=rows)) for name in composition.adapters)
    expected = 6000 / len(benchmark.pool)
    assert set(counts) == {entry.model_name for entry in benchmark.pool}
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_a_sweep_over_k_bears_on_random_alone() -> None:
    methods = {method.name: method for method in METHODS}
    assert list(methods) == ["uniform", "uniform_ood", "random", "random_ood"]
    assert methods["random"].adapters_needed(4) == 4
    assert methods["uniform"].adapters_needed(4) == 0
    assert not methods["uniform"].depends_on("k", 4)
    with pytest.raises(UserError, match="k is 0"):
        methods["random"].with_options({"k": 0})
