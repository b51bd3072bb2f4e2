"""Fields of a profile that the command line sets: `--set retrieval.k=5`.

The value of a text field is taken unchanged. The value of any other field is read as YAML, as in a profile's file. A
relative location starts at the current folder, because the command line has no folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from lora_retriever.data.sources import HUB
from lora_retriever.data.yaml_files import MAX_LEVELS, parse_yaml
from lora_retriever.errors import UserError
from lora_retriever.escaping import brief
from lora_retriever.files import is_location
from lora_retriever.settings import Section

Keys = tuple[str, ...]
DATA_LOCATIONS = ("rows", "pool", "from")
"""Fields of `data` that hold locations."""


def parse(texts: Sequence[str], section: type[Section]) -> dict[Keys, Any]:
    """The values of the arguments of `--set`, by the parts of the field's name.

    Args:
        section: the class of the profile.

    Raises:
        UserError: an argument is not of the form FIELD=VALUE, a field is named twice, or a value is not readable.
    """
    values: dict[Keys, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys) or len(keys) > MAX_LEVELS:
            raise UserError(f"--set {brief(text)}: expected FIELD=VALUE, for example retrieval.k=5")
        if keys in values:
            raise UserError(f"--set {brief(text)}: {brief(name)} is set twice; keep one")
        values[keys] = _located(keys, _read(keys, value, section, f"--set {brief(text)}"))
    return values


def put(content: Mapping[str, Any], keys: Keys, value: Any) -> dict[str, Any]:
    """The fields and values of a profile, with one value in the place that `keys` name.

    Raises:
        UserError: a part of the place has a value that has no fields.
    """
    key, *inner = keys
    if not inner:
        return {**content, key: value}
    there = content.get(key)
    if there is not None and not isinstance(there, dict):
        raise UserError(f"--set {'.'.join(keys)}: {key} is {brief(repr(there))}, which has no fields")
    return {**content, key: put(there or {}, tuple(inner), value)}


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field of this type holds. None: the field holds a value, or may be a text."""
    for kind in () if str in _plain_kinds(annotation) else (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def names_of(section: type[Section], prefix: str = "") -> list[str]:
    """The names of a section's fields. A field that holds a section comes before the fields of this section."""
    names = []
    for name, info in section.model_fields.items():
        inner = section_of(info.annotation)
        names += [f"{prefix}{name}", *(names_of(inner, f"{prefix}{name}.") if inner else ())]
    return names


def _plain_kinds(annotation: Any) -> set[Any]:
    """The types that a value may have, without pydantic's annotations."""
    return {get_args(kind)[0] if hasattr(kind, "__metadata__") else kind for kind in get_args(annotation)}


def _read(keys: Keys, value: str, section: type[Section], where: str) -> Any:
    kinds = _kinds(keys, section)
    if str in kinds and kinds <= {str, type(None)}:
        return None if value == "null" and type(None) in kinds else value
    return parse_yaml(value, where) if value else ""


def _kinds(keys: Keys, section: type[Section]) -> set[Any]:
    """The types that a field may have; none for a field that the profile does not have."""
    field = section.model_fields.get(keys[0])
    if field is None:
        return set()
    if len(keys) == 1:
        return {dict} if get_origin(field.annotation) is dict else set(get_args(field.annotation)) or {field.annotation}
    inner = section_of(field.annotation)
    return _kinds(keys[1:], inner) if inner is not None else set()


def _located(keys: Keys, value: Any) -> Any:
    """The value with its relative locations made absolute, if the field holds locations."""
    if keys == ("metrics",) and isinstance(value, list):
        return [_located(("location",), one) for one in value]
    if keys == ("data", "pool") and isinstance(value, dict):
        return {name: _located((*keys, name), one) for name, one in value.items()}
    if not isinstance(value, str) or not value or value.startswith(("{", "~")):
        return value
    if (keys[0] == "data" and keys[-1] in DATA_LOCATIONS and not value.startswith(HUB)) or (
        keys[-1] == "location" and is_location(value)
    ):
        return os.path.join(os.getcwd(), value)
    return value
