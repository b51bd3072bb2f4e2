"""Where the adapters of a module lie in memory: slots, devices and dtypes. torch's `meta` device stands for any other.

A tensor on `meta` has a device, a dtype and a shape, but no numbers: torch refuses to mix it with a tensor of the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from gate_cases import ByContent
from torch import Tensor

from peft_composition import Composer
from peft_composition.gates import PreparedGates, Tally
from peft_composition.merges import Dare, Linear, Svd, Ties
from peft_composition.pairs import ActiveSlots, ModuleStack, active_slots, fusion_pair, mixture_pair, product_dtype
from peft_composition.updates import GatedAdapters, Pairs, Pass, SharedAdapters, gated_updates, row_updates

CPU, META = torch.device("cpu"), torch.device("meta")
D_IN, D_OUT = 7, 6
COMPOSERS = [mixture_pair, fusion_pair, Linear(), Ties(0.5), Dare(0.6), Svd(), Svd(2)]
WEIGHTS = torch.tensor([[0.5, 0.25, 0.0], [0.0, 1.0, -0.5], [0.75, 0.0, 0.5]])
RANKS = (2, 3, 4)  # of the adapters in slots 1, 2 and 3


def name_of(composer: Composer) -> str:
    """The name of a composer in the names of tests: the same in every process."""
    return getattr(composer, "__name__", str(composer))


def stack_of(dtype: torch.dtype, device: torch.device = CPU, module: str = "module") -> ModuleStack:
    """Three adapters of different rank and scaling."""
    stack = ModuleStack(module, D_IN, D_OUT, device, dtype)
    generator = torch.Generator().manual_seed(0)
    for slot, (rank, scaling) in enumerate(zip(RANKS, (0.7, 3.0, 1.3), strict=True), start=1):
        down, up = (torch.randn(rank, d, generator=generator).to(device, dtype) for d in (D_IN, D_OUT))
        stack.write(slot, down, scaling * up, scaling, f"adapter {slot}")
    return stack


def active(weights: Tensor = WEIGHTS, slots: Sequence[int] = (1, 2, 3)) -> ActiveSlots:
    found = active_slots(slots, weights)
    assert found is not None
    return found


def multiplied_out(composer: Any, stack: ModuleStack, weights: Tensor = WEIGHTS) -> Tensor:
    """The composed updates of the rows, [batch, d_out, d_in] float64."""
    pair = composer(stack, active(weights))
    return pair.up.double().mT @ pair.down.double()


# Slots


def test_the_number_of_slots_doubles_up_to_the_most_and_tensors_that_fit_are_not_copied():
    stack = ModuleStack("module", D_IN, D_OUT, CPU, torch.float32, most_slots=5)
    adapter = [torch.ones(2, d) for d in (D_IN, D_OUT)]
    shapes = []
    for slot, rank in ((1, 2), (2, 2), (3, 2), (3, 3), (4, 2)):
        before = stack.down
        stack.write(slot, torch.ones(rank, D_IN), torch.ones(rank, D_OUT), 1.0, "adapter")
        shapes.append((tuple(stack.down.shape[:2]), stack.down is before))
    assert shapes == [((2, 2), False), ((4, 2), False), ((4, 2), True), ((4, 3), False), ((5, 3), False)]
    assert stack.up.shape == (5, 3, D_OUT)
    before = stack.down
    stack.write(4, *adapter, 1.0, "adapter")
    assert stack.down is before
    far = ModuleStack("module", D_IN, D_OUT, CPU, torch.float32)
    far.write(1, *adapter, 1.0, "adapter")
    far.write(6, *adapter, 1.0, "adapter")
    assert len(far.down) == 7, "slots are counted from 0"


def test_a_cleared_slot_is_zero_and_another_adapter_may_take_it():
    stack = stack_of(torch.float32)
    kept = stack.down[1].clone(), stack.up[1].clone()
    stack.clear(3)
    assert not stack.down[3].any() and not stack.up[3].any()
    assert 3 not in stack.ranks and 3 not in stack.scalings and 3 not in stack.adapters
    assert torch.equal(stack.down[1], kept[0]) and torch.equal(stack.up[1], kept[1])
    stack.clear(3)  # an empty slot: nothing happens
    stack.write(3, torch.ones(1, D_IN), torch.ones(1, D_OUT), 1.0, "other")
    update = multiplied_out(mixture_pair, stack, torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.equal(update[0], torch.ones(D_OUT, D_IN, dtype=torch.float64)), "nothing of rank 4 may be left"


def test_only_as_many_ranks_are_read_as_the_adapters_in_use_have():
    stack = stack_of(torch.float32)
    down, up = stack.gather(active(WEIGHTS[:1]))
    assert (down.shape, up.shape) == ((1, 2, 3, D_IN), (1, 2, 3, D_OUT)), "ranks 2 and 3 are used, 4 is there"
    down, up = stack.take([1, 9])
    assert (down.shape, up.shape) == ((2, 2, D_IN), (2, 2, D_OUT))
    assert not down[1].any() and not up[1].any(), "slot 9 has no adapter for this module"
    assert stack.take([9])[0].shape == (1, 0, D_IN)


# Devices and dtypes


def test_a_stack_follows_its_module_to_another_device_and_dtype():
    stack = stack_of(torch.float32)
    stack.follow(META, torch.float16)
    assert {(half.device, half.dtype) for half in (stack.down, stack.up)} == {(META, torch.float16)}


@pytest.mark.slow
@pytest.mark.parametrize("composer", COMPOSERS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_composed_lies_on_the_modules_device_in_its_dtype(composer, dtype):
    """A base may be spread over devices. The weights and the input of a module lie on the CPU."""
    stacks = [stack_of(torch.float32), stack_of(dtype, META, "elsewhere")]
    for weights in (WEIGHTS, WEIGHTS[:1], torch.eye(3)):
        here, elsewhere = row_updates(composer, stacks, [1, 2, 3], weights).values()
        for update, device, expected in ((here, CPU, torch.float32), (elsewhere, META, dtype)):
            assert isinstance(update, Pairs | SharedAdapters)
            halves = update if isinstance(update, SharedAdapters) else update.pair
            assert {halves.down.device, halves.up.device} == {device}
            assert {halves.down.dtype, halves.up.dtype} == {expected}
            x, y = torch.ones(len(weights), 2, D_IN), torch.ones(len(weights), 2, D_OUT, dtype=dtype, device=device)
            added = update.add(x, y, Pass(len(weights), 2))
            assert (added.device, added.dtype, added.shape) == (device, dtype, y.shape)


@pytest.mark.parametrize("mode", [mixture_pair, fusion_pair])
def test_what_is_gated_lies_on_the_modules_device(mode):
    stack = stack_of(torch.float32, META)
    (update,) = gated_updates(ByContent(), mode, [stack], "abc", [1, 2, 3], WEIGHTS, PreparedGates()).values()
    assert isinstance(update, GatedAdapters)
    for tensor in (update.down, update.up, update.weights, update.offered, update.rows, update.tally.sums):
        assert tensor.device == META
    x, y = torch.ones(3, 2, D_IN, device=META), torch.ones(3, 2, D_OUT, device=META)
    with torch.no_grad():
        assert update.add(x, y, Pass(3, 2)).device == META


def test_sums_and_padding_lie_on_the_device_of_the_tokens():
    assert Tally.empty(2, 3, torch.ones(1, dtype=torch.float16, device=META)).sums.device == META
    mask = torch.tensor([[False, True], [True, True]])
    for reading in (Pass(2, 2, mask), Pass(2, 2)):
        assert {(real.device, real.dtype) for real in (reading.real(2, 2, META), reading.real(2, 1, META))} == {
            (META, torch.bool)
        }
    moved = active().to(META)
    assert {tensor.device for tensor in (moved.slots, moved.weights, moved.by_adapter)} == {META}
    assert moved.used == (1, 2, 3)


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_a_cpu_without_16_bit_arithmetic_multiplies_in_float32(monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        narrow = dtype in (torch.bfloat16, torch.float16)
        expected = torch.float32 if narrow and capability != "AVX512" else dtype
        assert product_dtype(CPU, dtype) == expected
        assert product_dtype(META, dtype) == dtype
        for composer in COMPOSERS:
            pair = composer(stack_of(dtype), active())
            assert (pair.down.dtype, pair.up.dtype) == (expected, expected)


@pytest.mark.parametrize("composer", COMPOSERS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_16_bits_are_summed_in_float32(monkeypatch, composer, dtype):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    stack = stack_of(dtype)
    rounded = multiplied_out(composer, stack)
    stack.follow(CPU, torch.float64)
    torch.testing.assert_close(rounded, multiplied_out(composer, stack), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("composer", [mixture_pair, fusion_pair, Linear(), Ties(1.0), Dare(1.0), Svd()], ids=name_of)
def test_adapters_of_64_bits_are_summed_in_float64(composer):
    stack = ModuleStack("module", D_IN, D_OUT, CPU, torch.float64)
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.rand(2, d, generator=generator, dtype=torch.float64) for d in (D_IN, D_OUT))
    stack.write(1, down, 4 * up, 4.0, "adapter")
    weight = 0.5 if composer is fusion_pair else 0.25  # a fusion takes the weight twice: 4 · 0.5²
    update = multiplied_out(composer, stack, torch.tensor([[weight, 0.0, 0.0]]))[0]
    torch.testing.assert_close(update, up.mT @ down, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("composer", COMPOSERS, ids=name_of)
def test_the_default_dtype_of_torch_changes_nothing(composer):
    stack = stack_of(torch.float32)
    expected = composer(stack, active())
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        actual = composer(stack, active())
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(actual.down, expected.down) and torch.equal(actual.up, expected.up)
