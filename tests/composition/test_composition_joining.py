"""Rows that join and leave an open batch get the logits that dense matrices give each row alone, in every mode."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from composition_cases import dense_logits, some_ids, tiny_llama
from conftest import POOL
from gate_cases import GATES, NAMES, Adapted, adapted_by
from model_families import InDouble
from torch import Tensor

from peft_composition import AdapterError, ComposableModel, CompositionError
from peft_composition.gates import Tally
from peft_composition.joining import Moves, OpenRows, PairsAndShared, of_present_rows, with_gated_rows
from peft_composition.pairs import Pair
from peft_composition.updates import GatedAdapters, Pairs, SharedAdapters

MODES = ["mixture", "fusion", "linear", "ties", "dare", "svd"]
NAMES_OF_POOL = list(POOL)


@dataclass
class Member:
    """A row in the batch: its tokens [length], and the logits that it gets alone [length, vocabulary]."""

    ids: Tensor
    alone: Tensor


@pytest.fixture(scope="module")
def double(folders) -> ComposableModel:
    """The pool's adapters on the tiny base in float64."""
    return loaded(folders)


@pytest.fixture(scope="module")
def other(folders) -> ComposableModel:
    """The same adapters on another copy of the base."""
    return loaded(folders)


def loaded(folders, **options) -> ComposableModel:
    model = ComposableModel(tiny_llama().double(), **options)
    for name, folder in folders.items():
        model.load_adapter(folder, name)
    return model


def some_weights(draw: random.Random, rows: int, adapters: int) -> Tensor:
    """Weights of rows that use one, several, all or none of the adapters."""
    weights = torch.zeros(rows, adapters)
    for row in weights:
        for column in draw.sample(range(adapters), min(adapters, draw.choice([0, 1, 2, 3, adapters]))):
            row[column] = draw.choice([0.25, 0.5, 1.0, -0.75])
    return weights


def come_and_go(model, other, parts, modes, seed, expected=0) -> int:
    """Rows of several modes join and leave in random order; after each change every row's logits are compared."""
    draw, members, most = random.Random(seed), [], 0
    with torch.inference_mode(), InDouble(), model.open_batch(expected=expected):
        for turn in range(8):
            new = draw.choice([1, 1, 2, 3])
            names = draw.sample(NAMES_OF_POOL, draw.choice([1, 3, 5]))
            weights, mode = some_weights(draw, new, len(names)), draw.choice(modes)
            model.add_rows(names, weights, mode)
            ids = some_ids(new, seed=100 * seed + turn)
            if mode in ("mixture", "fusion"):
                alone = dense_logits(other.base, [parts[name] for name in names], weights, mode, ids)
            else:  # the merges' own tests compare a batch of one row with dense matrices
                alone = composed_alone(other, names, weights, mode, ids)
            members += [Member(*row) for row in zip(ids, alone, strict=True)]
            joined = slice(len(members) - new, len(members))
            with model.only_rows(joined):
                check(model, members[joined])
            check(model, members)
            most = max(most, len(members))
            rows = draw.sample(range(len(members)), draw.randint(1, len(members)))
            model.keep_rows(torch.tensor(rows))
            members = [members[row] for row in rows]
            check(model, members)
    return most


def composed_alone(model, names, weights, mode, ids) -> list[Tensor]:
    """The logits of each row in a batch of its own."""
    rows = []
    for weight, row in zip(weights, ids, strict=True):
        with model.composed(names, weight[None], mode):
            rows.append(model(input_ids=row[None]).logits[0])
    return rows


def check(model, members) -> None:
    logits = model(input_ids=torch.stack([member.ids for member in members])).logits
    torch.testing.assert_close(logits, torch.stack([member.alone for member in members]), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_all_modes_come_and_go(double, other, parts, seed):
    assert come_and_go(double, other, parts, MODES, seed) > 4


@pytest.mark.slow
@pytest.mark.parametrize("expected", [0, 3, 40])
def test_memory_that_no_row_has_set_is_never_read(double, other, parts, expected):
    torch.use_deterministic_algorithms(True)  # torch then fills memory that is not set with NaN
    try:
        assert torch.empty(2).isnan().all()
        assert come_and_go(double, other, parts, MODES, 1, expected) > 4
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_rows_come_and_go_while_adapters_are_read_again(folders, other, parts):
    limited = loaded(folders, adapter_memory=100_000)
    come_and_go(limited, other, parts, ["mixture", "fusion"], seed=5)
    assert len(limited.resident_adapters) < len(POOL)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapted_by("llama", tmp_path_factory.mktemp("gated"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("gate", GATES)
def test_rows_join_a_batch_with_a_gate(gated, gate, mode):
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, -1.0, 0.0]])
    ids = some_ids(4, length=6)
    own, plain = GATES[gate]
    with torch.no_grad(), InDouble():
        alone = [
            gated.plain(w, mode, plain, prompt=6)(input_ids=row[None]).logits[0]
            for w, row in zip(weights, ids, strict=True)
        ]
    members = [Member(*row) for row in zip(ids, alone, strict=True)]
    with torch.inference_mode(), InDouble(), gated.model.open_batch(NAMES, mode, own) as model:
        model.add_rows(NAMES, weights[:2], mode)
        check(model, members[:2])
        before = model.gate_usage().weights
        model.add_rows(NAMES[:2], weights[2:, :2], mode)
        torch.testing.assert_close(model.gate_usage().weights[:2], before)
        with model.only_rows(slice(2, 4)):
            check(model, members[2:])
        check(model, members)
        usage = model.gate_usage().weights
        model.keep_rows(torch.tensor([3, 0]))
        torch.testing.assert_close(model.gate_usage().weights, usage[[3, 0]])
        model.add_rows(NAMES, weights[1:2], mode)
        check(model, [members[3], members[0], members[1]])
        with pytest.raises(CompositionError, match="the mode of the batch"):
            model.add_rows(NAMES, weights, "ties")


@pytest.mark.parametrize("rows", [[2, 0], [0, 1, 2], [2, 1, 0], [], [1, 1, 0, 2]])
def test_rows_move_to_the_places_in_which_they_are_wanted(rows):
    held = torch.arange(6.0).reshape(3, 2)
    assert Moves(rows).of(held.clone())[: len(rows)].tolist() == [[2 * row, 2 * row + 1] for row in rows]


def test_what_a_gate_remembers_follows_its_rows():
    values, sums = torch.arange(6.0).reshape(3, 2), torch.arange(12.0).reshape(3, 4)  # of three composed rows
    factor, weight, offer = torch.zeros(1, 2), torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool)
    present = torch.tensor([2, 0])  # one row has left, and the others have changed places
    tally = Tally(sums.clone())
    update = GatedAdapters(
        factor, factor, weight, offer, present, "mixture", GATES["content"][0], None, tally, {"mean": values}
    )
    kept = of_present_rows(update, {})
    assert kept.memory["mean"].tolist() == [[4, 5], [0, 1]]
    assert kept.tally.sums.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert kept.rows.tolist() == [0, 1]
    joined = with_gated_rows(update, weight[:1], offer[:1], {})
    assert joined.memory["mean"].tolist() == [[4, 5], [0, 1], [0, 0]]
    assert joined.tally.sums.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert joined.rows.tolist() == [0, 1, 2]


def test_rows_join_a_batch_that_was_composed_at_once(double, other, parts):
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.25, -1.0]])
    ids = some_ids(3)
    names = ["rank2", "head"]
    with InDouble():
        alone = dense_logits(other.base, [parts[name] for name in names], weights, "mixture", ids)
    members = [Member(*row) for row in zip(ids, alone, strict=True)]
    with InDouble(), torch.inference_mode(), double.composed(names, weights[:2]):
        double.add_rows(names, weights[2:])
        check(double, members)


def test_a_row_that_cannot_join_changes_nothing(double, other, parts):
    ids = some_ids(1)
    with InDouble():
        alone = dense_logits(other.base, [parts["plain"]], torch.ones(1, 1), "mixture", ids)
    with pytest.raises(CompositionError, match="no batch is open"):
        double.add_rows(["plain"], [[1.0]])
    with InDouble(), torch.inference_mode(), double.open_batch():
        with pytest.raises(CompositionError, match="the batch has no row"):
            double(input_ids=ids)
        double.add_rows(["plain"], [[1.0]])
        for names, weights, mode in (
            (["none"], [[1.0]], "mixture"),
            (["head"], [[torch.nan]], "mixture"),
            (["head"], [[1.0]], "mean"),
        ):
            with pytest.raises((CompositionError, AdapterError)):
                double.add_rows(names, weights, mode)
        with double.only_rows(slice(0, 1)), pytest.raises(CompositionError, match="within only_rows"):
            double.add_rows(["head"], [[1.0]])
        check(double, [Member(ids[0], alone[0])])
    assert "forward" not in double.base.get_submodule("model.layers.0.self_attn.q_proj").__dict__


@pytest.mark.slow
def test_rows_that_share_adapters_stay_right_when_rows_leave_and_when_all_have_left(folders, other, parts):
    names, pool, ids = ["plain", "rank2", "head"], loaded(folders), some_ids(3)
    for name in POOL.keys() - names:
        pool.unload_adapter(name)
    weights = torch.tensor([[0.5, 0.25, 1.0], [1.0, -0.5, 0.5], [0.25, 1.0, -1.0]])  # each row uses the whole pool
    with InDouble():
        alone = dense_logits(other.base, [parts[name] for name in names], weights, "mixture", ids)
    members = [Member(*row) for row in zip(ids, alone, strict=True)]
    with InDouble(), torch.inference_mode(), pool.open_batch():
        pool.add_rows(names, weights)
        pool.keep_rows(torch.tensor([2, 0]))
        check(pool, [members[2], members[0]])
        pool.keep_rows(torch.tensor([], dtype=torch.long))
        pool.unload_adapter("head")  # no row shares this adapter any more
        pool.load_adapter(folders["head"], "head")
        pool.add_rows(names, weights[1:])
        check(pool, members[1:])


def test_rows_that_fail_while_they_join_leave_the_batch_as_it_was():
    """The pairs have already joined when the weights of the shared adapters fail, because their shape is wrong."""
    pair = Pair(torch.ones(2, 1, 3), torch.ones(2, 1, 3))
    shared = SharedAdapters(torch.ones(4, 3), torch.ones(4, 3), torch.ones(2, 1, 4))
    batch = OpenRows()
    batch.join([{"here": Pairs(pair)}, {"here": shared}], 2)
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        batch.join([{"here": Pairs(pair)}, {"here": replace(shared, weights=torch.ones(2, 1, 5))}], 2)
    assert batch.rows == 2
    update = batch.updates()["here"]
    assert isinstance(update, PairsAndShared)
    assert update.pairs.pair.down.shape == pair.down.shape
    assert update.shared.weights.shape == shared.weights.shape


@pytest.mark.slow
def test_rows_that_share_adapters_stay_right_when_adapters_come_and_go_beside_them(folders, other, parts):
    names, pool, ids = ["plain", "rank2", "head"], loaded(folders), some_ids(2)
    for name in POOL.keys() - names:
        pool.unload_adapter(name)
    weights = torch.tensor([[0.5, 0.25, 1.0], [1.0, -0.5, 0.5]])  # each row uses the whole pool
    with InDouble():
        alone = dense_logits(other.base, [parts[name] for name in names], weights, "mixture", ids)
    members = [Member(*row) for row in zip(ids, alone, strict=True)]
    with InDouble(), torch.inference_mode(), pool.open_batch():
        pool.add_rows(names, weights[:1])
        pool.load_adapter(folders["alpha32"], "alpha32")
        pool.add_rows(names, weights[1:])
        check(pool, members)
        for name in (*names, "alpha32"):
            pool.unload_adapter(name)
        check(pool, members)
