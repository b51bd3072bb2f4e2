"""One adapter_config.json: read, checked, and judged by `exactness`.

Every problem of the file is an `AdapterError`. The file comes from a stranger: its size, depth, keys and types may be
anything.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from peft_composition.errors import AdapterError, quoted, reason_of
from peft_composition.exactness import KEYS_WITHOUT_EFFECT, refusal, unknown_settings
from peft_composition.files import CONFIG_FILE, checked_file

LARGEST_CONFIG = 16 * 2**20
"""Maximum size of adapter_config.json, in bytes."""


def read_config(folder: Path, adapter: str) -> tuple[LoraConfig, list[str]]:
    """Read adapter_config.json as PEFT reads it. Returns the configuration, and notes for the user.

    Raises `AdapterError` for a file that cannot be read, and for a configuration that cannot be composed exactly.
    """
    file = checked_file(folder, CONFIG_FILE, adapter)
    written = _read_object(file, adapter)
    if written.get("peft_type") != "LORA":
        reason = f"its peft_type is {quoted(written.get('peft_type'))}, and only 'LORA' can be composed"
        raise AdapterError(adapter, reason)
    for setting, (fits, needed) in _TYPES.items():
        if setting in written and not fits(written[setting]):
            reason = f"'{setting}' in adapter_config.json must be {needed}, not {quoted(written[setting])}"
            raise AdapterError(adapter, reason)
    _use_whole_ranks(written)
    known = {field.name for field in fields(LoraConfig)} - {"runtime_config"}
    try:
        with warnings.catch_warnings():  # PEFT warns of settings of training, which do not matter here
            warnings.simplefilter("ignore")
            config = LoraConfig(**{key: value for key, value in written.items() if key in known})
    except Exception as error:  # PEFT does not check types, so a foreign file may raise anything in its constructor
        raise AdapterError(adapter, f"PEFT cannot use '{file}': {reason_of(error)}") from error
    refused = refusal(config, written)
    if refused is not None:
        raise AdapterError(adapter, refused, modules_in_words(config))
    ignored = sorted(unknown_settings(config, written) & KEYS_WITHOUT_EFFECT)
    notes = [f"adapter_config.json holds keys that compute nothing and are ignored: {', '.join(ignored)}"]
    return config, notes if ignored else []


def modules_in_words(config: LoraConfig) -> str:
    """Return the modules that a configuration names, for a refusal that concerns all of them."""
    concerned = config.modules_to_save or config.target_parameters or config.target_modules or "all"
    return ", ".join(sorted(map(str, concerned))) if isinstance(concerned, list | set) else str(concerned)


def _read_object(file: Path, adapter: str) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise AdapterError(adapter, f"'{file}' is larger than {LARGEST_CONFIG} bytes; it is no configuration")
        written: Any = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeated_keys)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(adapter, f"'{file}' is not readable JSON: {reason_of(error)}") from error
    if not isinstance(written, dict):
        raise AdapterError(adapter, f"'{file}' must hold a JSON object")
    return written


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} is given twice; keep one of the two")
        found[key] = value
    return found


def _use_whole_ranks(written: dict[str, Any]) -> None:
    """Write ranks such as 4.0 as whole numbers, in place."""
    if "r" in written:
        written["r"] = _whole(written["r"])
    if written.get("rank_pattern"):
        written["rank_pattern"] = {key: _whole(rank) for key, rank in written["rank_pattern"].items()}


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_text_or_names(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(isinstance(name, str) and name for name in value))


def _is_layers(value: object) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def _is_pattern_table(value: object) -> bool:
    return value is None or isinstance(value, dict)


# For each setting that decides what is computed: whether a value has the right type, and that type in words.
_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"), (_is_flag, "true or false")),
    **dict.fromkeys(("base_model_name_or_path", "task_type", "revision"), (_is_text, "a text")),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_pattern"), (_is_text_or_names, "a text or a list of names")
    ),
    **dict.fromkeys(
        ("rank_pattern", "alpha_pattern"), (_is_pattern_table, "an object that gives each pattern a number")
    ),
    "layers_to_transform": (_is_layers, "a whole number or a list of whole numbers"),
    "bias": (lambda value: isinstance(value, str), "a text"),
    "init_lora_weights": (lambda value: _is_flag(value) or _is_text(value), "true, false or a text"),
}
