"""Which modules of a base model can carry an adapter, and what must be known of them: shape, device, dtype.

Knows torch's and transformers' linear modules; knows nothing of adapters.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
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


def names_in_parents(base: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the names that each module has where another module holds it: more than one if several hold it.

    A module inside one that is shared (a layer that a model runs twice) has one name here: its parent holds it once.
    """
    names: dict[nn.Module, list[str]] = {}
    for parent_name, parent in base.named_modules():
        for name, module in parent._modules.items():
            if module is not None:
                names.setdefault(module, []).append(f"{parent_name}.{name}" if parent_name else name)
    return names


def placement(module: nn.Module, model_dtype: torch.dtype) -> tuple[torch.device, torch.dtype]:
    """Return the device of a linear module's weight and the dtype its pairs are kept in.

    The dtype is the weight's own, or the model's where the weight is quantised: then no dtype there tells of it.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return weight.device, weight.dtype if weight.dtype in COMPUTE_DTYPES else model_dtype
    packed = next(chain(module.parameters(recurse=False), module.buffers(recurse=False)), None)
    # Those of torch's own quantised linears are hidden from torch, and on the CPU: they run nowhere else.
    return torch.device("cpu") if packed is None else packed.device, model_dtype
