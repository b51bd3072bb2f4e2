"""The procedures. Every file of this folder that has `PROCEDURES` adds its procedures to the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.experiment.profile import Profile
from lora_retriever.own_objects import is_own, load_object
from lora_retriever.procedures.base import Ask, Detect, Procedure, Talk

__all__ = [
    "PLAIN",
    "Ask",
    "Detect",
    "Procedure",
    "Talk",
    "find_procedure",
    "procedures_of",
    "registered_procedures",
]

PLAIN = "plain"
"""The name of the procedure of one prompt and one answer."""


@cache
def registered_procedures() -> dict[str, Procedure]:
    """Every procedure of this folder by its name, file by file.

    Raises:
        ValueError: two files register procedures of the same name.
    """
    found: dict[str, Procedure] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        for procedure in getattr(importlib.import_module(f"{__name__}.{file}"), "PROCEDURES", ()):
            if procedure.name in found:
                raise ValueError(f"{file}.py registers the procedure {procedure.name!r}, which is registered already")
            found[procedure.name] = procedure
    return found


def find_procedure(name: str, folder: Path | None = None) -> Procedure:
    """The procedure of a name, or a user's own by `module:object`, where the object is a `Procedure`.

    Args:
        folder: a folder in which modules are found, beside Python's own path.

    Raises:
        UserError: the procedure is unknown or cannot be loaded.
    """
    if is_own(name):
        own = load_object(name, folder, "procedure")
        if not isinstance(own, Procedure):
            raise UserError(f"procedure {name}: expected a lora_retriever.procedures.Procedure")
        return own
    known = registered_procedures()
    if name not in known:
        raise UserError(f"unknown procedure {quoted(name)} (known: {', '.join(known)})")
    return known[name]


def procedures_of(profile: Profile, rows: Iterable[Row]) -> dict[str, Procedure]:
    """The procedures that rows use under a profile, by the names that the profile and the rows give, with options.

    A row may name a procedure of the registry. Code of a user's own runs only if the profile names it: rows are data.

    Raises:
        UserError: a procedure or an option is unknown, or a procedure cannot be loaded. The message names the row.
    """
    used: dict[str, Row | None] = {}
    for row in rows:
        used.setdefault(row.procedure or profile.procedure, row if row.procedure else None)
    found = {}
    for name, first in used.items():
        try:
            if first is not None and is_own(name) and name != profile.procedure:
                raise UserError(f"procedure {quoted(name)} is code, which only a profile can name")
            found[name] = find_procedure(name, profile.folder)
        except UserError as error:
            place = "procedure" if first is None else f"{profile.rows_path}: row {first.id + 1}: field 'procedure'"
            raise UserError(f"profile {profile.name}: {place}: {error}") from error
    for name, options in profile.procedure_options.items():
        if name in found:
            found[name] = found[name].with_options(options)
        else:
            find_procedure(name, profile.folder).with_options(options)  # a misspelt name or option is refused
    return found
