"""The facts about a base model's modules: which modules can carry an adapter, their shapes, devices and dtypes.

This file deals with the linear modules of torch and transformers, not with adapters.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_composition.errors import CompositionError

# The dtypes of pairs. Any other dtype (int8, packed 4-bit, float8) is a storage format of a quantised weight.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear module, or None for any other kind of module.

    Linear modules are `nn.Linear`, GPT-2's `Conv1D` (which stores its weight transposed), and quantised modules that
    declare `in_features` and `out_features`. A quantised weight may be packed, so its shape is not read.
    """
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int):
        return d_in, d_out
    return None


def names_in_parents(base: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the names of each module in its parents: more than one name if several parents hold the module.

    A module inside a shared module (a layer that a model runs twice) has one name here, because one parent holds it.
    """
    names: dict[nn.Module, list[str]] = {}
    for parent_name, parent in base.named_modules():
        for name, module in parent._modules.items():
            if module is not None:
                names.setdefault(module, []).append(f"{parent_name}.{name}" if parent_name else name)
    return names


def placement(module: nn.Module, model_dtype: torch.dtype) -> tuple[torch.device, torch.dtype]:
    """Return the device of a linear module's weight, and the dtype of the module's pairs.

    The dtype is the weight's own. A quantised weight has a storage dtype, so its module takes the model's dtype.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return weight.device, weight.dtype if weight.dtype in COMPUTE_DTYPES else model_dtype
    packed = next(chain(module.parameters(recurse=False), module.buffers(recurse=False)), None)
    # Torch's own quantised modules show no parameters or buffers, and run on the CPU only.
    return torch.device("cpu") if packed is None else packed.device, model_dtype


@torch.no_grad()
def check_finite(base: nn.Module) -> None:
    """Raise `CompositionError` if a parameter of a base holds NaN or infinity. The message names the parameter.

    Every parameter is read once. Parameters on torch's meta device, and quantised parameters, are not checked.
    """
    for name, parameter in base.named_parameters():
        if parameter.is_meta or parameter.numel() == 0 or parameter.dtype not in COMPUTE_DTYPES:
            continue
        least, largest = torch.aminmax(parameter)  # both are NaN if any number is; neither needs memory
        if not (torch.isfinite(least) and torch.isfinite(largest)):
            raise CompositionError(
                f"the base model's parameter '{name}' holds NaN or infinity; its files are damaged, or its numbers "
                f"overflow in {parameter.dtype}: copy the files again, or load the base in bfloat16 or float32"
            )
