"""The output layer, given its input in the form that it multiplies fastest. Computes nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the output layer's input lies in one piece of memory.

    Asked for the logits of the last positions alone, a model cuts them out of its hidden states; for such a slice torch
    makes one product a row instead of one for all, and in bfloat16 on a CPU copies the layer's weights for every row.
    The logits are the same, up to rounding.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(_in_one_piece)
    try:
        yield
    finally:
        handle.remove()


def _in_one_piece(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in inputs)
