"""The probing pass by loops, and settings for probing, for the tests of the methods that read the signals.

The reference reads adapters' files, multiplies each update out, and runs every input alone through the plain base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.methods.context import Context

LAST_QUERY = "model.layers.3.self_attn.q_proj"
"""The query projection of the last block: the miniature's base has four blocks."""


def signals_by_loops(context: Context, generator: Generator) -> dict[str, Tensor]:
    """The signals [rows, adapters] in float64, one input, one adapter and one module after the other."""
    adapters = [full_updates(context._resources.benchmark.adapters[name]) for name in context.names]
    prompts = make_prompts([row.inputs for row in context.rows], generator.tokenizer, generator.settings)
    rows: dict[str, list[list[float]]] = {"norm": [], "certainty": [], "share": []}
    for prompt in prompts:
        inputs = inputs_of_modules(generator.model.base, prompt.token_ids)
        for values in rows.values():
            values.append([])
        for updates in adapters:
            by_module = []
            for module, update in updates.items():
                x = inputs[module]  # [tokens, d_in]
                by_module.append(float(((x @ update.T).norm(dim=1) / (update.norm() * x.norm(dim=1))).mean()))
            rows["share"][-1].append(sum(by_module) / len(by_module))
            output = updates[LAST_QUERY] @ inputs[LAST_QUERY][-1]
            likely = torch.softmax(output, dim=0)
            rows["norm"][-1].append(float(output.norm()))
            rows["certainty"][-1].append(1 / (float(-(likely * likely.log()).sum()) + 1e-6))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def full_updates(folder: Path) -> dict[str, Tensor]:
    """The full matrices s B A [d_out, d_in] of an adapter's file, by module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    updates = {}
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")].double()
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            updates[module] = config["lora_alpha"] / config["r"] * up @ down.double()
    return updates


def inputs_of_modules(base: nn.Module, token_ids: list[int]) -> dict[str, Tensor]:
    """The input of every linear module of the base for one prompt, [tokens, d_in] in float64."""
    seen: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0][0].double()

        return hook

    handles = [
        module.register_forward_pre_hook(noting(name))
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        base(input_ids=torch.tensor([token_ids]))
    for handle in handles:
        handle.remove()
    return seen
