"""Whether the tensors of an adapter fit its configuration and the modules of a base, by names and shapes alone.

`inspect_adapter` and `load_adapter` both make these checks. Every misfit is an `AdapterError` that names the adapter
and the module, and says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel

from peft_composition.configuration import modules_in_words
from peft_composition.errors import AdapterError, quoted
from peft_composition.exactness import rank_and_scaling
from peft_composition.files import TensorInfo
from peft_composition.layers import linear_shape, names_in_parents
from peft_composition.matching import PatternError, TargetMatcher
from peft_composition.names import (
    KEY_PREFIX,
    Half,
    NamedTensors,
    base_parameter,
    examples,
    fused_experts,
    is_of_fused_experts,
    other_module,
    refuse_fused_experts,
)

# The dtypes of tensors that can be composed, as safetensors names them.
_READ_DTYPES = ("F32", "BF16", "F16", "F64")


@dataclass(frozen=True)
class ModuleHeader:
    """The facts about an adapter's part for one module that are known without its tensors."""

    d_in: int
    d_out: int
    rank: int
    scaling: float
    keys: tuple[str, str]  # the names of A and B in the file


def modules_of_file(
    config: LoraConfig, name: str, tensors: NamedTensors, info: Mapping[str, TensorInfo]
) -> dict[str, ModuleHeader]:
    """Return the modules that a file has tensors for, by the file's names, checked without a base."""
    names = list(dict.fromkeys(module for module, _ in tensors.lora))
    matcher = TargetMatcher(config)
    targeted = [module for module in names if _is_target(matcher, module, name)]
    if names and not targeted and not isinstance(config.target_modules, str):
        reason = f"its file has tensors for {examples(names)}, and adapter_config.json targets other modules"
        raise AdapterError(name, reason, modules_in_words(config))
    modules = {}
    for module in names:
        rank, scaling = _rank_and_scaling(config, matcher, module, name)
        key = tensors.lora.get((module, "lora_A"))
        shape = info[key].shape if key else ()
        # In the base the module may have another name, for which rank_pattern has another rank.
        if shape and shape[0] in [config.r, *(config.rank_pattern or {}).values()]:
            rank = shape[0]
        modules[module] = _module_header(tensors, info, name, module, (rank, scaling))
    return modules


def modules_of_base(
    config: LoraConfig, name: str, tensors: NamedTensors, info: Mapping[str, TensorInfo], base: PreTrainedModel
) -> tuple[dict[str, ModuleHeader], list[str]]:
    """Return the modules of `base` that an adapter adapts, each checked, and notes for the user."""
    matcher = TargetMatcher(config, _every_linear(base) if _is_all_linear(config) else None)
    refuse_fused_experts(config, lambda module: _is_target(matcher, module, name), name, base)
    shapes = _targeted_shapes(config, matcher, name, base)
    scales = {module: _rank_and_scaling(config, matcher, module, name) for module in shapes}
    present = {module for module, _ in base.named_modules()}
    adapted = {module for module, _ in tensors.lora}
    foreign = sorted((adapted | {other_module(key, present) for key in tensors.others}) - present)
    if foreign:
        # An adapter of another base lacks some tensors, too. This reason is more helpful.
        raise _foreign(foreign, adapted & present, name, shapes, tensors, base)
    left_alone = _outside_language_model(shapes.keys() - adapted, adapted, base)
    modules = {
        module: _module_header(tensors, info, name, module, scales[module], *shape)
        for module, shape in shapes.items()
        if module not in left_alone
    }
    for (module, _), key in sorted(tensors.lora.items()):
        if module not in modules:
            raise unexpected_tensor(key, name, module)
    return modules, _notes_on(config, base, left_alone)


def _is_all_linear(config: LoraConfig) -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear"


def _every_linear(base: PreTrainedModel) -> set[str]:
    """Return the modules that PEFT takes for the word all-linear: every linear module except the output embedding."""
    head = base.get_output_embeddings()
    return {name for name, module in base.named_modules() if linear_shape(module) is not None and module is not head}


def _targeted_shapes(
    config: LoraConfig, matcher: TargetMatcher, name: str, base: PreTrainedModel
) -> dict[str, tuple[int, int]]:
    """Return (d_in, d_out) of every module of `base` that the configuration targets."""
    held_as = names_in_parents(base)
    shapes = {}
    for module_name, module in base.named_modules():
        if not module_name or not _is_target(matcher, module_name, name):
            continue
        shape = linear_shape(module)
        if shape is None:
            kind = type(module).__name__
            raise AdapterError(name, f"it adapts a {kind}, and only linear modules can be composed", module_name)
        if len(held_as[module]) > 1:
            # PEFT wraps the module in one of its parents. Here the update would be added in all parents.
            parents = "' and '".join(held_as[module])
            raise AdapterError(name, f"this base shares it between '{parents}'; give each its own", module_name)
        shapes[module_name] = shape
    if not shapes:
        wanted = modules_in_words(config)
        raise AdapterError(name, "this base has no such module; the adapter belongs to another base", wanted)
    return shapes


def _is_target(matcher: TargetMatcher, module: str, name: str) -> bool:
    try:
        return matcher.targets(module)
    except PatternError as error:
        reason = f"its target_modules, exclude_modules or layers_pattern cannot be matched: {error}"
        raise AdapterError(name, reason) from error


def _rank_and_scaling(config: LoraConfig, matcher: TargetMatcher, module: str, name: str) -> tuple[int, float]:
    try:
        return rank_and_scaling(config, matcher, module)
    except ValueError as error:
        raise AdapterError(name, str(error), module) from error


def _module_header(
    tensors: NamedTensors,
    info: Mapping[str, TensorInfo],
    name: str,
    module: str,
    rank_and_scaling: tuple[int, float],
    d_in: int | None = None,
    d_out: int | None = None,
) -> ModuleHeader:
    """Return the header of one module, whose two tensors must exist with the right shape and dtype.

    Without a base, d_in and d_out come from the file.
    """
    rank, scaling = rank_and_scaling
    keys, found = [], []
    halves: tuple[tuple[Half, tuple[int | None, ...]], ...] = (("lora_A", (rank, d_in)), ("lora_B", (d_out, rank)))
    for half, wanted in halves:
        key = tensors.lora.get((module, half))
        if key is None:
            reason = f"its {half} is missing, though adapter_config.json targets this module"
            raise AdapterError(name, f"{reason}{_looked_for(module, half, tensors)}", module)
        shape, dtype = info[key].shape, info[key].dtype
        if 0 in shape or not shape:
            raise _empty(name, f"its {half}", shape, module)
        if len(shape) != 2 or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True)):
            expected = ["any" if size is None else size for size in wanted]
            asks = "adapter_config.json asks for" if d_in is None else "rank and base ask for"
            reason = f"its {half} has shape {list(shape)}, and {asks} {expected}".replace("'any'", "any")
            advice = "correct r, rank_pattern or the file" if d_in is None else "is the adapter for another base?"
            raise AdapterError(name, f"{reason}; {advice}", module)
        if dtype not in _READ_DTYPES:
            reason = f"its {half} has dtype {_DTYPE_NAMES.get(dtype, dtype)}; save it as float32 or bfloat16"
            raise AdapterError(name, reason, module)
        keys.append(key)
        found.append(shape)
    return ModuleHeader(found[0][1], found[1][0], rank, scaling, (keys[0], keys[1]))


def _empty(name: str, what: str, shape: tuple[int, ...], module: str) -> AdapterError:
    """Return the error for a tensor without numbers."""
    reason = f"{what} is empty (shape {list(shape)}), as DeepSpeed ZeRO-3 leaves it without gathering"
    return AdapterError(name, f"{reason}; save it with the parameters gathered, or by zero_to_fp32.py", module)


_DTYPE_NAMES = {"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "I64": "int64", "BOOL": "bool"}


def _looked_for(module: str, half: str, tensors: NamedTensors) -> str:
    """Return, for a message, the names of a file's tensors if no tensor has a name of PEFT."""
    if tensors.lora or not tensors.others:
        return "" if tensors.lora else "; its file holds no tensors"
    looked_for = f"{KEY_PREFIX}{module}.{half}.weight"
    return f"; its tensors are called {quoted(tensors.others[0])}; looked for {quoted(looked_for)}"


def _foreign(
    foreign: list[str],
    known: Collection[str],
    name: str,
    shapes: Mapping[str, tuple[int, int]],
    tensors: NamedTensors,
    base: PreTrainedModel,
) -> AdapterError:
    """Return the error for modules of a file that the base does not have."""
    fused = next((module for module in foreign if is_of_fused_experts(module, base)), None)
    if fused is not None:
        return fused_experts(name, fused)
    keys = [key for (module, _), key in sorted(tensors.lora.items()) if module == foreign[0]]
    key = (keys or [key for key in tensors.others if other_module(key) == foreign[0]] or tensors.others)[0]
    reason = f"it holds {quoted(key)}, and this base has no such module; the adapter belongs to another base"
    if not known:
        looked_for = f"{KEY_PREFIX}{next(iter(shapes))}.lora_A.weight"
        reason = f"its tensors are called {quoted(key)}; looked for {quoted(looked_for)}. {_RENAME}"
    return AdapterError(name, reason, foreign[0])


_RENAME = "The adapter belongs to another base, or its tensors must be renamed"


def _outside_language_model(missing: Collection[str], adapted: Collection[str], base: Any) -> set[str]:
    """Return the modules without tensors that the adapter of a vision-language model may leave unchanged.

    Names such as q_proj also fit the vision tower. An adapter of the language model has no tensors there, and PEFT
    leaves these modules unchanged. If the file has any tensor outside of the language model, the file must have all
    these tensors.
    """
    if not missing or getattr(base.config, "is_encoder_decoder", False):
        return set()
    head = base.get_output_embeddings()
    language_model = base.get_decoder()
    inside = [name for name, module in base.named_modules() if module is language_model or module is head]
    outside = {
        module
        for module in (*missing, *adapted)
        if not any(name in ("", module) or module.startswith(f"{name}.") for name in inside)
    }
    return set() if not inside or outside & set(adapted) else outside & set(missing)


def _notes_on(config: LoraConfig, base: PreTrainedModel, left_alone: Collection[str]) -> list[str]:
    """Return the notes for the user on an adapter that fits the base."""
    notes = []
    says, is_called = config.base_model_name_or_path, getattr(base, "name_or_path", None)
    if says and is_called and not same_base(says, is_called):
        reason = f"its adapter_config.json says that it was trained on {quoted(says)}, and the base is"
        notes.append(f"{reason} {quoted(is_called)}; its answers are wrong unless both are the same model")
    if left_alone:
        reason = f"its target_modules fit modules outside of the language model ({examples(left_alone)})"
        notes.append(f"{reason}, for which its file has no tensors; these modules stay as in the base")
    return notes


def _last_part(name: str) -> str:
    """Return the last part of a base's name or path, without case; for a folder of the Hub's cache, its model."""
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part]
    cached = [part for part in parts if part.startswith("models--")]
    return (cached[-1].rpartition("--")[2] if cached else parts[-1] if parts else "").casefold()


def copies_of_base(
    tensors: NamedTensors, name: str, info: Mapping[str, TensorInfo], base: PreTrainedModel
) -> list[str]:
    """Return the tensors that may be copies of the base's parameters. Raises `AdapterError` for any other tensor."""
    for key in tensors.others:
        weight = None if ".lora_" in key else base_parameter(key, base)
        if weight is None:
            raise unexpected_tensor(key, name, other_module(key))
        shape = info[key].shape
        if tuple(weight.shape) != shape:
            if 0 in shape or not shape:
                raise _empty(name, quoted(key), shape, other_module(key))
            if any(weight is embeddings.weight for embeddings in _embeddings(base)):
                reason = (
                    f"it holds {quoted(key)} for a vocabulary of {shape[0]} tokens, "
                    f"and this base has {weight.shape[0]}: its vocabulary was resized in training, and trained "
                    "embeddings are no low-rank update; use an adapter that keeps the base's vocabulary"
                )
                raise AdapterError(name, reason, other_module(key))
            raise unexpected_tensor(key, name, other_module(key))
    return tensors.others


def _embeddings(base: PreTrainedModel) -> list[Any]:
    return [module for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module is not None]


def copies_of_some_base(tensors: NamedTensors, name: str) -> list[str]:
    """Return the tensors that may be copies of some base's parameters. Raises `AdapterError` for any other tensor."""
    if not tensors.lora:
        key = quoted(tensors.others[0]) if tensors.others else None
        looked_for = f"{KEY_PREFIX}MODULE.lora_A.weight"
        called = f"its tensors are called {key}; looked for {looked_for}" if key else "its file holds no tensors"
        raise AdapterError(name, f"{called}; save it with PEFT's save_pretrained")
    for key in tensors.others:
        if ".lora_" in key or not key.endswith((".weight", ".bias")):
            raise unexpected_tensor(key, name, other_module(key))
    return tensors.others


def unexpected_tensor(key: str, name: str, module: str) -> AdapterError:
    """Return the error for a tensor that no targeted module accounts for. PEFT would ignore such a tensor silently."""
    if ".lora_magnitude_vector" in key:
        reason = f"it holds {quoted(key)}: DoRA is not a low-rank update; use an adapter trained without it"
    elif ".lora_embedding_" in key:
        reason = f"it holds {quoted(key)}: it adapts an Embedding, and only linear modules can be composed"
    else:
        reason = f"it holds {quoted(key)}, which is no part of the plain LoRA that adapter_config.json describes"
    return AdapterError(name, reason, module)


def same_base(one: str, other: str) -> bool:
    """Return whether two names or paths may be of the same base: their last parts are equal, whatever the case."""
    return _last_part(one) == _last_part(other)
