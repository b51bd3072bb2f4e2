"""The origin of answers that another program made: the file `runs.yaml` of a results folder.

    model: Llama-2-7b
    source: github.com/someone/their-code
    commit: 3a2f8d3
    note: decoded at temperature 0.7
    runs:
      fusion: {note: the scaling was left out}

Every field may be missing. The fields of one run under `runs` replace the same fields at the top of the file, which are
for all runs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from lora_retriever.data.yaml_files import read_yaml
from lora_retriever.errors import UserError
from lora_retriever.settings import Section, problems_of

FILE = "runs.yaml"


def _line(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {value!r}; write a text in quotation marks, or leave the field out")
    if not value.strip():
        raise ValueError("is blank; write a text, or leave the field out")
    return " ".join(value.split())


Line = Annotated[str, BeforeValidator(_line)]
"""A text in one line. Without quotation marks, YAML reads the commit 1234567 as a number."""


class Origin(Section):
    """Whose answers these are. An empty field: the file does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Line = ""
    source: Line = ""
    commit: Line = ""
    note: Line = ""

    @property
    def fields(self) -> dict[str, str]:
        """The fields that are not empty."""
        return {name: value for name, value in self.model_dump().items() if value}

    @property
    def text(self) -> str:
        """The known fields, in one line."""
        model = f"answered by {self.model}" if self.model else "it is not known which model answered"
        known = [f"{name} {value}" for name, value in self.fields.items() if name in ("source", "commit")]
        return "; ".join([model, *known, *([self.note.removesuffix(".")] if self.note else [])])


class _File(Origin):
    runs: dict[str, Origin] = Field(default={})


def read_origins(folder: Path, names: Collection[str]) -> dict[str, Origin]:
    """The origin of each run in a results folder, from `runs.yaml`. Empty: there is no such file.

    Args:
        names: the names of the folder's runs.

    Raises:
        UserError: the file is no YAML (`read_yaml`), has an unknown field or run, or a value that is no text.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return {}
    content = read_yaml(path)
    try:
        found = _File.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(problems_of(error, of=FILE))}") from error
    if unknown := [name for name in found.runs if name not in names]:
        raise UserError(f"{path}: runs: no run {unknown[0]!r} (there are: {', '.join(names)})")
    common = {field: value for field in Origin.model_fields if (value := getattr(found, field))}
    own = {name: origin.fields for name, origin in found.runs.items()}
    return {name: Origin(**common | own.get(name, {})) for name in names}


def origin_lines(origins: Mapping[str, Origin | None]) -> list[str]:
    """A line for each different origin, with the names of its runs. A run may have no origin."""
    by_text: dict[str, list[str]] = {}
    for name, origin in origins.items():
        if origin is not None:
            by_text.setdefault(origin.text, []).append(name)
    return [
        f"{'All runs' if len(names) == len(origins) else ', '.join(names)}: {text}. ({FILE})"
        for text, names in by_text.items()
    ]
