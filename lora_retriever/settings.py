"""The base class of all sections of a profile, and a check that several sections share."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a profile. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def one_of(name: str, known: Iterable[str], kind: str) -> str:
    """Return `name` if it is among the `known` names; `kind` says in the message what the names are names of.

    Raises:
        ValueError: `name` is unknown. The message lists the known names.
    """
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r} (known: {', '.join(known)})")
    return name
