"""Losses of detection heads, where a label that is not given may be true all the same.

All take logits z [batch, labels] and given labels y [batch, labels], 1 for a given label and 0 for all other labels,
and return one number. p = σ(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

EPSILON = 1e-6
"""ε of the collective loss."""

LossName = Literal["cross_entropy", "nnpu", "collective_pu"]


def cross_entropy(logits: Tensor, given: Tensor) -> Tensor:
    """−y log p − (1 − y) log(1 − p), the mean over sentences and labels: every label that is not given counts as false.

    The published code has this loss.
    """
    return binary_cross_entropy_with_logits(logits, given.to(logits.dtype))


def nnpu(logits: Tensor, given: Tensor, prior: float) -> Tensor:
    """The non-negative risk of Kiryo et al. (arXiv 1703.00593) with logistic loss, over pairs of sentence and label.

    R = π R_p⁺ + max(0, R_u⁻ − π R_p⁻), with R_p⁺ the mean of −log p and R_p⁻ the mean of −log(1 − p) over the labels
    that are given, and R_u⁻ the mean of −log(1 − p) over all pairs, because given and unknown labels are one sample.
    Where R_u⁻ − π R_p⁻ is negative, the gradient is the gradient of π R_p⁻ − R_u⁻, as in their algorithm 1 (β = 0, γ =
    1).

    Args:
        prior: π, the share of true labels among all pairs.
    """
    positive = given > 0
    as_true, as_false = softplus(-logits), softplus(logits)  # −log p, −log(1 − p)
    if not bool(positive.any()):
        return as_false.mean()
    true_risk = prior * as_true[positive].mean()
    false_risk = as_false.mean() - prior * as_false[positive].mean()
    if bool(false_risk < 0):
        return true_risk.detach() - false_risk + false_risk.detach()
    return true_risk + false_risk


def collective_pu(logits: Tensor, given: Tensor, pi: float, mu: float) -> Tensor:
    """ReRe's collective loss (arXiv 2105.10158): the mean over sentences of π (−log(p̄⁺ + ε)) − log(1 − |p̄ᵘ − μ| + ε).

    p̄⁺ is the mean of p over a sentence's given labels, p̄ᵘ the mean over its other labels. A sentence without a given
    label has p̄⁺ = 0, a constant without gradient. A sentence with all labels given has no second term.

    Args:
        pi: π, the weight of the given labels; the paper's is 0.04.
        mu: μ, the share of true labels that is expected among the labels that are not given; the paper's is 1.05 × the
            share of ones in the whole label matrix.
    """
    chances, given = logits.sigmoid(), given.to(logits.dtype)
    number = given.sum(dim=1)  # [batch], of given labels
    others = given.shape[1] - number
    mean_given = (chances * given).sum(dim=1) / number.clamp(min=1)
    mean_others = (chances * (1 - given)).sum(dim=1) / others.clamp(min=1)
    first = pi * -(mean_given + EPSILON).log()
    second = torch.where(others > 0, -(1 - (mean_others - mu).abs() + EPSILON).log(), 0.0)
    return (first + second).mean()


def loss_of(name: LossName, share: float, pi: float, missing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a name.

    Args:
        share: the share of ones in the label matrix of the training data.
        pi: π of the collective loss.
        missing: the share of labels that is assumed to be missing: the prior of nnPU and μ are (1 + missing) × share.
    """
    expected = (1 + missing) * share
    if name == "nnpu":
        return lambda logits, given: nnpu(logits, given, expected)
    if name == "collective_pu":
        return lambda logits, given: collective_pu(logits, given, pi, expected)
    return cross_entropy
