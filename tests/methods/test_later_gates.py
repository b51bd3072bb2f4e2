"""LAG, SEQR and layer-wise retrieval: the logits against loops over tokens with dense singular value decompositions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from composition_cases import Parts
from routing_cases import ROWS, gated_logits, looped_logits, model_with_pool, updates_of
from torch import Tensor

from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.methods.context import Context
from lora_retriever.methods.lag import LAG
from lora_retriever.methods.layerwise import Layerwise, Prototypes
from lora_retriever.methods.parts.own_samples import SEPARATOR, OwnSamples, own_samples
from lora_retriever.methods.seqr import CalibratedNorms
from peft_composition import ComposableModel

Case = tuple[ComposableModel, dict[str, Parts]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return model_with_pool(tmp_path_factory.mktemp("pool"))


def measured_at_random(parts: Mapping[str, Parts]) -> OwnSamples:
    """Made-up measurements of every adapter and module."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for adapter, modules in parts.items():
        for module, (down, _, _) in modules.items():
            key = SEPARATOR.join((adapter, module))
            tensors[key + SEPARATOR + "norm"] = torch.rand(2, generator=draw, dtype=torch.float64) + 0.1
            tensors[key + SEPARATOR + "inner"] = torch.randn(len(down), generator=draw, dtype=torch.float64)
    return OwnSamples("made up", tensors)


def assert_same_logits(case: Case, gate: Any, weigh: Any) -> None:
    """Ranks and scalings differ, one adapter has other modules, one row is offered less, and rows are padded."""
    model, parts = case
    names = list(parts)
    offered = torch.ones(len(ROWS), len(names))
    offered[1, names.index("rank6")] = offered[2, names.index("plain")] = 0
    actual = gated_logits(model, names, offered, gate)
    for row, mine in enumerate(offered.bool().tolist()):
        candidates = [name for name, is_offered in zip(names, mine, strict=True) if is_offered]
        expected = looped_logits(model.base, parts, candidates, weigh, ROWS[row])
        torch.testing.assert_close(actual[row], expected, atol=1e-9, rtol=1e-9)


def adapter_and_module(parts: Mapping[str, Parts], update: Tensor) -> tuple[str, str]:
    """The adapter and the module whose update equals a full matrix."""
    for adapter in parts:
        for module, other in updates_of(parts[adapter]).items():
            if other.shape == update.shape and torch.equal(other, update):
                return adapter, module
    raise AssertionError("no such update")


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "singular_values"), [(2, False), (3, True), (1, False)])
def test_lag_takes_the_longest_of_the_nearest(case: Case, top_k: int, singular_values: bool) -> None:
    def weigh(candidates: Mapping[str, Tensor], x: Tensor) -> dict[str, float]:
        first, length = {}, {}
        for name, update in candidates.items():
            _, values, directions = torch.linalg.svd(update)
            kept = values > 1e-9 * values[0]
            along = directions[: len(values)][kept] @ x
            first[name] = float(along[0].abs())
            length[name] = float((values[kept] * along if singular_values else along).norm())
        nearest = sorted(first, key=lambda name: -first[name])[:top_k]
        return {max(nearest, key=lambda name: length[name]): 1.0}

    assert_same_logits(case, LAG(top_k, singular_values), weigh)


@pytest.mark.slow
def test_seqr_takes_the_adapter_that_is_longest_by_its_own_measure(case: Case) -> None:
    measured = measured_at_random(case[1])

    def weigh(candidates: Mapping[str, Tensor], x: Tensor) -> dict[str, float]:
        scores = {}
        for name, update in candidates.items():
            _, module = adapter_and_module(case[1], update)
            mean, deviation = measured.tensors[SEPARATOR.join((name, module, "norm"))].tolist()
            scores[name] = (float((update @ x).norm()) - mean) / deviation
        return {max(scores, key=lambda name: scores[name]): 1.0}

    assert_same_logits(case, CalibratedNorms(measured), weigh)


def test_layerwise_weighs_by_the_cosines_of_mean_updates(case: Case) -> None:
    """The reference needs the updates of whole prompts, so this test has its own hooks."""
    model, parts = case
    measured, names = measured_at_random(parts), list(parts)
    actual = gated_logits(model, names, torch.ones(len(ROWS), len(names)), Prototypes(measured, top_k=2))

    def adding(module: str) -> Callable[..., Tensor]:
        def hook(layer: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0][0]  # [n, d_in]
            updates = {name: updates_of(parts[name])[module] for name in names if module in parts[name]}
            scores = {}
            for name, update in updates.items():
                _, up, scaling = parts[name][module]
                prototype = scaling * up @ measured.tensors[SEPARATOR.join((name, module, "inner"))]
                scores[name] = float(torch.cosine_similarity(update @ x.mean(dim=0), prototype, dim=0))
            best = sorted(scores, key=lambda name: -scores[name])[:2]
            positive = {name: scores[name] for name in best if scores[name] > 0}
            total = sum(positive.values())
            return output + sum((score / total * (x @ updates[name].T) for name, score in positive.items()), 0 * output)

        return hook

    modules = sorted({module for adapter in parts.values() for module in adapter})
    hooks = [model.base.get_submodule(module).register_forward_hook(adding(module)) for module in modules]
    try:
        for row, ids in enumerate(ROWS):
            with torch.no_grad():
                expected = model.base(input_ids=torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(actual[row], expected, atol=1e-9, rtol=1e-9)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.slow
def test_own_samples_are_measured_as_by_reading_each_alone(
    context_of: Callable[..., Context], generator: Generator
) -> None:
    context = context_of()
    found = own_samples(context, 2)
    entry = context.pool[3]
    module = next(key.split(SEPARATOR)[1] for key in found.tensors if key.startswith(entry.model_name + SEPARATOR))
    stack = generator.model._residency.stacks[module]
    slot = next(slot for slot, adapter in stack.adapters.items() if adapter == entry.model_name)
    down, up = stack.down[slot], stack.up[slot]  # A [r, d_in], (s B)^T [r, d_out]
    norms, means = [], []

    def note(layer: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inner = args[0][0] @ down.T  # A x, [n, r]
        norms.append((inner @ up).norm(dim=-1))
        means.append(inner.mean(dim=0))

    hook = generator.model.base.get_submodule(module).register_forward_hook(note)
    try:
        for prompt in make_prompts([s.inputs for s in entry.sample[:2]], generator.tokenizer, generator.settings):
            with torch.no_grad():
                generator.model.base(input_ids=torch.tensor([prompt.token_ids]))
    finally:
        hook.remove()
    every = torch.cat(norms).double()
    expected = torch.stack([every.mean(), every.std(correction=0)])
    key = SEPARATOR.join((entry.model_name, module))
    torch.testing.assert_close(found.tensors[f"{key}{SEPARATOR}norm"], expected, atol=1e-4, rtol=1e-4)
    inner = found.tensors[f"{key}{SEPARATOR}inner"]
    torch.testing.assert_close(inner, torch.stack(means).mean(dim=0).double()[: len(inner)], atol=1e-4, rtol=1e-4)
    assert own_samples(context, 2) == found == Layerwise(samples=2).fit(context).measured
