"""One composition, the same for every input, written as an ordinary PEFT checkpoint.

A composition is a low-rank update, so it is a LoRA adapter, and every program that loads LoRA (PEFT, vLLM, LoRAX) can
serve it. Serving engines read one rank per adapter, and name modules by the last part of their names; the padding below
fulfils both conditions. This file deals with the file format and with pairs of batch 1, not with resident adapters.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_composition.errors import CompositionError
from peft_composition.files import WEIGHTS_FILE
from peft_composition.fit import same_base
from peft_composition.layers import linear_shape
from peft_composition.names import KEY_PREFIX
from peft_composition.pairs import Pair


def save_pairs(
    base: nn.Module,
    pairs: Mapping[str, Pair],
    path: Path,
    base_model_name_or_path: str | None,
    task_type: str | None,
    *,
    ranks: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> int:
    """Write pairs of batch 1, by module name, as a PEFT checkpoint of scaling 1. Returns the rank of the checkpoint.

    `path` must not exist or must be an empty folder; the checkpoint appears complete or not at all. `ranks` are the
    ranks that the reader allows: the composition is padded to the smallest allowed rank that is large enough. Without
    `ranks` the composition keeps its own rank. Raises `CompositionError` if `path` is taken, and if the composition's
    rank is above all allowed ranks.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CompositionError(f"'{path}' exists already; choose another path, or remove it first")
    halves = {name: _without_padding(pair) for name, pair in pairs.items()}
    rank = _allowed_rank(max(down.shape[0] for down, _ in halves.values()), ranks)
    suffixes = {name.rpartition(".")[2] for name in halves}
    tensors: dict[str, Tensor] = {}
    transposed = False
    for name, module in base.named_modules():
        if name.rpartition(".")[2] not in suffixes:
            continue
        shape = linear_shape(module)
        if shape is None:
            raise CompositionError(f"module '{name}' shares its last name with an adapted one, and is not linear")
        d_in, d_out = shape
        # The configuration lists last names. A module with a listed name that no adapter targets gets a zero update.
        padded_down, padded_up = torch.zeros(rank, d_in, dtype=dtype), torch.zeros(d_out, rank, dtype=dtype)
        if name in halves:
            down, up = halves[name]
            padded_down[: down.shape[0]] = down
            padded_up[:, : up.shape[0]] = up.T
        tensors[f"{KEY_PREFIX}{name}.lora_A.weight"] = padded_down  # [R, d_in]
        tensors[f"{KEY_PREFIX}{name}.lora_B.weight"] = padded_up  # [d_out, R]
        transposed = transposed or isinstance(module, Conv1D)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # scaling 1: the adapters' own scalings are in B
        target_modules=sorted(suffixes),
        fan_in_fan_out=transposed,
        inference_mode=True,
        base_model_name_or_path=base_model_name_or_path,
        task_type=task_type,
    )
    config.target_modules = sorted(suffixes)  # LoraConfig made a set of the names; its order changes from run to run
    _write_checkpoint(config, tensors, path)
    return rank


def base_name_for(base: nn.Module, named_by_adapter: str | None) -> str | None:
    """Return the name of the base for a new checkpoint.

    The name is normally the base's own name. The name in an adapter is taken if the base has no name, or if both names
    mean the same model: then the adapter may have the name on the Hub, while the base has a path.
    """
    own = getattr(base, "name_or_path", None)
    if not own or (named_by_adapter and same_base(own, named_by_adapter)):
        return named_by_adapter
    return str(own)


def _allowed_rank(rank: int, allowed: Sequence[int]) -> int:
    """Return the smallest of the `allowed` ranks that is large enough, or `rank` itself if no ranks are given."""
    enough = [candidate for candidate in allowed if candidate >= rank]
    if allowed and not enough:
        raise CompositionError(
            f"the composition has rank {rank}, and the highest allowed is {max(allowed)}; compose fewer adapters"
        )
    return min(enough, default=rank)


def _without_padding(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return A [R, d_in] and B^T [R, d_out] of a pair of batch 1, without the components that add nothing."""
    down, up = pair.down[0].float().cpu(), pair.up[0].float().cpu()  # [R, d_in], [R, d_out]
    acting = down.any(dim=1) & up.any(dim=1)  # [R]
    # An update of zero keeps one component, because PEFT has no rank 0.
    acting[0] |= not acting.any()
    return down[acting], up[acting]


def _write_checkpoint(config: LoraConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write both files into a folder beside `path`, and rename the folder once both are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        save_file(dict(tensors), unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(unfinished))
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
