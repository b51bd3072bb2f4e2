"""A user's own code: objects named by `module:object` in a profile or on the command line.

Own code runs only because a profile, or an argument of a command, names the code. A data file, a checkpoint or a
results folder never makes code run.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from lora_retriever.errors import UserError
from lora_retriever.files import hash_path

OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""The form of a name of an own object: `module:object`, or `package.module:object`."""


def is_own(location: str) -> bool:
    """Whether a text has the form `module:object`. No Hub id has this form."""
    return OWN.fullmatch(location) is not None


def load_object(location: str, folder: Path | None, kind: str) -> Any:
    """Import the object that `module:object` names.

    Args:
        folder: a folder in which modules are found, beside Python's own path.
        kind: the kind of the object, for messages.

    Raises:
        UserError: the module cannot be imported, or has no such object.
    """
    module, _, name = location.partition(":")
    path = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{kind} {location}: cannot be loaded: {reason}") from error
    finally:
        sys.path[:] = path


def source_file(location: str) -> Path | None:
    """The source file of the module of an object that was loaded. None: the module has no file."""
    file = getattr(sys.modules.get(location.partition(":")[0]), "__file__", None)
    return None if file is None else Path(file)


def source_hash(location: str) -> str | None:
    """The SHA-256 of the source file of an object that was loaded. None: the module has no file."""
    path = source_file(location)
    return None if path is None else hash_path(path)
