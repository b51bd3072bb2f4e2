"""How gates turn scores into weights: by a softmax over the offered adapters of a row, or by the best offered adapter.

The module computes with tensors only, and registers no method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def softmax_of_offered(scores: Tensor, offered: Tensor, top_k: int | None = None, temperature: float = 1.0) -> Tensor:
    """The softmax [..., P], at a temperature, of the `top_k` best offered scores [..., P]; other adapters get 0.

    `offered` [..., P] bool may be broadcast. If fewer than `top_k` adapters are offered, all offered adapters are kept.
    `top_k` None keeps all. The weights of a row without offered adapters have no meaning, but weights and gradients are
    finite.
    """
    import torch

    # Not -inf: a row that is offered no adapter would have NaN as weights and gradients.
    scaled = scores if temperature == 1 else scores / temperature
    candidates = scaled.where(offered, torch.finfo(scores.dtype).min)  # [..., P]
    if top_k is None:
        return candidates.softmax(dim=-1)
    best, places = candidates.topk(min(top_k, scores.shape[-1]), dim=-1)  # [..., k]
    return torch.zeros_like(candidates).scatter(-1, places, best.softmax(dim=-1))


def best_of_offered(scores: Tensor, offered: Tensor) -> Tensor:
    """One-hot weights [..., P]: 1 for the best of the offered scores [..., P], and 0 for all other scores.

    `offered` [..., P] bool may be broadcast. Of equal scores the first counts.
    """
    import torch

    candidates = scores.where(offered, torch.finfo(scores.dtype).min)  # [..., P]
    return torch.zeros_like(candidates).scatter(-1, candidates.argmax(dim=-1, keepdim=True), 1)
