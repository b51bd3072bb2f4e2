"""Losses of detection heads against loops over sentences and labels, in plain numbers, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lora_retriever.training.losses import EPSILON, collective_pu, cross_entropy, nnpu

Numbers = list[list[float]]


def chance(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def slow_cross_entropy(z: Numbers, y: Numbers) -> float:
    terms = [
        -math.log(chance(a)) if given else -math.log(1 - chance(a))
        for row, marks in zip(z, y, strict=True)
        for a, given in zip(row, marks, strict=True)
    ]
    return sum(terms) / len(terms)


def slow_collective(z: Numbers, y: Numbers, pi: float, mu: float) -> float:
    total = 0.0
    for row, marks in zip(z, y, strict=True):
        given = [chance(a) for a, mark in zip(row, marks, strict=True) if mark]
        others = [chance(a) for a, mark in zip(row, marks, strict=True) if not mark]
        total += pi * -math.log((sum(given) / len(given) if given else 0.0) + EPSILON)
        if others:
            total -= math.log(1 - abs(sum(others) / len(others) - mu) + EPSILON)
    return total / len(z)


def slow_nnpu(z: Numbers, y: Numbers, prior: float) -> tuple[float, float, float]:
    """R_p⁺, R_p⁻ and R_u⁻."""
    pairs = [(a, mark) for row, marks in zip(z, y, strict=True) for a, mark in zip(row, marks, strict=True)]
    given = [a for a, mark in pairs if mark]
    true_as_true = sum(-math.log(chance(a)) for a in given) / len(given)
    true_as_false = sum(-math.log(1 - chance(a)) for a in given) / len(given)
    all_as_false = sum(-math.log(1 - chance(a)) for a, _ in pairs) / len(pairs)
    return true_as_true, true_as_false, all_as_false


def slope(function: Callable[[Numbers], float], z: Numbers, step: float = 1e-6) -> Numbers:
    """The gradient by central differences."""
    found = []
    for i, row in enumerate(z):
        found.append([])
        for j in range(len(row)):
            moved = [[[*r] for r in z] for _ in range(2)]
            moved[0][i][j] += step
            moved[1][i][j] -= step
            found[-1].append((function(moved[0]) - function(moved[1])) / (2 * step))
    return found


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [6, 5] and given labels: the first sentence has no label, the second has all, and the others have some."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    y = (torch.rand(6, 5, generator=generator) < 0.3).double()
    y[0], y[1] = 0, 1
    return z.requires_grad_(), y


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["cross_entropy", "collective_pu"])
def test_a_loss_and_its_gradient_equal_a_loop_over_sentences(name: str, seed: int) -> None:
    z, y = case(seed)
    if name == "cross_entropy":
        loss, slow = cross_entropy(z, y), lambda numbers: slow_cross_entropy(numbers, y.tolist())
    else:
        loss = collective_pu(z, y, 0.04, 0.1)

        def slow(numbers: Numbers) -> float:
            return slow_collective(numbers, y.tolist(), 0.04, 0.1)

    loss.backward()
    assert loss.item() == pytest.approx(slow(z.tolist()), abs=1e-12)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor(slope(slow, z.tolist()), dtype=torch.float64), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("prior", "is_negative"), [(0.05, False), (1.5, True)])
def test_nnpu_has_kiryos_value_and_gradient(prior: float, is_negative: bool) -> None:
    z, y = case(0)

    def risks(numbers: Numbers) -> tuple[float, float]:
        true_as_true, true_as_false, all_as_false = slow_nnpu(numbers, y.tolist(), prior)
        return prior * true_as_true, all_as_false - prior * true_as_false

    first, second = risks(z.tolist())
    assert (second < 0) == is_negative
    loss = nnpu(z, y, prior)
    loss.backward()
    assert loss.item() == pytest.approx(first + max(0.0, second))

    def direction(numbers: Numbers) -> float:
        first, second = risks(numbers)
        return -second if is_negative else first + second

    assert z.grad is not None
    torch.testing.assert_close(
        z.grad, torch.tensor(slope(direction, z.tolist()), dtype=torch.float64), atol=1e-7, rtol=1e-5
    )


def test_a_sentence_without_labels_moves_only_the_mean_of_its_labels() -> None:
    z, y = case(0)
    collective_pu(z, y, 0.04, 0.5).backward()
    alone = z.detach()[:1].requires_grad_()
    (-(1 - (alone.sigmoid().mean() - 0.5).abs() + EPSILON).log() / 6).backward()
    assert z.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(z.grad[:1], alone.grad)
