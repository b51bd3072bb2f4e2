"""Merges equal PEFT's merges of the same adapters, row by row, and plain loops over dense matrices."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from composition_cases import some_ids, tiny_llama
from peft import PeftModel
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils import merge_utils
from safetensors.torch import load_file

from peft_composition import ComposableModel, CompositionError, CompositionWriter
from peft_composition.merges import Dare, Linear, Svd, Ties
from peft_composition.modes import MODES, composer_of
from peft_composition.pairs import EMPTY_SLOT, ModuleStack, active_slots, mixture_pair

CPU, F64 = torch.device("cpu"), torch.float64
D_IN, D_OUT = 7, 6
MERGES = [
    (Linear(), {"combination_type": "linear"}),
    (Ties(), {"combination_type": "ties", "density": 0.5}),
    (Ties(0.3, "frequency"), {"combination_type": "ties", "density": 0.3, "majority_sign_method": "frequency"}),
    (Dare(0.6, seed=5), {"combination_type": "dare_linear", "density": 0.6}),
    (Dare(ties=True), {"combination_type": "dare_ties", "density": 0.5}),
    (Svd(), {"combination_type": "svd"}),
    (Svd(rank=2), {"combination_type": "svd", "svd_rank": 2}),
]
COMPOSERS = [composer for composer, _ in MERGES]
# Rank and scaling of four adapters. A fifth adapter has weights, and targets another module, so it takes no part here.
SHAPES = [(4, 2.0), (4, 0.5), (2, 3.0), (3, -1.5)]
WEIGHTS = torch.tensor(
    [
        [0.5, 0.25, 0.75, 0.0, 0.0],
        [0.5, -0.25, 0.0, 1.5, 1.0],
        [0.0, 0.0, 1.0, -0.5, 0.0],
        [0.0, 0.0, 0.0, 0.0, 2.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.75, 0.0, 0.0, 0.0],
    ]
)


def random(*shape, generator):
    return torch.randn(shape, generator=generator, dtype=F64)


def factors():
    """A [r, d_in], B [d_out, r] and s of each adapter that takes part, by its column of the weights."""
    seeded = {"generator": torch.Generator().manual_seed(0)}
    return {c: (random(r, D_IN, **seeded), random(D_OUT, r, **seeded), s) for c, (r, s) in enumerate(SHAPES)}


def stack_of(parts, slots, dtype=F64):
    """The adapters of `parts` in a stack, column c in slots[c]."""
    stack = ModuleStack("block.q_proj", D_IN, D_OUT, CPU, dtype)
    for column, (a, b, scaling) in parts.items():
        stack.write(slots[column], a.to(dtype), (scaling * b.T).to(dtype), scaling, f"adapter{column}")
    return stack


def updates(composer, parts, weights, slots=(1, 2, 3, 4, 5)):
    """The composed update of each row, multiplied out: [batch, d_out, d_in]."""
    active = active_slots(slots, weights)
    pair = composer(stack_of(parts, slots), active)
    return pair.up.mT @ pair.down


def in_loops(parts, row, keep, majority):
    """One row's update from merged factors, entry by entry with Python's numbers; `keep` prunes a factor."""
    used = [(column, *parts[column], w) for column, w in enumerate(row) if w != 0 and column in parts]
    rank = max((a.shape[0] for _, a, *_ in used), default=1)
    down, up = torch.zeros(rank, D_IN, dtype=F64), torch.zeros(rank, D_OUT, dtype=F64)
    for half, merged in (("A", down), ("B", up)):
        kept = [keep(a if half == "A" else b.T, f"adapter{column}", half) for column, a, b, _, _ in used]
        for i in range(rank):
            for j in range(merged.shape[1]):
                entries = []
                for tensor, (_, _, _, scaling, weight) in zip(kept, used, strict=True):
                    root = math.sqrt(abs(weight * scaling))
                    sign = -1 if half == "A" and weight * scaling < 0 else 1
                    if i < tensor.shape[0] and tensor[i, j] != 0:
                        entries.append((float(tensor[i, j]), root * sign))
                if majority is None:
                    merged[i, j] = sum(value * weight for value, weight in entries)
                    continue
                votes = [value if majority == "total" else math.copysign(1, value) for value, _ in entries]
                elected = [(v, w) for v, w in entries if (v > 0) == (sum(votes) >= 0)]
                merged[i, j] = sum(v * w for v, w in elected) / max(len(elected), 1)
    return up.T @ down


def largest(tensor, density):
    """The share `density` of the entries with the largest magnitudes, found by sorting."""
    sizes = sorted((abs(float(value)) for value in tensor.flatten()), reverse=True)[: int(density * tensor.numel())]
    return torch.where(tensor.abs() >= sizes[-1], tensor, 0)


@pytest.fixture(scope="module")
def exact_base():
    return tiny_llama().double()


@pytest.fixture
def exact(exact_base, folders):
    """A model in float64 with adapters of one rank; their scalings are 2, 2, 8 and 3, the second has other modules."""
    model = ComposableModel(exact_base)
    for name in ("plain", "other_targets", "alpha32", "rslora"):
        model.load_adapter(folders[name], name)
    return model


def merged_by_peft(base, folders, weights, options):
    """Upstream PEFT with one active adapter, merged from the adapters whose weight is not zero."""
    used = {name: weight for name, weight in weights.items() if weight}
    first, *others = used
    peft = PeftModel.from_pretrained(deepcopy(base), str(folders[first]), first)
    for name in others:
        peft.load_adapter(str(folders[name]), name)
    peft.double()
    peft.add_weighted_adapter(list(used), list(used.values()), "merged", **options)
    peft.set_adapter("merged")
    return peft


def have_peft_drop_as(dare, monkeypatch):
    """Replace PEFT's masks by the masks of `dare`. The address of a factor in memory identifies the factor."""
    add_weighted_adapter = LoraModel.add_weighted_adapter
    factor_at = {}

    def noting(self, *args, **kwargs):
        factor_at.clear()
        for key, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                for half, layers in (("A", module.lora_A), ("B", module.lora_B)):
                    for adapter, layer in layers.items():
                        factor_at[layer.weight.data_ptr()] = (key, adapter, half)
        return add_weighted_adapter(self, *args, **kwargs)

    def random_pruning(tensor, density, rescale):
        key, adapter, half = factor_at[tensor.data_ptr()]
        mask = dare.mask(key, adapter, half, tensor) if half == "A" else dare.mask(key, adapter, half, tensor.T).T
        assert rescale
        return tensor * mask / density

    monkeypatch.setattr(LoraModel, "add_weighted_adapter", noting)
    monkeypatch.setattr(merge_utils, "random_pruning", random_pruning)


@pytest.mark.slow
@pytest.mark.parametrize(("composer", "options"), MERGES, ids=lambda value: str(value)[:40])
def test_each_row_is_the_merge_that_peft_makes(exact, exact_base, folders, monkeypatch, composer, options):
    names = exact.adapters
    rows = [[0.5, 0.0, -0.25, 0.75], [0.5, 1.0, 0.5, 0.0], [0.0, 0.0, 0.5, 1.0], [1.0, 0.75, 0.25, 0.5]]
    if isinstance(composer, Dare):
        have_peft_drop_as(composer, monkeypatch)
    ids = some_ids(len(rows))
    with torch.no_grad(), exact.composed(names, rows, composer):
        actual = exact(input_ids=ids).logits
    for i, row in enumerate(rows):
        peft = merged_by_peft(exact_base, folders, dict(zip(names, row, strict=True)), options)
        with torch.no_grad():
            expected = peft(input_ids=ids[i : i + 1]).logits
            plain = exact_base(input_ids=ids[i : i + 1]).logits
        torch.testing.assert_close(actual[i : i + 1], expected, atol=1e-5, rtol=1e-5)
        assert (expected - plain).abs().max() > 0.05, "the merge must be seen in the logits"


@pytest.mark.parametrize("slots", [(1, 2, 3, 4, 5), (3, 5, 1, 2, 9)], ids=str)
@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_ties_of_adapters_of_any_rank_is_what_loops_over_the_entries_say(density, majority, slots):
    parts = factors()
    actual = updates(Ties(density, majority), parts, WEIGHTS, slots)
    for i, row in enumerate(WEIGHTS.tolist()):
        expected = in_loops(parts, row, lambda tensor, adapter, half: largest(tensor, density), majority)
        torch.testing.assert_close(actual[i], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("majority", [None, "total"])
def test_dare_of_adapters_of_any_rank_is_what_loops_over_the_entries_say(majority):
    parts, dare = factors(), Dare(0.6, seed=1, ties=majority is not None)

    def keep(tensor, adapter, half):
        return tensor * dare.mask("block.q_proj", adapter, half, tensor) / 0.6

    actual = updates(dare, parts, WEIGHTS)
    for i, row in enumerate(WEIGHTS.tolist()):
        torch.testing.assert_close(actual[i], in_loops(parts, row, keep, majority), atol=1e-6, rtol=1e-6)


def test_linear_of_adapters_of_any_rank_is_what_loops_over_the_entries_say():
    parts = factors()
    actual = updates(Linear(), parts, WEIGHTS)
    for i, row in enumerate(WEIGHTS.tolist()):
        expected = in_loops(parts, row, lambda tensor, adapter, half: tensor, None)
        torch.testing.assert_close(actual[i], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rank", [None, 1, 3, 100])
def test_svd_is_the_best_approximation_of_the_dense_mixture(rank):
    parts = factors()
    actual = updates(Svd(rank), parts, WEIGHTS)
    for i, row in enumerate(WEIGHTS.tolist()):
        used = [(*parts[column], w) for column, w in enumerate(row) if w != 0 and column in parts]
        dense = sum((w * s * b @ a for a, b, s, w in used), torch.zeros(D_OUT, D_IN, dtype=F64))
        kept = max((a.shape[0] for a, *_ in used), default=0) if rank is None else rank
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
        values[kept:] = 0
        torch.testing.assert_close(actual[i], left @ values.diag() @ right, atol=1e-10, rtol=1e-10)


def test_svd_has_the_rank_asked_for_or_the_largest_of_the_adapters():
    parts, slots = factors(), (1, 2, 3, 4, 5)
    stack, active = stack_of(parts, slots), active_slots(slots, WEIGHTS)
    assert Svd()(stack, active).down.shape == (6, 4, D_IN)
    assert Svd(2)(stack, active).up.shape == (6, 2, D_OUT)
    third = Svd()(stack, active_slots(slots, WEIGHTS[:3])).up[2]
    assert third[:3].any(dim=1).all() and not third[3].any(), "its own adapters have ranks 2 and 3"


@pytest.mark.parametrize("composer", COMPOSERS, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(composer):
    parts = factors()
    together = updates(composer, parts, WEIGHTS)
    for i in (0, 1, 2, 5):
        alone = updates(composer, parts, WEIGHTS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-9, rtol=1e-9)
    assert not together[3].any(), "its one adapter does not target the module"
    assert not together[4].any(), "it has no adapter at all"


@pytest.mark.parametrize("composer", COMPOSERS, ids=str)
def test_padding_has_no_vote_and_adds_nothing(composer):
    parts, slots = factors(), (1, 2, 3, 4, 5)
    row = active_slots(slots, WEIGHTS[2:3])
    more_slots = torch.cat([row.slots, torch.full((1, 5), EMPTY_SLOT)], dim=1)
    padded = replace(row, slots=more_slots, weights=torch.cat([row.weights, torch.zeros(1, 5)], dim=1))
    pairs = [composer(stack_of(parts, slots), active) for active in (row, padded)]
    without, with_padding = (pair.up.mT @ pair.down for pair in pairs)
    torch.testing.assert_close(with_padding, without, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("composer", [Linear(), Ties(1.0), Dare(1.0), Dare(1.0, ties=True), Svd(), Svd(9)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.25, -2.0])
def test_one_adapter_that_is_not_pruned_acts_with_its_weight(composer, weight):
    parts = factors()
    for column, (a, b, scaling) in parts.items():
        row = torch.zeros(1, 5)
        row[0, column] = weight
        torch.testing.assert_close(updates(composer, parts, row)[0], weight * scaling * b @ a, atol=1e-6, rtol=1e-6)


def test_dare_that_keeps_all_is_linear_and_an_svd_of_full_rank_the_mixture():
    parts = factors()
    assert torch.equal(updates(Dare(1.0, seed=3), parts, WEIGHTS), updates(Linear(), parts, WEIGHTS))
    torch.testing.assert_close(updates(Svd(12), parts, WEIGHTS), updates(mixture_pair, parts, WEIGHTS))


@pytest.mark.parametrize("composer", [Linear(), Dare(), Ties(), Ties(majority="frequency"), Dare(ties=True), Svd(12)])
def test_an_adapter_of_scaling_0_adds_nothing_and_has_no_vote(composer):
    parts = factors()
    a, b, _ = parts[1]
    nothing = updates(composer, {**parts, 1: (a, b, 0.0)}, WEIGHTS)
    without = updates(composer, parts, WEIGHTS * torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(nothing, without)
    assert not updates(composer, {1: (a, b, 0.0)}, WEIGHTS).any()


def test_dare_drops_the_same_entries_wherever_an_adapter_lies():
    parts, dare = factors(), Dare(0.5, seed=4)
    here = updates(dare, parts, WEIGHTS)
    assert torch.equal(updates(dare, parts, WEIGHTS), here)
    backwards = updates(dare, dict(reversed(parts.items())), WEIGHTS, slots=(9, 8, 4, 3, 2))
    torch.testing.assert_close(backwards, here, atol=1e-12, rtol=1e-12)
    stack = stack_of(parts, (1, 2, 3, 4, 5))
    a, b, scaling = parts[0]
    stack.clear(2)
    stack.write(2, a, scaling * b.T, scaling, "adapter0")
    moved, first = (dare(stack, active_slots([slot], torch.ones(1, 1))) for slot in (2, 1))
    assert torch.equal(moved.down, first.down) and torch.equal(moved.up, first.up)


def test_dare_draws_anew_for_each_module_adapter_factor_and_seed():
    factor = torch.zeros(16, 64)
    masks = [
        Dare(0.3, seed).mask(module, adapter, half, factor)
        for seed in (0, 1)
        for module in ("a.q_proj", "b.q_proj")
        for adapter in ("one", "two")
        for half in ("A", "B")
    ]
    for i, mask in enumerate(masks):
        assert abs(mask.double().mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 1024)
        for other in masks[:i]:
            agreeing = (mask & other).double().mean()
            assert abs(agreeing - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 1024), "two masks must be independent"


def test_ties_keeps_all_the_entries_that_tie_with_the_smallest_one_kept():
    a = torch.tensor([[3.0, -2.0, 2.0, 1.0, 0.0, 0.0, 0.0]], dtype=F64)
    b = torch.ones(D_OUT, 1, dtype=F64)
    merged = updates(Ties(2 / 7), {0: (a, b, 1.0)}, torch.ones(1, 1), slots=(1,))
    torch.testing.assert_close(merged[0, 0], torch.tensor([3.0, -2.0, 2.0, 0, 0, 0, 0], dtype=F64))
    assert not updates(Ties(0.1), {0: (a, b, 1.0)}, torch.ones(1, 1), slots=(1,)).any(), "a tenth of 7 is none"


@pytest.mark.parametrize("composer", [Linear(), Ties(), Dare(ties=True)], ids=str)
def test_gradients_reach_the_weights_that_are_not_zero(composer):
    parts, target = factors(), random(D_OUT, D_IN, generator=torch.Generator().manual_seed(1))
    weights = WEIGHTS[:3].clone().requires_grad_()
    (updates(composer, parts, weights) * target).sum().backward()
    assert weights.grad is not None and weights.grad.isfinite().all()
    for i, j in WEIGHTS[:3].nonzero().tolist():
        step = torch.zeros_like(weights)
        step[i, j] = 2**-8
        higher, lower = (
            (updates(composer, parts, weights.detach() + signed) * target).sum() for signed in (step, -step)
        )
        torch.testing.assert_close(weights.grad[i, j].double(), (higher - lower) / 2**-7, atol=2e-3, rtol=2e-3)


def test_an_svd_merge_refuses_weights_that_ask_for_a_gradient():
    with pytest.raises(CompositionError, match="an SVD merge passes no gradient to the weights; detach them"):
        updates(Svd(), factors(), WEIGHTS.clone().requires_grad_())


@pytest.mark.parametrize("composer", [Ties, Dare])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_a_density_that_is_no_share_is_refused(composer, density):
    name = composer.__name__.upper()
    with pytest.raises(CompositionError, match=f"the density of {name} is .* above 0 and at most 1, not {density}"):
        composer(density)


def test_other_options_that_mean_nothing_are_refused():
    with pytest.raises(CompositionError, match="'total' or 'frequency', not by 'mean'"):
        Ties(majority="mean")
    with pytest.raises(CompositionError, match="at least 1, not 0"):
        Svd(0)
    with pytest.raises(CompositionError, match="'tie'; choose one of: mixture, fusion, linear, ties, dare, svd"):
        composer_of("tie")


def test_a_composer_says_its_options_and_travels():
    assert str(Ties(0.2)) == "Ties(density=0.2, majority='total')"
    for composer in COMPOSERS:
        assert pickle.loads(pickle.dumps(composer)) == composer
        assert composer_of(composer) is composer
    assert len({*COMPOSERS, Ties(), Svd()}) == len(COMPOSERS)
    assert (composer_of("ties"), composer_of("dare"), composer_of("svd")) == (Ties(), Dare(), Svd())


@pytest.mark.parametrize("mode", ["linear", "ties", "dare", "svd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(mode, dtype):
    parts, slots = factors(), (1, 2, 3, 4, 5)
    # The factors are rounded first. Otherwise rounding could make two entries equal, and equal entries change the
    # trimming.
    parts = {column: (a.to(dtype).double(), b.to(dtype).double(), s) for column, (a, b, s) in parts.items()}
    active = active_slots(slots, WEIGHTS)
    half = MODES[mode](stack_of(parts, slots, dtype), active)
    rounded, exact = (half.up.double().mT @ half.down.double(), updates(MODES[mode], parts, WEIGHTS))
    unit = 2**-8 if dtype == torch.bfloat16 else 2**-11
    assert (rounded - exact).norm() / exact.norm() < 6 * unit


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["linear", "ties", "dare", "svd"])
def test_a_merge_is_written_as_a_checkpoint_with_and_without_the_base(base, folders, tmp_path, mode):
    names, weights, ids = ["plain", "patterns", "rank2"], [0.5, 0.75, -0.25], some_ids(2)
    model, writer = ComposableModel(base), CompositionWriter(tiny_llama().to("meta"), torch.float32)
    for target in (model, writer):
        for name in names:
            target.load_adapter(folders[name], name)
    model.save_composition(names, weights, mode, path=tmp_path / "saved")
    rank = writer.write(names, weights, mode, path=tmp_path / "written")
    assert rank == 6, "the largest rank among the adapters"
    written, saved = (load_file(tmp_path / kind / "adapter_model.safetensors") for kind in ("written", "saved"))
    assert written.keys() == saved.keys() and all(torch.equal(written[key], saved[key]) for key in saved)
    upstream = PeftModel.from_pretrained(deepcopy(base), str(tmp_path / "saved"))
    with torch.no_grad(), model.composed(names, [weights] * 2, mode):
        torch.testing.assert_close(upstream(input_ids=ids).logits, model(input_ids=ids).logits, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ties", "dare"])
def test_adapters_that_take_turns_in_memory_are_merged_as_if_all_were_there(base, folders, mode):
    names, ids = ["plain", "alpha32", "rslora", "alike"], some_ids(2)
    scarce, ample = ComposableModel(base, adapter_memory=6_000), ComposableModel(base)
    for name in names:
        for model in (scarce, ample):
            model.load_adapter(folders[name], name)
    assert 2 <= len(scarce.resident_adapters) < len(names), "some must have been left in their files"
    for used in (names[:2], names[2:], names[1:3]):
        weights = [[0.5, 0.5], [1.0, -0.5]]
        with torch.no_grad(), ample.composed(used, weights, mode):
            expected = ample(input_ids=ids).logits
        with torch.no_grad(), scarce.composed(used, weights, mode):
            assert torch.equal(scarce(input_ids=ids).logits, expected)
