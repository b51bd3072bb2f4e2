"""The softmax over the adapters that a row is offered, by which all gates turn scores into weights.

The module computes with tensors only, and registers no method.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_top_k(top_k: int, temperature: float) -> None:
    """Check the options of a gate that keeps the `top_k` best adapters of a token.

    Raises:
        ValueError: `top_k` is less than 1, or `temperature` is not a positive number.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; a token needs one adapter at least")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be a number greater than 0")


def softmax_of_offered(scores: Tensor, offered: Tensor, top_k: int | None = None, temperature: float = 1.0) -> Tensor:
    """Weights [..., P]: the softmax, at a temperature, of the `top_k` best scores [..., P] offered; the others get 0.

    `offered` [..., P] bool may be broadcast. If fewer than `top_k` adapters are offered, all of them are kept. `top_k`
    None keeps all. The weights of a row that is offered no adapter have no meaning, but they and all gradients are
    finite.
    """
    import torch

    # Not -inf: a row that is offered no adapter would have NaN as weights and gradients.
    candidates = (scores / temperature).masked_fill(~offered, torch.finfo(scores.dtype).min)  # [..., P]
    if top_k is None:
        return candidates.softmax(dim=-1)
    best, places = candidates.topk(min(top_k, scores.shape[-1]), dim=-1)  # [..., k]
    return torch.zeros_like(candidates).scatter(-1, places, best.softmax(dim=-1))
