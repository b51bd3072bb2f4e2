"""Merging methods: what their routers hand to the composers. The composers' formulas have tests of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lora_retriever.generation import Generator, weight_matrix
from lora_retriever.methods import Composition, registered
from lora_retriever.setting import Setting

SettingOf = Callable[..., Setting]


@pytest.mark.parametrize(("name", "weight"), [("ties", 1.0), ("dare", 1 / 9), ("svd", 1 / 3)])
def test_merges_take_the_papers_adapters_and_weigh_them_for_their_composer(
    setting_of: SettingOf, name: str, weight: float
) -> None:
    for suffix in ("", "_ood"):
        setting = setting_of(masked=bool(suffix))
        found = registered()[f"mixture{suffix}"].router.route(setting)
        for merged, mixture in zip(registered()[name + suffix].router.route(setting), found, strict=True):
            assert merged.adapters == mixture.adapters
            assert merged.weights == pytest.approx([weight] * 3)


@pytest.mark.parametrize("name", ["ties", "dare"])
def test_a_merge_of_one_adapter_three_times_over_is_that_adapter_in_expectation(
    generator: Generator, name: str
) -> None:
    """Nothing pruned, the weights make of three equal adapters the adapter itself."""
    method = registered()[name].with_options({"density": 1.0})
    first = generator.model.adapters[0]
    ids = torch.tensor([[5, 6, 7, 8]])
    for copy in ("copy 1", "copy 2"):
        generator.model.load_adapter(generator.model._residency.headers[first].folder, copy)
    try:
        weight = {"ties": 1.0, "dare": 1 / 9}[name]
        three = Composition((first, "copy 1", "copy 2"), (weight,) * 3, (None,) * 3)
        logits = []
        for composition, mode in ((three, method.mode), (Composition((first,), (1.0,), (None,)), "mixture")):
            names, weights = weight_matrix([composition])
            with torch.no_grad(), generator.model.composed(names, weights, mode=mode):
                logits.append(generator.model(input_ids=ids).logits)
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    finally:
        for copy in ("copy 1", "copy 2"):
            generator.model.unload_adapter(copy)
