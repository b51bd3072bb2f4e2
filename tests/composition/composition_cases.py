"""Tiny models, random adapters and the dense reference that the composition tests share.

The reference uses nothing of the package under test: upstream PEFT reads an adapter's A, B and scaling, the update is
multiplied out into a full matrix by the formula and added to the matrices of a copy of the base, and this copy reads
each row alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

Parts = dict[str, tuple[Tensor, Tensor, float]]  # by module: A [r, d_in], B [d_out, r], scaling


def tiny_llama(seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama whose logits are large enough for its greedy tokens to differ between compositions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, eos_token_id=None,
        bos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2, whose linear modules are `Conv1D`."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, pad_token_id=0,
        eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def write_adapter(folder: Path, base: nn.Module, seed: int, **settings: Any) -> Path:
    """Write a random LoRA checkpoint with PEFT's own save_pretrained. B is not zero."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
    model = get_peft_model(deepcopy(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    with patch.object(PeftModel, "create_or_update_model_card"):  # no test reads the README, which takes long to render
        model.save_pretrained(str(folder))
    return folder


def edit_config(folder: Path, **settings: Any) -> Path:
    """Overwrite settings in a checkpoint's adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def parts_of(folder: Path, base: nn.Module) -> Parts:
    """Read an adapter's A, B and scaling of each module with upstream PEFT."""
    model = PeftModel.from_pretrained(deepcopy(base), str(folder))
    parts: Parts = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            key = name.removeprefix("base_model.model.")
            parts[key] = (down.detach().double(), up.detach().double(), float(module.scaling["default"]))
    return parts


def dense_update(parts: Sequence[Parts], weights: Sequence[float], mode: str, module: str) -> Tensor | None:
    """Multiply out the update of one module in float64, [d_out, d_in], one adapter after the other."""
    used = [(*part[module], weight) for part, weight in zip(parts, weights, strict=True) if module in part]
    if not used:
        return None
    if mode == "mixture":
        return sum((w * s * (b @ a) for a, b, s, w in used), torch.zeros((), dtype=torch.float64))
    rank = max(a.shape[0] for a, *_ in used)
    down = torch.zeros(rank, used[0][0].shape[1], dtype=torch.float64)
    up = torch.zeros(used[0][1].shape[0], rank, dtype=torch.float64)
    for a, b, scaling, weight in used:
        down[: a.shape[0]] += weight * a
        up[:, : a.shape[0]] += weight * scaling * b
    return up @ down


def merged(base: nn.Module, parts: Sequence[Parts], weights: Sequence[float], mode: str) -> Any:
    """Return a copy of the base with one composition added to its matrices. Parameters that are tied to these stay."""
    model = deepcopy(base)
    for name in {name for part in parts for name in part}:
        update = dense_update(parts, weights, mode, name)
        if update is not None:
            module: Any = model.get_submodule(name)
            update = update.T if isinstance(module, Conv1D) else update
            module.weight = nn.Parameter(module.weight.detach() + update.to(module.weight.dtype))
    return model


def dense_logits(base: nn.Module, parts: Sequence[Parts], weights: Tensor, mode: str, ids: Tensor) -> Tensor:
    """Logits [batch, length, vocabulary], each row read alone by its own dense model."""
    rows = [merged(base, parts, w.tolist(), mode)(input_ids=ids[i : i + 1]).logits for i, w in enumerate(weights)]
    return torch.cat(rows).detach()


def some_ids(batch: int, length: int = 7, seed: int = 3) -> Tensor:
    """Random token ids without padding, [batch, length]."""
    return torch.randint(1, 48, (batch, length), generator=torch.Generator().manual_seed(seed))
