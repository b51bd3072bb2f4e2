"""Which modules of a base model can carry an adapter, and what must be known of them: shape, device, dtype.

Knows torch's and transformers' linear modules; knows nothing of adapters.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# The dtypes pairs are kept in. Anything else (int8, packed 4-bit, float8) is a storage format of a quantised weight.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear module, or None for any other kind.

    Linear are `nn.Linear`, GPT-2's `Conv1D` (which stores its weight transposed) and the quantised linears that
    declare `in_features` and `out_features`; the weight of those last may be packed, so its shape is not asked.
    """
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int):
        return d_in, d_out
    return None


def placement(module: nn.Module, model_dtype: torch.dtype) -> tuple[torch.device, torch.dtype]:
    """Return the device of a linear module's weight and the dtype its pairs are kept in.

    The dtype is the weight's own, or the model's where the weight is quantised.
    """
    weight = next(chain(module.parameters(recurse=False), module.buffers(recurse=False)))
    return weight.device, weight.dtype if weight.dtype in COMPUTE_DTYPES else model_dtype
