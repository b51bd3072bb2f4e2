"""The list of methods, as `lora-retriever methods` prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from lora_retriever.methods.base import Method

OOD = "_ood"


def to_text(methods: Sequence[Method], chosen: Collection[str]) -> str:
    """A line each: name, what it does, options, citation; an out-of-domain twin shares its method's.

    Args:
        chosen: the names of those that a run of the profile takes, which are marked.
    """
    names = {method.name for method in methods}
    lines = []
    for method in methods:
        if method.name.removesuffix(OOD) in names - {method.name}:
            continue
        twin = method.name + OOD
        mark = "*" if {method.name, twin} & set(chosen) else " "
        name = f"{method.name}[{OOD}]" if twin in names else method.name
        options = ", ".join(f"{option}={value}" for option, value in options_of(method).items())
        lines.append((f"{mark} {name}", method.summary + (f" ({options})" if options else ""), method.citation))
    width = max(len(name) for name, _, _ in lines)
    text = "".join(f"{name:<{width}}  {summary}. {citation}\n" for name, summary, citation in lines)
    explained = f"* run by default; [{OOD}]: also with every row's own adapter masked; k=None: the profile's k"
    return f"{text}\n{explained}\n"


def options_of(method: Method) -> dict[str, Any]:
    """The options of a method's router, composer and gate, with their values."""
    parts: list[Any] = [method.router, method.mode, method.gate]
    return {
        field.name: getattr(part, field.name)
        for part in parts
        if dataclasses.is_dataclass(part)
        for field in dataclasses.fields(part)
    }
