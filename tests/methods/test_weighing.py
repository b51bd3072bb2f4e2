"""The softmax over the offered adapters: equal to a loop over rows, and with finite gradients for every offer."""

from __future__ import annotations

import pytest
import torch
from expert_cases import softmax

from lora_retriever.methods.parts.weighing import softmax_of_offered


@pytest.mark.parametrize("top_k", [None, 1, 2, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_best_of_what_is_offered_share_the_weight(top_k: int | None, temperature: float) -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offered = torch.tensor([[True] * 4, [True, False, True, False], [False, True, False, False]])
    actual = softmax_of_offered(scores, offered, top_k, temperature)
    for row in range(3):
        among = {p: float(scores[row, p]) / temperature for p in range(4) if offered[row, p]}
        best = sorted(among, key=lambda p: -among[p])[:top_k]
        expected = softmax({p: among[p] for p in best})
        assert actual[row].tolist() == pytest.approx([expected.get(p, 0.0) for p in range(4)], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("top_k", [None, 2])
def test_gradients_are_finite_also_of_rows_that_are_offered_nothing(top_k: int | None, dtype: torch.dtype) -> None:
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    offered = torch.tensor([[True, True, False, True], [False] * 4])[:, None]  # [2, 1, 4]
    weights = softmax_of_offered(scores, offered, top_k, temperature=0.5)
    weights.square().where(offered, 0).sum().backward()
    assert weights.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0].any() and not scores.grad[1].any()
