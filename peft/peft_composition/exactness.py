"""Which PEFT configurations can be composed exactly, by the formulas of `pairs`, and why the others cannot.

A configuration passes only if its adapter is, on every module it targets, the plain update y = Wx + s·B·A·x on the
base weight W as published. Knows configurations only, never tensors or a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key

# Initialisations that leave the base weight alone. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, ...) change it when
# training starts, so their A and B are an update to a weight that the published base does not have.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

# Written by PEFT beside the adapter's own settings, and without effect on what the adapter computes.
_SILENT_KEYS = frozenset({"runtime_config", "peft_version"})

_REFUSED_SETTINGS = {
    "use_dora": "DoRA rescales the base weight by a learned magnitude, which is not a low-rank update",
    "lora_bias": "it trains a bias beside B, which a low-rank update does not hold",
    "modules_to_save": "it replaces whole modules of the base (modules_to_save)",
    "trainable_token_indices": "it replaces token embeddings (trainable_token_indices)",
    "target_parameters": "it adapts bare parameters (target_parameters), and only linear modules can be composed",
    "layer_replication": "it repeats layers of the base (layer_replication), which changes the model for every row",
    "megatron_config": "it was trained on Megatron's parallel layers, which this package does not know",
    "use_qalora": "QALoRA pools the input before A, so A does not have the module's width",
    "alora_invocation_tokens": "an activated LoRA (aLoRA) acts only after its invocation tokens, not on the whole row",
    "arrow_config": "Arrow routes every token on its own, and composition is by row",
}


def refusal(config: LoraConfig, written: Mapping[str, Any]) -> str | None:
    """Return why an adapter of this configuration cannot be composed exactly, or None if it can.

    `config` is the configuration as PEFT understands it; `written` is the JSON object as it stands in the file, which
    may hold settings of a newer PEFT that `config` has dropped.
    """
    for setting, reason in _REFUSED_SETTINGS.items():
        if getattr(config, setting, None):
            return f"{reason}; use an adapter trained without it"
    if config.bias != "none":
        return f"it trains biases of the base (bias='{config.bias}'); use an adapter trained with bias='none'"
    if config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        return (
            f"its initialisation '{config.init_lora_weights}' may have changed the base weights before training; "
            "convert it to a plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for field in fields(config):
        if field.metadata.get("is_lora_variant") and getattr(config, field.name):
            return f"it is a variant of LoRA ({field.name}), and only plain LoRA can be composed exactly"
    for key in sorted(written.keys() - {field.name for field in fields(config)} - _SILENT_KEYS):
        if _switches_something_on(written[key]):
            return f"the installed PEFT does not know its setting '{key}'; upgrade peft, or use another adapter"
    if not config.target_modules:
        return "its adapter_config.json names no target_modules; write them into that file"
    return None


def rank_and_scaling(config: LoraConfig, module: str) -> tuple[int, float]:
    """Return the rank r and the scaling s of an adapter on one module.

    s = alpha / r, or alpha / √r for rank-stabilised LoRA (arXiv 2312.03732); `rank_pattern` and `alpha_pattern` are
    matched as PEFT matches them. Raises ValueError if either is no usable number.
    """
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"its rank must be a whole number above 0, and adapter_config.json says {rank!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise ValueError(f"its alpha must be a finite number, and adapter_config.json says {alpha!r}")
    return rank, alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _switches_something_on(value: object) -> bool:
    """True for a value that may change what is computed: plain numbers only tune what another key switches on."""
    return value is True or (not isinstance(value, int | float) and bool(value))
