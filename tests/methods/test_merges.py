"""Merging methods: the weights that their routers give to the composers.

The composers' formulas have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lora_retriever.generation.composition import weight_matrix
from lora_retriever.generation.generator import Generator
from lora_retriever.methods import Composition, registered
from lora_retriever.methods.context import Context
from peft_composition.merges import Dare
from peft_composition.pairs import ModuleStack, active_slots

ContextOf = Callable[..., Context]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weight"), [("ties", 1.0), ("dare", 1 / 9), ("svd", 1 / 3)])
def test_merges_take_the_papers_adapters_and_weigh_them_for_their_composer(
    context_of: ContextOf, name: str, weight: float
) -> None:
    for suffix in ("", "_ood"):
        context = context_of(masked=bool(suffix))
        found = registered()[f"mixture{suffix}"].router.route(context)
        for merged, mixture in zip(registered()[name + suffix].router.route(context), found, strict=True):
            assert merged.adapters == mixture.adapters
            assert list(merged.weights.values()) == pytest.approx([weight] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ties", "dare"])
def test_a_merge_of_one_adapter_three_times_over_is_that_adapter_where_nothing_is_pruned(
    generator: Generator, name: str
) -> None:
    """Without pruning, the merge of three equal adapters is the adapter itself."""
    method = registered()[name].with_options({"density": 1.0})
    first = generator.model.adapters[0]
    ids = torch.tensor([[5, 6, 7, 8]])
    for copy in ("copy 1", "copy 2"):
        generator.model.load_adapter(generator.model._residency.headers[first].folder, copy)
    try:
        weight = {"ties": 1.0, "dare": 1 / 9}[name]
        three = Composition(dict.fromkeys((first, "copy 1", "copy 2"), weight))
        logits = []
        for composition, mode in ((three, method.mode), (Composition({first: 1.0}), "mixture")):
            names, weights = weight_matrix([composition])
            with torch.no_grad(), generator.model.composed(names, weights, mode=mode):
                logits.append(generator.model(input_ids=ids).logits)
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    finally:
        for copy in ("copy 1", "copy 2"):
            generator.model.unload_adapter(copy)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_dare_keeps_its_share_of_entries_and_is_the_adapter_in_expectation(density: float) -> None:
    """Means over many seeds: the masks, the merged factors, and their product, because A and B have separate masks."""
    draw, seeds = torch.Generator().manual_seed(0), range(3000)
    down, up = (torch.randn(2, width, generator=draw, dtype=torch.float64) for width in (5, 4))  # A, B^T
    stack = ModuleStack("block.q_proj", 5, 4, torch.device("cpu"), torch.float64)
    stack.write(1, down, up, 1.0, "alone")
    active = active_slots([1], torch.ones(1, 1))
    pairs = [Dare(density, seed)(stack, active) for seed in seeds]
    downs, ups = (torch.cat([getattr(pair, half) for pair in pairs]) for half in ("down", "up"))  # [seeds, 2, d]
    for half, factor in (("A", down), ("B", up)):
        masks = torch.stack([Dare(density, seed).mask("block.q_proj", "alone", half, factor) for seed in seeds])
        assert_mean(masks.double(), torch.full_like(factor, density))
    assert_mean(downs, down)
    assert_mean(ups, up)
    assert_mean(ups.mT @ downs, up.mT @ down)  # B A, [seeds, d_out, d_in]


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    """Assert that the mean of samples [n, ...] is within five standard errors of `expected`."""
    error = samples.std(dim=0) / len(samples) ** 0.5
    assert ((samples.mean(dim=0) - expected).abs() < 5 * error).all()
