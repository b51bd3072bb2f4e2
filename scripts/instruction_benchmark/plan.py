"""The plan of the instruction benchmark, read from `tasks.yaml`: its sources, its layouts and its tasks.

Nothing here reads the sources.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lora_retriever.data.yaml_files import read_yaml
from lora_retriever.errors import UserError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Part):
    """A public repository, and the folders of its checkout.

    Attributes:
        folders: the folders with files of cases. A task's file is in one of these folders.
        held_out: the folder with the cases that the source keeps apart for tests. None: the source has no such cases.
        instructions: the folder with the source's own instructions. None: the source has no instructions.
    """

    repository: str
    licence: str
    folders: tuple[str, ...] = Field(min_length=1)
    held_out: str | None = None
    instructions: str | None = None


class TaskPlan(_Part):
    """One task: its domain, where its cases are, and the instructions that this project wrote for the task.

    Attributes:
        file: the name of the source's file, without `.json`.
        left_out: the numbers of the source's own instructions that are not used, from 1.
    """

    domain: str
    source: str
    file: str
    seen: tuple[str, ...] = ()
    unseen: tuple[str, ...] = Field(min_length=2)
    left_out: tuple[int, ...] = ()


class Plan(_Part):
    """The whole plan. `layouts` are texts with `{text}`, and with `{colon}` or `{stop}` for the instruction."""

    sources: dict[str, Source]
    layouts: tuple[str, ...] = Field(min_length=1)
    tasks: dict[str, TaskPlan] = Field(min_length=1)

    @field_validator("layouts")
    @classmethod
    def _complete(cls, layouts: tuple[str, ...]) -> tuple[str, ...]:
        for layout in layouts:
            if "{text}" not in layout or ("{colon}" in layout) == ("{stop}" in layout):
                raise ValueError(f"{layout!r} needs {{text}}, and either {{colon}} or {{stop}}")
        return layouts


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: the file cannot be read, a field is missing, unknown or wrong, or a task names an unknown source.
    """
    try:
        plan = Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"]))
        raise UserError(f"{path}: {field}: {wrong['msg'].removeprefix('Value error, ')}") from error
    for name, task in plan.tasks.items():
        if task.source not in plan.sources:
            known = ", ".join(plan.sources)
            raise UserError(f"{path}: tasks.{name}.source: unknown source {task.source!r} (known: {known})")
    return plan
