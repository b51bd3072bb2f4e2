"""The methods. Every file of this folder that has `METHODS` adds its methods to the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.composition import Composition, Retrieved
from lora_retriever.methods.base import LearnedGate, Method, Router, with_ood
from lora_retriever.own_objects import load_object
from lora_retriever.settings import suggestion

__all__ = [
    "Composition",
    "LearnedGate",
    "Method",
    "Retrieved",
    "Router",
    "find_methods",
    "methods_of",
    "registered",
    "with_ood",
]

GROUPS = ("all", "paper")
"""Names of groups: every registered method, and the eight configurations of the paper's own method."""


@cache
def registered() -> dict[str, Method]:
    """Every method of this folder by its name: the paper's methods first, then file by file.

    Raises:
        ValueError: two files register methods of the same name.
    """
    files = sorted((module.name for module in pkgutil.iter_modules(__path__)), key=lambda name: (name != "paper", name))
    methods: dict[str, Method] = {}
    for file in files:
        for method in getattr(importlib.import_module(f"{__name__}.{file}"), "METHODS", ()):
            if method.name in methods:
                raise ValueError(f"{file}.py registers the method {method.name!r}, which is registered already")
            methods[method.name] = method
    return methods


def methods_of(profile: Profile, names: Sequence[str] | None = None) -> list[Method]:
    """The methods of a profile, or the methods of other `names`, with the profile's options.

    Raises:
        UserError: a method or an option is unknown, or a user's own method cannot be loaded.
    """
    try:
        known = find_methods(["all", *profile.methods], profile.options, profile.folder)
        chosen = find_methods(profile.methods if names is None else names, profile.options, profile.folder)
    except UserError as error:
        raise UserError(f"profile {profile.name}: methods: {error}") from error
    plain = dict.fromkeys(method.plain_name for method in [*known, *chosen])
    for name in profile.options:
        if name not in plain:
            raise UserError(f"profile {profile.name}: options: no method {quoted(name)} (known: {', '.join(plain)})")
    return chosen


def find_methods(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None, folder: Path | None = None
) -> list[Method]:
    """The methods of these names, in the registry's order; a user's own methods, `module:object`, come after them.

    Args:
        names: names of methods. `all` means every registered method, `paper` the paper's eight methods.
        options: the options of each method, by the method's name. Its out-of-domain variant has the same options.
        folder: a folder in which modules are found, beside Python's own path.

    Raises:
        UserError: a method or an option is unknown, or a module cannot be imported.
    """
    from lora_retriever.methods.paper import METHODS as PAPER

    known, eight = registered(), [method.name for method in PAPER]
    own = [method for name in names if ":" in name for method in load_methods(name, folder)]
    named = {name for name in names if ":" not in name and name not in GROUPS}
    unknown = sorted(named - known.keys())
    if unknown:
        raise UserError(
            f"unknown method {quoted(unknown[0])} (known: {', '.join(known)}, {' and '.join(GROUPS)})"
            + suggestion(unknown[0], [*known, *GROUPS])
        )
    named |= set(known) if "all" in names else set(eight) if "paper" in names else set()
    found = [method for name, method in known.items() if name in named] + own
    for method in own:
        if [other.name for other in found].count(method.name) > 1:
            raise UserError(f"two methods are named {method.name!r}; the name of a run must be unique")
    return [method.with_options((options or {}).get(method.plain_name, {})) for method in found]


def load_methods(location: str, folder: Path | None = None) -> list[Method]:
    """A user's own methods: `module:object`, where the object is a `Method` or a list of them.

    Raises:
        UserError: the module cannot be imported, or its object is missing or no method.
    """
    found = load_object(location, folder, "method")
    methods = [found] if isinstance(found, Method) else list(found) if isinstance(found, list | tuple) else []
    if not methods or not all(isinstance(method, Method) for method in methods):
        raise UserError(f"method {location}: expected a lora_retriever.methods.Method, or a list of them")
    return methods
