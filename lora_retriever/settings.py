"""The base class of all sections of a profile, and checks that sections and data files share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from lora_retriever.escaping import brief, quoted

MAX_PROBLEMS = 8
"""Maximum number of problems that one message lists."""
LIKENESS = 0.7
"""Least likeness of a name to a known name that a message suggests, from 0 to 1, as `difflib` computes it."""
MAX_COUNT = 2**24
"""Maximum value of a count in a profile: tokens, rows, texts, adapters."""
MAX_THREADS = 1024
"""Maximum number of threads on a CPU; more can end a process at once."""


class Section(BaseModel):
    """A part of a profile. An unknown field is an error, and so is a truth value where a number is expected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            return plain_text(value)
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            if annotation is not bool and bool not in get_args(annotation):
                raise ValueError(f"is {str(value).lower()}, a truth value; write a number or a text")
        return value


def plain_text(text: str) -> str:
    """Return the text if every file format and library accepts the text.

    Raises:
        ValueError: the text has a NUL character or half of a surrogate pair.
    """
    if "\0" in text:
        raise ValueError(f"has a NUL character, at character {text.index(chr(0)) + 1}; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape", "backslashreplace").decode("ascii")
        raise ValueError(
            f"has half of a surrogate pair, {half}, at character {error.start + 1}: an emoji or a rare letter was cut "
            "there; write the whole letter or remove the half"
        ) from error
    return text


def one_of(name: str, known: Iterable[str], kind: str) -> str:
    """Return `name` if it is among the `known` names; `kind` is the kind of the names, for the message.

    Raises:
        ValueError: `name` is unknown. The message lists the known names.
    """
    if name not in known:
        known = list(known)
        raise ValueError(f"unknown {kind} {quoted(name)} (known: {', '.join(known)}){suggestion(name, known)}")
    return name


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known name, or nothing."""
    likely = get_close_matches(name, list(known), 1, LIKENESS)
    return f"; did you mean {likely[0]}?" if likely else ""


def problems_of(error: ValidationError, quote: str = "", of: str = "a profile", known: Iterable[str] = ()) -> list[str]:
    """The problem of each field, as `FIELD: reason`; `quote` is written around the field's name.

    Args:
        of: the thing that has the fields, for the message about an unknown field.
        known: the names of all fields, for a suggestion in place of an unknown field.
    """
    found = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        found.append(f"{quote}{brief(name)}{quote}: {_reason(problem, of)}")
        if problem["type"] == "extra_forbidden":
            found[-1] += suggestion(name, known)
    return found


def _reason(problem: Mapping[str, Any], of: str) -> str:
    """The problem of a field, with the value that was found if the value is short."""
    reasons = {"missing": "is missing", "extra_forbidden": f"is no field of {of}"}
    if problem["type"] in reasons:
        return reasons[problem["type"]]
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    value = problem["input"]
    return f"{problem['msg']} (found {quoted(value)})" if isinstance(value, str | int | float) else str(problem["msg"])
