"""The methods: every file of this folder that has `METHODS` adds its own to the register.

`registered` imports them all, torch included, and so is a function: to read a results folder needs none of them.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.methods.base import Composition, LearnedGate, Method, Retrieved, Router, with_ood
from lora_retriever.methods.paper import METHODS as PAPER

__all__ = [
    "Composition",
    "LearnedGate",
    "Method",
    "Retrieved",
    "Router",
    "find_methods",
    "registered",
    "with_ood",
]

GROUPS = ("all", "paper")
"""In place of names: every registered method, and the eight configurations of the paper's own method."""


@cache
def registered() -> dict[str, Method]:
    """Every method of this folder by its name: the paper's configurations first, then file by file."""
    files = sorted((module.name for module in pkgutil.iter_modules(__path__)), key=lambda name: (name != "paper", name))
    methods: dict[str, Method] = {}
    for file in files:
        for method in getattr(importlib.import_module(f"{__name__}.{file}"), "METHODS", ()):
            if method.name in methods:
                raise ValueError(f"{file}.py registers the method {method.name!r}, which is registered already")
            methods[method.name] = method
    return methods


def find_methods(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None, folder: Path | None = None
) -> list[Method]:
    """The methods of these names, in the register's order; a user's own, `module:object`, come after them.

    Args:
        names: of methods; `all` stands for every registered one, `paper` for the paper's eight configurations.
        options: by the method's name, an out-of-domain twin having its method's.
        folder: where modules are looked for beside Python's own path, as a profile's folder.

    Raises:
        UserError: a method or an option is unknown, or a module cannot be imported.
    """
    known, eight = registered(), [method.name for method in PAPER]
    own = [method for name in names if ":" in name for method in load_methods(name, folder)]
    named = {name for name in names if ":" not in name and name not in GROUPS}
    unknown = sorted(named - known.keys())
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r} (known: {', '.join(known)}, {' and '.join(GROUPS)})")
    named |= set(known) if "all" in names else set(eight) if "paper" in names else set()
    found = [method for name, method in known.items() if name in named] + own
    for method in own:
        if [other.name for other in found].count(method.name) > 1:
            raise UserError(f"two methods are named {method.name!r}; a run's name must be its own")
    return [method.with_options((options or {}).get(method.name.removesuffix("_ood"), {})) for method in found]


def load_methods(location: str, folder: Path | None = None) -> list[Method]:
    """A user's own methods: `module:object`, where the object is a `Method` or several.

    Raises:
        UserError: there is no such module or object, it fails, or it is no method.
    """
    module, _, name = location.partition(":")
    path = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a user's own code may raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"method {location}: cannot be loaded: {reason}") from error
    finally:
        sys.path[:] = path
    methods = [found] if isinstance(found, Method) else list(found) if isinstance(found, list | tuple) else []
    if not methods or not all(isinstance(method, Method) for method in methods):
        raise UserError(f"method {location}: expected a lora_retriever.methods.Method, or a list of them")
    return methods
