"""The output layer's input in one piece of memory, with which the layer is fastest. Results stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the output layer's input lies in one piece of memory.

    A model that computes only the logits of the last positions takes a slice of its hidden states. For such a slice
    torch makes one product for each row, and in bfloat16 on a CPU copies the layer's matrix each time. With one piece
    of memory torch makes one product for all rows. The logits are the same, up to rounding.
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
