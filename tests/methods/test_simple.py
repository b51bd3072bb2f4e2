"""Uniform and random: what any router has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from lora_retriever.benchmark import Benchmark
from lora_retriever.errors import UserError
from lora_retriever.methods.simple import METHODS, Alike, Drawn
from lora_retriever.setting import Setting

SettingOf = Callable[..., Setting]


def test_uniform_weighs_every_adapter_alike(setting_of: SettingOf) -> None:
    setting = setting_of()
    for composition in Alike().route(setting):
        assert list(composition.adapters) == setting.names
        assert set(composition.weights) == {1 / len(setting.names)}


def test_uniform_without_a_rows_own_is_the_average_of_the_others(setting_of: SettingOf) -> None:
    setting = setting_of(masked=True)
    for row, composition in zip(setting.rows, Alike().route(setting), strict=True):
        assert set(composition.adapters) == set(setting.names) - {row.task}
        assert set(composition.weights) == {1 / (len(setting.names) - 1)}


def test_random_draws_the_profiles_k_unless_it_has_its_own(setting_of: SettingOf) -> None:
    for router, k in ((Drawn(), 5), (Drawn(k=2), 2)):
        for composition in router.route(setting_of(k=5)):
            assert len(set(composition.adapters)) == k
            assert composition.weights == (1 / k,) * k


def test_a_rows_draw_depends_on_nothing_but_itself_and_the_seed(setting_of: SettingOf, benchmark: Benchmark) -> None:
    drawn = Drawn().route(setting_of())
    assert Drawn().route(setting_of()) == drawn
    assert Drawn().route(setting_of(rows=benchmark.rows[::-3])) == drawn[::-3]
    assert Drawn().route(setting_of(seed=1)) != drawn
    assert len(set(drawn)) > 1
    renamed = [row.model_copy(update={"inputs": row.inputs + "?"}) for row in benchmark.rows]
    assert Drawn().route(setting_of(rows=renamed)) != drawn


def test_a_smaller_draw_is_the_beginning_of_a_larger_one(setting_of: SettingOf) -> None:
    for few, many in zip(Drawn(k=2).route(setting_of()), Drawn(k=6).route(setting_of()), strict=True):
        assert few.adapters == many.adapters[:2]


def test_a_masked_draw_replaces_the_rows_own_alone(setting_of: SettingOf) -> None:
    setting = setting_of(masked=True)
    for row, free, masked in zip(setting.rows, Drawn().route(setting_of()), Drawn().route(setting), strict=True):
        assert row.task not in masked.adapters
        assert set(free.adapters) - {row.task} <= set(masked.adapters)
        assert len(masked.adapters) == 3


def test_every_adapter_is_drawn_about_as_often(setting_of: SettingOf, benchmark: Benchmark) -> None:
    rows = [benchmark.rows[0].model_copy(update={"id": place}) for place in range(2000)]
    counts = Counter(name for composition in Drawn(k=3).route(setting_of(rows=rows)) for name in composition.adapters)
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
