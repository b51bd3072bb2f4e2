"""Which PEFT configurations can be composed exactly by the formulas of `pairs`, and why other configurations cannot.

A configuration passes only if its adapter is, on every module that it targets, the plain update y = Wx + s·B·A·x on the
published base weight W. This file reads configurations only, no tensors and no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import peft
import torch
from peft import LoraConfig

from peft_composition.errors import quoted
from peft_composition.matching import TargetMatcher

HIGHEST_RANK = 2**20
"""Maximum rank of an adapter on one module."""

HIGHEST_SCALING = 2.0**24
"""Maximum scaling of an adapter. float32 has 24 binary digits: far above this, rounding removes the base's output."""

# Initialisations that leave the base weight alone. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, ...) change the
# base weight when training starts. Their A and B are an update to a weight that the published base does not have.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

# Keys that PEFT itself writes beside the settings of an adapter. They compute nothing.
_SILENT_KEYS = frozenset({"runtime_config", "peft_version"})

# Keys that are no settings of any version of PEFT, and are known to compute nothing. Other tools, and people, write
# these keys.
KEYS_WITHOUT_EFFECT = frozenset(
    {
        "_comment", "_from_model_config", "_name_or_path", "author", "comment", "description", "dtype", "license",
        "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "merge_weights", "name", "note", "notes", "tags", "torch_dtype",
        "transformers_version",
    }
)  # fmt: skip

_REFUSED_SETTINGS = {
    "use_dora": "DoRA rescales the base weight by a learned magnitude, which is not a low-rank update",
    "lora_bias": "it trains a bias beside B, which a low-rank update does not hold",
    "modules_to_save": "it replaces whole modules of the base (modules_to_save)",
    "trainable_token_indices": "it replaces token embeddings (trainable_token_indices)",
    "target_parameters": "it adapts bare parameters (target_parameters), and only linear modules can be composed",
    "layer_replication": "it repeats layers of the base (layer_replication), which changes the model for every row",
    "megatron_config": "it was trained on Megatron's parallel layers, which this package cannot read",
    "use_qalora": "QALoRA pools the input before A, so A does not have the module's width",
    "alora_invocation_tokens": "an activated LoRA (aLoRA) acts only after its invocation tokens, not on the whole row",
    "arrow_config": "Arrow routes every token on its own, and composition is by row",
}


def refusal(config: LoraConfig, written: Mapping[str, Any]) -> str | None:
    """Return why an adapter of this configuration cannot be composed exactly, or None if it can be.

    `config` is the configuration as PEFT reads it. `written` is the JSON object of the file: it may hold settings of a
    newer PEFT, which `config` lacks.
    """
    for setting, reason in _REFUSED_SETTINGS.items():
        if getattr(config, setting, None):
            return f"{reason}; use an adapter trained without it"
    if config.bias != "none":
        return f"it trains biases of the base (bias={quoted(config.bias)}); use an adapter trained with bias='none'"
    if config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        return (
            f"its initialisation {quoted(config.init_lora_weights)} may have changed the base weights before training; "
            "convert it to a plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for field in fields(config):
        if field.metadata.get("is_lora_variant") and getattr(config, field.name):
            return f"it is a variant of LoRA ({field.name}), and only plain LoRA can be composed exactly"
    for key in sorted(unknown_settings(config, written)):
        if key not in KEYS_WITHOUT_EFFECT and _switches_something_on(written[key]):
            return (
                f"the installed PEFT {peft.__version__} does not have its setting {quoted(key)}; remove this key from "
                "adapter_config.json if it has no effect on what is computed, else upgrade peft or use another adapter"
            )
    if not config.target_modules:
        return "its adapter_config.json names no target_modules; write them into that file"
    return None


def unknown_settings(config: LoraConfig, written: Mapping[str, Any]) -> set[str]:
    """Return the keys of the file that are neither settings of the installed PEFT nor written by PEFT itself."""
    return written.keys() - {field.name for field in fields(config)} - _SILENT_KEYS


def rank_and_scaling(config: LoraConfig, matcher: TargetMatcher, module: str) -> tuple[int, float]:
    """Return the rank r and the scaling s of an adapter on one module.

    s = alpha / r, or alpha / √r for rank-stabilised LoRA (arXiv 2312.03732); `rank_pattern` and `alpha_pattern` are
    matched as PEFT matches them. Raises `ValueError` if r or s cannot be used, and `PatternError` as `matcher` does.
    """
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank: Any = ranks.get(matcher.pattern_key(ranks, module), config.r)
    alpha: Any = alphas.get(matcher.pattern_key(alphas, module), config.lora_alpha)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= HIGHEST_RANK:
        needed = f"its rank must be a whole number from 1 to {HIGHEST_RANK}"
        raise ValueError(f"{needed}, and adapter_config.json says {quoted(rank)}")
    if not _is_positive_number(alpha):
        raise ValueError(f"its alpha must be a finite number above 0, and adapter_config.json says {quoted(alpha)}")
    scaling = float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)
    if not torch.finfo(torch.float32).tiny <= scaling <= HIGHEST_SCALING:
        reason = f"its alpha {quoted(alpha)} and rank {rank} make a scaling of {scaling:g}"
        raise ValueError(f"{reason}; it must be above 0 in float32 and at most {HIGHEST_SCALING:g}")
    return rank, scaling


def _is_positive_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and value > 0
    except OverflowError:  # a whole number that no float can hold
        return False


def _switches_something_on(value: object) -> bool:
    """True for a value that may change what is computed.

    A plain number only tunes a feature that another key switches on.
    """
    return value is True or (not isinstance(value, int | float) and bool(value))
