"""The composition benchmark compares equal computations, and writes the promised figures. No test depends on a time."""

from __future__ import annotations

import json
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import bench_composition
import pytest
import torch
from bench_composition import (
    FORMULAS,
    SCALING,
    VOCABULARY,
    Cell,
    Composition,
    Pool,
    drawn,
    main,
    measured,
    peak_bytes,
    random_llama,
    ways,
)
from original_composition import StackedLoras, original_composition
from torch import Tensor

KEYS = {
    "impl", "mode", "dtype", "targets", "batch", "resident", "union", "prefill_ratio", "decode_ratio", "pairs_ratio",
    "peak_bytes",
}  # fmt: skip
CELL = Cell("fp32", "all", resident=6, batch=5)
SMALL = ["--quick", "--hidden", "64", "--layers", "1", "--length", "4", "--steps", "1", "--rounds", "1"]
ARGS = Namespace(
    mode=list(FORMULAS), impl=["ours", "einsum", "peft"], k=3, union=5, seed=0, length=4, steps=2, rounds=1, hidden=64,
    layers=2, device="cpu", threads=1, clock="wall",
)  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Pool:
    made = Pool(random_llama(hidden=64, layers=2, seed=0), "all", seed=0, peft_max=6)
    made.grow(4)
    made.grow(6)
    return made


def dense_logits(pool: Pool, asked: Composition, mode: str, ids: Tensor) -> Tensor:
    """Logits [batch, length, vocabulary].

    A copy of the base that has the row's update in its matrices reads each row alone.
    """
    adapters = [pool.adapter(number) for number in asked.adapters]
    rows = []
    for row, weights in enumerate(asked.weights.tolist()):
        merged = deepcopy(pool.base)
        for name in pool.modules:
            parts = [(weight, *adapter[name]) for weight, adapter in zip(weights, adapters, strict=True)]
            if FORMULAS[mode] == "mixture":
                update = sum(weight * SCALING * up @ down for weight, down, up in parts)
            else:
                update = SCALING * sum(w * up for w, _, up in parts) @ sum(w * down for w, down, _ in parts)
            merged.get_submodule(name).weight.data += update
        rows.append(merged(input_ids=ids[row : row + 1]).logits)
    return torch.cat(rows)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mode", FORMULAS)
def test_every_implementation_computes_the_same_with_and_without_a_cache(pool, mode):
    ids = torch.randint(VOCABULARY, (CELL.batch, 6), generator=torch.Generator().manual_seed(1))
    plain = pool.base(input_ids=ids).logits
    expected = dense_logits(pool, drawn(CELL, mode, ARGS.k, ARGS.union, ARGS.seed), mode, ids)
    assert ((expected - plain).abs().amax(dim=(1, 2)) > 0.01).all(), "the composition must be seen in the logits"
    compared = [way for way in ways(pool, CELL, ARGS) if way.mode == mode]
    assert [way.impl for way in compared] == ARGS.impl
    for way in compared:
        with way.opened() as forward:
            prefill = forward(input_ids=ids[:, :-1], use_cache=True)
            step = forward(input_ids=ids[:, -1:], past_key_values=prefill.past_key_values, use_cache=True)
        actual = torch.cat([prefill.logits, step.logits], dim=1)
        assert (actual - expected).abs().max() < 2e-5, f"{way.impl} differs"
    torch.testing.assert_close(pool.base(input_ids=ids).logits, plain, atol=0, rtol=0)


@pytest.mark.slow
def test_upstream_keeps_no_weighted_adapter_of_a_batch(pool):
    assert pool.peft is not None
    for way in ways(pool, CELL, ARGS):
        with way.opened():
            pass
    assert list(pool.peft.peft_config) == [str(number) for number in range(6)]


def test_the_original_takes_its_hooks_off_after_an_exception():
    linear = torch.nn.Sequential(torch.nn.Linear(3, 3))
    stacks = {"0": StackedLoras(torch.ones(2, 1, 3), torch.ones(2, 3, 1), torch.ones(2))}
    x = torch.ones(1, 1, 3)
    plain = linear(x)
    with pytest.raises(KeyError), original_composition(linear, stacks, torch.ones(1, 2), "mixture"):
        assert not torch.equal(linear(x), plain)
        raise KeyError
    assert torch.equal(linear(x), plain)


@pytest.mark.parametrize("mode", FORMULAS)
@pytest.mark.parametrize(("resident", "batch"), [(8, 8), (24, 8), (24, 32), (48, 32), (1000, 8)])
def test_a_batch_uses_just_the_union_and_every_row_its_k(resident, batch, mode):
    k = 1 if mode == "selection" else 3
    asked = drawn(Cell("fp32", "qv", resident, batch), mode, k=3, union=24, seed=0)
    assert len(set(asked.adapters)) == min(24, resident, batch * k) == asked.weights.shape[1]
    assert max(asked.adapters) < resident
    used = asked.weights > 0
    assert used.any(dim=0).all()
    assert used.sum(dim=1).tolist() == [k] * batch
    torch.testing.assert_close(asked.weights.sum(dim=1), torch.ones(batch))


@pytest.mark.long
def test_a_record_has_the_promised_keys_and_the_base_is_1(pool):
    records = measured(pool, CELL, ARGS)
    assert [(record["impl"], record["mode"]) for record in records] == [
        ("base", None),
        *((impl, mode) for mode in FORMULAS for impl in ARGS.impl),
    ]
    assert all(record.keys() >= KEYS for record in records)
    base, ours, einsum, *_ = records
    assert base["prefill_ratio"] == base["decode_ratio"] == 1
    assert base["peak_above_base_bytes"] == 0
    assert (base["pairs_ratio"], einsum["pairs_ratio"]) == (None, None)
    assert ours["pairs_ratio"] > 0
    # q, k, v, o: 64 to 64; gate, up, down: between 64 and 172; two layers, rank 3 · 8, float32.
    assert ours["pairs_bytes"] == 2 * (4 * (64 + 64) + 3 * (64 + 172)) * CELL.batch * 3 * 8 * 4


def test_the_peak_counts_what_was_held_at_once():
    def held_at_once() -> None:
        for _ in range(3):
            one = torch.ones(1000, 1000)
            both = one + 1
            del one, both

    assert peak_bytes(held_at_once, torch.device("cpu")) == pytest.approx(8_000_000, rel=0.01)


def run(monkeypatch: pytest.MonkeyPatch, file: Path, *options: str) -> list[dict[str, Any]]:
    monkeypatch.setattr("sys.argv", ["bench_composition.py", *SMALL, "--json", str(file), *options])
    main()
    return json.loads(file.read_text())


@pytest.mark.slow
def test_the_grid_is_walked_and_upstream_left_out_where_too_many_are_resident(monkeypatch, tmp_path, capsys):
    options = ["--resident", "4", "3", "--peft-resident-max", "3", "--targets", "qv", "all", "--mode", "fusion"]
    records = run(monkeypatch, tmp_path / "figures.json", *options)
    assert {(record["impl"], record["resident"]) for record in records} == {
        (impl, resident) for impl in ("base", "ours", "einsum", "peft") for resident in (3, 4)
    } - {("peft", 4)}
    assert {record["targets"] for record in records} == {"qv", "all"}
    printed = capsys.readouterr().out
    assert printed.count("ours fusion") == 4
    assert printed.count("peft left out: more than 3 adapters") == 2


@pytest.mark.slow
def test_what_was_measured_before_a_crash_is_kept(monkeypatch, tmp_path):
    def crash_at_4(pool: Pool, cell: Cell, *rest: Any) -> list[dict[str, Any]]:
        if cell.resident == 4:
            raise MemoryError
        return measured(pool, cell, *rest)

    monkeypatch.setattr(bench_composition, "measured", crash_at_4)
    file = tmp_path / "figures.json"
    with pytest.raises(MemoryError):
        run(monkeypatch, file, "--resident", "3", "4", "--targets", "qv", "--impl", "ours")
    assert {record["resident"] for record in json.loads(file.read_text())} == {3}


@pytest.mark.slow
def test_the_profile_shows_base_and_ours(monkeypatch, tmp_path):
    file = tmp_path / "profile.txt"
    options = ["--resident", "3", "--targets", "qv", "--impl", "ours", "--profile", str(file)]
    run(monkeypatch, tmp_path / "figures.json", *options)
    text = file.read_text()
    assert "ours mixture" in text and "aten::mm" in text and "python" in text


@pytest.mark.parametrize(
    ("options", "reason"), [(["--hidden", "100"], "no multiple of 64"), (["--union", "2"], "--k 3 is more than")]
)
def test_unusable_options_are_refused(monkeypatch, tmp_path, capsys, options, reason):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "figures.json", *options)
    assert reason in capsys.readouterr().err
