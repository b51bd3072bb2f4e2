"""LEGO's composer against a plain loop of k-means over rank units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_retriever.methods.lego import Lego
from peft_composition.pairs import ModuleStack, active_slots

RANKS = {"a": 3, "b": 3, "c": 2}


def filled() -> tuple[ModuleStack, dict[str, np.ndarray]]:
    """A stack of three adapters with 5 inputs and 4 outputs, and the rank units [r, 9] of each."""
    draw, stack = torch.Generator().manual_seed(0), ModuleStack("m", 5, 4, torch.device("cpu"), torch.float64)
    units = {}
    for slot, (name, rank) in enumerate(RANKS.items(), start=1):
        down, up = (torch.randn(rank, width, generator=draw, dtype=torch.float64) for width in (5, 4))
        stack.write(slot, down, 2 * up, 2.0, name)
        units[name] = torch.cat([down, 2 * up], dim=1).numpy()
    return stack, units


def merged_by_a_loop(units: np.ndarray, rank: int, count: int) -> np.ndarray:
    """The update [4, 5] of the merged adapter: units are clustered one after the other."""
    centres, distance = [], np.linalg.norm(units, axis=1)
    for _ in range(count):
        if distance.max() == 0:
            break
        centres.append(units[distance.argmax()])
        distance = np.min([np.linalg.norm(units - centre, axis=1) for centre in centres], axis=0)
    for _ in range(50):
        nearest = [int(np.argmin([np.linalg.norm(unit - centre) for centre in centres])) for unit in units]
        members = [units[[n == c for n in nearest]] for c in range(len(centres))]
        centres = [m.mean(axis=0) if len(m) else centre for m, centre in zip(members, centres, strict=True)]
    update = np.zeros((4, 5))
    for m in members:
        if len(m):
            unit = m.mean(axis=0) * np.linalg.norm(m, axis=1).mean() / np.linalg.norm(m.mean(axis=0))
            update += np.outer(unit[5:], unit[:5])
    return update * np.sqrt(rank / count)


@pytest.mark.slow
def test_each_row_has_the_update_of_a_plain_loop() -> None:
    stack, units = filled()
    rows = [["a", "b", "c"], ["a", "b"], ["c"], ["b", "c"]]
    weights = torch.tensor([[float(name in row) / len(row) for name in RANKS] for row in rows])
    active = active_slots([1, 2, 3], weights)
    assert active is not None
    for count in (None, 2, 4):
        pair = Lego(count)(stack, active)
        for row, names in enumerate(rows):
            rank = max(RANKS[name] for name in names)
            expected = merged_by_a_loop(np.concatenate([units[name] for name in names]), rank, count or rank)
            actual = pair.up[row].T @ pair.down[row]
            torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-9, rtol=1e-9)


def test_one_adapter_stays_as_it_is() -> None:
    stack, units = filled()
    active = active_slots([1, 2, 3], torch.tensor([[0.2, 0.0, 0.0]]))
    assert active is not None
    pair = Lego()(stack, active)
    expected = units["a"][:, 5:].T @ units["a"][:, :5]
    torch.testing.assert_close(pair.up[0].T @ pair.down[0], torch.from_numpy(expected))
