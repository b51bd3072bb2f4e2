"""The names of an adapter's tensors: which module of the base each of them belongs to.

PEFT writes `base_model.model.MODULE.lora_A.weight`. Files of other programs may also have the wrappers in which a model
was trained (`_orig_mod.`, `module.`), the prefix of PEFT twice or not at all, and the adapter's own name
(`.lora_A.default.weight`). Names may also say where an earlier version of transformers had a module. PEFT moves these
names by the conversion table of transformers, and so does this file, with PEFT's own function.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from peft_composition.errors import AdapterError, quoted, reason_of
from peft_composition.files import TensorInfo

conversion: Any
try:
    from peft.utils import transformers_weight_conversion as conversion
except ImportError:  # an older PEFT, or one beside transformers 4: there PEFT moves no names either
    conversion = None

KEY_PREFIX = "base_model.model."
"""The prefix that PEFT writes before the name of a module of the base."""

Half = Literal["lora_A", "lora_B"]

_LORA_KEY = re.compile(r"(?P<path>.+)\.(?P<half>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight", re.DOTALL)

# Parts of a name that a wrapper adds: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.\d+(\..*)?", re.DOTALL)


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a file, sorted into halves of low-rank pairs and other tensors."""

    lora: dict[tuple[str, Half], str]  # the name in the file, by module of the base and half
    others: list[str]  # the names in the file of all others, sorted


def named_tensors(
    header: Mapping[str, TensorInfo], config: LoraConfig, adapter: str, base: PreTrainedModel | None
) -> NamedTensors:
    """Find the module of each tensor of a file. Without a base, modules have the names that the file gives them.

    A module that `base` does not have keeps its name, too. Raises `AdapterError` if two tensors are the same half of
    one module, and if PEFT's conversion for this base fails.
    """
    present = set() if base is None else {name for name, _ in base.named_modules()}
    found = {key: match for key in sorted(header) if (match := _LORA_KEY.fullmatch(key))}
    halves: dict[str, Half] = {k: "lora_A" if match["half"] == "lora_A" else "lora_B" for k, match in found.items()}
    modules = {key: module_name(match["path"], present) for key, match in found.items()}
    try:
        moved = {} if base is None else _moved(modules, halves, header, config, base)
    except Exception as error:  # names and shapes are foreign, and the functions of PEFT do not check them
        raise AdapterError(adapter, f"PEFT cannot convert it for this base: {reason_of(error)}") from error
    lora: dict[tuple[str, Half], str] = {}
    for key, half in halves.items():
        module = moved[key] if moved.get(key) in present else modules[key]
        if (module, half) in lora:
            reason = f"its file holds its {half} twice, as {quoted(lora[module, half])} and {quoted(key)}"
            raise AdapterError(adapter, f"{reason}; save each adapter into a file of its own", module)
        lora[module, half] = key
    return NamedTensors(lora, [key for key in sorted(header) if key not in found])


def module_name(path: str, present: Collection[str] = ()) -> str:
    """Return the name of a module in the base from the name in a file, without PEFT's prefix and without wrappers.

    A name that only lacks the prefix is kept if it is among `present`.
    """
    exact = path.removeprefix(KEY_PREFIX)
    if exact in present:
        return exact
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    while parts[:1] == ["module"] or parts[:2] == ["base_model", "model"]:
        parts = parts[1:] if parts[0] == "module" else parts[2:]
    return ".".join(parts)


def other_module(key: str, present: Collection[str] = ()) -> str:
    """Return the module of a tensor that is neither lora_A nor lora_B of PEFT."""
    path, _, parameter = key.partition(".lora_")
    owner = path if parameter else key.rpartition(".")[0].removesuffix(".base_layer")
    return module_name(owner, present)


def base_parameter(key: str, base: PreTrainedModel) -> Tensor | None:
    """Return the parameter of the base that a tensor of the file would be a copy of, or None if there is none."""
    owner, _, parameter = key.rpartition(".")
    name = module_name(owner.removesuffix(".base_layer"), {name for name, _ in base.named_modules()})
    try:
        return base.get_parameter(f"{name}.{parameter}")
    except AttributeError:
        return None


def refuse_fused_experts(
    config: LoraConfig, is_target: Callable[[str], bool], adapter: str, base: PreTrainedModel
) -> None:
    """Raise `AdapterError` if the adapter adapts experts one by one that the base holds in one parameter.

    PEFT turns such an adapter into an adapter of parameters. PEFT's own table says which names of modules belong to
    experts.
    """
    if conversion is None:
        return
    changed = copy.deepcopy(config)
    if isinstance(config.target_modules, str) and config.target_modules.lower() != "all-linear":
        # PEFT matches an expression without a time limit. It reads lists of last names as well.
        parameters = [name for name, _ in base.named_parameters()]
        experts = {name.rpartition(".")[0] for name in parameters}
        tried = {name for name, _ in base.named_modules() if name} | set(parameters)
        tried |= {f"{container}.{name}" for container in experts for name in _EXPERTS_MODULES}
        changed.target_modules = sorted({name.rpartition(".")[2] for name in tried if is_target(name)})
    try:
        conversion.convert_peft_config_for_transformers(changed, base, None)
    except ValueError as error:
        raise AdapterError(adapter, f"{_FUSED} ({reason_of(error)})") from error
    if changed.target_parameters:
        raise AdapterError(adapter, _FUSED, ", ".join(sorted(changed.target_parameters)))


# Names of modules inside an expert before transformers 5 fused them.
_EXPERTS_MODULES = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")

_FUSED = (
    "it adapts experts or routers of a mixture-of-experts model one by one, and this base holds them fused in "
    "parameters, which are no linear modules; use an adapter of the attention's modules alone"
)


def is_of_fused_experts(module: str, base: PreTrainedModel) -> bool:
    """Return whether a module that the base lacks is an expert of a layer whose experts are fused parameters."""
    match = _EXPERT.fullmatch(module)
    if match is None:
        return False
    try:
        experts = base.get_submodule(match["experts"])
    except AttributeError:
        return False
    return any(True for _ in experts.parameters(recurse=False))


def fused_experts(adapter: str, module: str) -> AdapterError:
    """Return the error for a tensor of an expert that the base holds fused with others."""
    return AdapterError(adapter, _FUSED, module)


def _moved(
    modules: Mapping[str, str],
    halves: Mapping[str, Half],
    header: Mapping[str, TensorInfo],
    config: LoraConfig,
    base: PreTrainedModel,
) -> dict[str, str]:
    """Return where each tensor's module is in this base, by the tensor's name in the file."""
    names = {key: _mapped(f"{module}.{halves[key]}.weight", base) for key, module in modules.items()}
    if conversion is not None:
        # PEFT's function takes tensors and moves them as they are. On the meta device they hold no memory.
        tensors = {name: torch.empty(header[key].shape, device="meta") for key, name in names.items()}
        source = {id(tensors[name]): key for key, name in names.items()}
        converted = conversion.convert_peft_adapter_state_dict_for_transformers(base, config, tensors)
        names |= {source[id(tensor)]: name for name, tensor in converted.items() if id(tensor) in source}
    moved = {k: name.removeprefix(KEY_PREFIX).removesuffix(f".{halves[k]}.weight") for k, name in names.items()}
    return _moved_by_class(moved, base)


def _moved_by_class(modules: Mapping[str, str], base: PreTrainedModel) -> dict[str, str]:
    """Move the modules that the base does not have by the table that transformers has for the base's class.

    PEFT 0.21 reads this table only if the table has the model's type. So PEFT does not move the names of Qwen2-VL, for
    example.
    """
    present = {name for name, _ in base.named_modules()}
    if conversion is None or present.issuperset(modules.values()):
        return dict(modules)
    table = conversion.get_model_conversion_mapping(base)
    renamings = [entry for entry in table if isinstance(entry, conversion.WeightRenaming)]
    renamed = {}
    for key, module in modules.items():
        weight, _ = conversion.rename_source_key(f"{module}.weight", renamings, [])
        renamed[key] = weight.removesuffix(".weight")
    return {key: module if module in present else renamed[key] for key, module in modules.items()}


def _mapped(name: str, base: Any) -> str:
    """Return PEFT's name of a tensor after the mapping of names that some classes of models carry themselves."""
    for pattern, replacement in getattr(base, "_checkpoint_conversion_mapping", {}).items():
        name, replaced = re.subn(pattern, replacement, name)
        if replaced:
            break
    return KEY_PREFIX + name


def examples(modules: Iterable[str]) -> str:
    """Return some names of modules for a message."""
    listed = sorted(modules)
    return ", ".join(map(quoted, listed[:2])) + (f" and {len(listed) - 2} others" if len(listed) > 2 else "")
