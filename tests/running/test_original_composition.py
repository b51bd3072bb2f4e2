"""The original's arithmetic, with and without its faults, against dense matrices: one update for each row."""

from __future__ import annotations

import pytest
import torch
from original_composition import Faults, StackedLoras, original_composition
from torch import Tensor

SCALINGS = [2.0, 0.5, 4.0]
MAPPING = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DOWN, UP = drawn(3, 2, 5, seed=1), drawn(3, 4, 2, seed=2)
X = drawn(3, 6, 5, seed=3)


def dense(mode: str, weights: list[float], scalings: list[float]) -> Tensor:
    """One row's update as a matrix [d_out, d_in], by the paper's equations."""
    parts = list(zip(weights, scalings, DOWN, UP, strict=True))
    if mode == "mixture":
        return sum((w * s * up @ down for w, s, down, up in parts), torch.zeros(4, 5, dtype=torch.float64))
    up = torch.stack([w * s * up for w, s, _, up in parts]).sum(dim=0)
    return up @ torch.stack([w * down for w, _, down, _ in parts]).sum(dim=0)


def expected(mode: str, mapping: list[list[float]], scalings: list[float]) -> Tensor:
    return torch.stack([x @ dense(mode, row, scalings).T for x, row in zip(X, mapping, strict=True)])


def computed(mode: str, faults: Faults) -> Tensor:
    """The output of `original_composition` on a base whose matrix is zero."""
    base = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=False, dtype=torch.float64))
    torch.nn.init.zeros_(base[0].weight)
    stacks = {"0": StackedLoras(DOWN, UP, torch.tensor(SCALINGS, dtype=torch.float64))}
    with torch.no_grad(), original_composition(base, stacks, MAPPING, mode, faults):
        return base(X)


@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize(
    ("faults", "mapping", "scalings"),
    [
        (Faults(), MAPPING.tolist(), SCALINGS),
        (Faults(scale_left_out=True), MAPPING.tolist(), [1.0, 1.0, 1.0]),
        (Faults(last_scaling=True), MAPPING.tolist(), [4.0, 4.0, 4.0]),
        (Faults(first_adapter_only=True), [[1.0, 0.0, 0.0]] * 3, SCALINGS),
        (Faults(first_adapter_only=True, scale_left_out=True), [[1.0, 0.0, 0.0]] * 3, [1.0, 1.0, 1.0]),
    ],
    ids=["right", "scale left out", "last scaling", "first adapter only", "two faults"],
)
def test_each_fault_computes_the_equations_with_its_own_weights_and_scalings(
    mode: str, faults: Faults, mapping: list[list[float]], scalings: list[float]
) -> None:
    torch.testing.assert_close(computed(mode, faults), expected(mode, mapping, scalings))


@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("fault", ["scale_left_out", "last_scaling", "first_adapter_only"])
def test_each_fault_changes_what_is_computed(mode: str, fault: str) -> None:
    assert not torch.allclose(computed(mode, Faults(**{fault: True})), computed(mode, Faults()))
