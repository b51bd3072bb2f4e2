"""Equal rows share one pair, and rows of a mixture share the adapters. Both equal a pair for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composition_cases import merged, some_ids
from torch import Tensor

from peft_composition.pairs import ModuleStack, active_slots, mixture_pair
from peft_composition.updates import Pairs, Pass, SharedAdapters, row_updates, weighted

CLOSE = {"atol": 1e-10, "rtol": 0}


def stack_of(adapters: int, dtype: torch.dtype = torch.float64) -> ModuleStack:
    """A stack of a module 6 → 5.

    Adapters in slots 1, 2, … have ranks 3 and 2 in turn; the adapter of slot 2 has no part.
    """
    stack = ModuleStack("module", 6, 5, torch.device("cpu"), dtype)
    generator = torch.Generator().manual_seed(1)
    for slot in range(1, adapters + 1):
        if slot != 2:
            rank = 2 + slot % 2
            down, up = (torch.randn(rank, d, generator=generator, dtype=dtype) for d in (6, 5))
            stack.write(slot, down, up, 1.0, f"adapter {slot}")
    return stack


WEIGHTS = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0], [1.5, 0.0, 1.0, 2.0]])


def updated(update: Any, x: Tensor, rows: int, length: int) -> Tensor:
    """An output of ones with the update added, for an input of any layout."""
    with torch.no_grad():
        added: Tensor = update.add(x, torch.ones(*x.shape[:-1], 5, dtype=x.dtype), Pass(rows, length))
    return added


def both_forms() -> tuple[SharedAdapters, Pairs, list[Tensor]]:
    """A batch of mixtures as shared adapters and as pairs, and the dense update of each row."""
    stack, slots = stack_of(4), [1, 2, 3, 4]
    (shared,) = row_updates(mixture_pair, [stack], slots, WEIGHTS).values()
    active = active_slots(slots, WEIGHTS)
    assert isinstance(shared, SharedAdapters) and active is not None
    dense = [
        sum(float(w) * stack.up[slot].T @ stack.down[slot] for slot, w in zip(slots, row, strict=True) if slot != 2)
        for row in WEIGHTS
    ]
    return shared, Pairs(mixture_pair(stack, active)), dense


def inputs_of(rows: int, length: int) -> Tensor:
    """The inputs of a module, [rows, length, 6]."""
    return torch.randn(rows, length, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda tensor: tensor,
    "flat": lambda tensor: tensor.flatten(0, 1),
    "blocks of positions": lambda tensor: tensor.unflatten(1, (2, -1)),
    "positions first in memory": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [4, 8])
def test_a_mixtures_shared_adapters_and_its_pairs_add_the_dense_update(rows, dtype, gradients, layout):
    """8 rows are two beams of 4 samples. float32 inputs and outputs meet adapters in float64."""
    shared, pairs, dense = both_forms()
    x = inputs_of(rows, 4).to(dtype)
    expected = torch.stack(
        [torch.stack([1 + dense[row * 4 // rows] @ token.double() for token in x[row]]) for row in range(rows)]
    )
    tolerance = CLOSE if dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    for update in (shared, pairs):
        before = layout(torch.ones(rows, 4, 5, dtype=dtype))
        with torch.set_grad_enabled(gradients):
            added = update.add(layout(x), before, Pass(rows, 4))
        torch.testing.assert_close(added, layout(expected).to(dtype), **tolerance)
        assert (added is before) != gradients, "written in place, except where gradients are wanted"


def test_rows_of_an_update_may_be_chosen_again_and_again():
    shared, pairs, _ = both_forms()
    x = inputs_of(1, 3)
    for update in (shared, pairs):
        kept = update.at(torch.tensor([3, 0])).at(slice(1, 2))
        torch.testing.assert_close(updated(kept, x, 1, 3), updated(shared.at(slice(0, 1)), x, 1, 3), **CLOSE)


@pytest.mark.parametrize("gradients", [False, True])
def test_what_is_weighed_in_float32_is_added_in_the_modules_16_bits(gradients):
    half = stack_of(4, torch.bfloat16)
    weights = WEIGHTS.clone().requires_grad_(gradients)
    (shared,) = row_updates(mixture_pair, [half], [1, 2, 3, 4], weights).values()
    with torch.set_grad_enabled(gradients):
        added = shared.add(inputs_of(4, 3).bfloat16(), torch.ones(4, 3, 5, dtype=torch.bfloat16), Pass(4, 3))
    assert added.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("weights", "form"),
    [
        ([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], SharedAdapters),  # the batch has 4 adapters, twice the 2 of a row
        ([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], Pairs),  # 5 adapters: more than twice
        ([[1, 1, 1, 0, 0]], Pairs),
        ([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]], Pairs),  # one pair for both rows
    ],
)
def test_adapters_are_shared_where_this_is_at_most_twice_the_work(weights, form):
    (update,) = row_updates(mixture_pair, [stack_of(5)], [1, 2, 3, 4, 5], torch.tensor(weights).float()).values()
    assert isinstance(update, form)
    if len(weights) == 2 and isinstance(update, Pairs):
        assert len(update.pair.down) == 1


def test_an_adapter_that_overflows_for_one_row_is_nothing_to_another():
    stack = stack_of(3, torch.float16)
    stack.down = stack.down.half()
    stack.down[3] = 6e4
    update = SharedAdapters(
        stack.down[[1, 3]].flatten(0, 1),
        stack.up[[1, 3]].flatten(0, 1),
        torch.tensor([[[1.0] * 6], [[1.0] * 3 + [0.0] * 3]]),
    )
    y = updated(update, torch.full((2, 1, 6), 4.0, dtype=torch.float16), 2, 1)
    assert not y[0].isfinite().all(), "the first row must overflow for the second to be in danger"
    assert y[1].isfinite().all()


@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_an_adapter_that_overflows_is_nothing_to_a_token_that_a_gate_gives_none_of_it(mode):
    inner = torch.tensor([[[[1.0, -2.0], [torch.inf, torch.nan]]]], dtype=torch.float16)  # [1, 1, P, r]
    actual = weighted(inner, torch.tensor([[[0.5, 0.0]]]), mode)
    times = 0.5 if mode == "mixture" else 0.25
    expected = torch.tensor([[[[times, -2 * times], [0.0, 0.0]]]], dtype=torch.float16)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["mixture", "fusion", "ties"])
def test_rows_that_are_alike_share_one_pair_and_still_may_leave(model, base, parts, mode):
    names, ids = list(parts), some_ids(6)
    uniform = torch.full((6, len(names)), 1 / len(names))
    with torch.no_grad(), model.composed(names, uniform, mode):
        logits = model(input_ids=ids).logits
        updates = list(model._live._updates.values())
        model.keep_rows(torch.tensor([4, 1]))
        with model.only_rows(slice(1, 2)):
            torch.testing.assert_close(model(input_ids=ids[1:2]).logits, logits[1:2], atol=2e-5, rtol=2e-5)
    assert all(isinstance(update, Pairs) and len(update.pair.down) == len(update.pair.up) == 1 for update in updates)
    if mode != "ties":
        expected = merged(base, list(parts.values()), uniform[0].tolist(), mode)(input_ids=ids).logits
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


def test_a_mixture_of_many_adapters_holds_nothing_of_theirs_for_each_row(model, parts):
    names = list(parts)
    weights = torch.rand(6, len(names), generator=torch.Generator().manual_seed(0))
    with model.composed(names, weights):
        held = {name: update.down for name, update in model._live._updates.items()}
    for name, down in held.items():
        ranks = [part[name][0].shape[0] for part in parts.values() if name in part]
        assert down.shape[0] == len(ranks) * max(ranks)
    with model.composed(names, torch.eye(len(names))):
        rows = {update.down.shape[0] for update in model._live._updates.values()}
    assert rows == {len(names)}, "where each row has an adapter of its own, a pair for each is less work"


def test_rows_alike_each_get_the_gradient_of_their_own_weights(model):
    ids, names = some_ids(3), ["plain", "rank2"]
    together = torch.full((3, 2), 0.5, requires_grad=True)
    with model.composed(names, together):
        model(input_ids=ids).logits.square().sum().backward()
    for row in range(3):
        alone = torch.full((1, 2), 0.5, requires_grad=True)
        with model.composed(names, alone):
            model(input_ids=ids[row : row + 1]).logits.square().sum().backward()
        torch.testing.assert_close(together.grad[row], alone.grad[0], rtol=1e-3, atol=1e-3)
    model.base.zero_grad()


def test_in_float16_a_row_gets_nothing_of_an_adapter_that_it_does_not_use():
    """The inner product with the second adapter overflows to infinity, and 0 · inf is NaN."""
    down = torch.tensor([[1.0, 2.0], [60000.0, 60000.0]], dtype=torch.float16)  # two adapters of rank 1
    up = torch.tensor([[3.0], [5.0]], dtype=torch.float16)
    shared = SharedAdapters(down, up, torch.tensor([[[0.5, 0.0]], [[1.0, 0.0]]]))
    x, y = torch.ones(2, 1, 2, dtype=torch.float16), torch.full((2, 1, 1), 7.0, dtype=torch.float16)
    with torch.no_grad():
        found = shared.add(x, y, Pass(rows=2, length=1))
    assert found.flatten().tolist() == [7 + 0.5 * 3 * 3, 7 + 3 * 3]
