"""The cases and the instructions of the two sources, in the form of their repositories.

A *case* is a text with its right answers, without any instruction. Nothing here knows of rows, samples and layouts.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from instruction_benchmark.plan import Source, TaskPlan
from lora_retriever.data.objects import read_objects
from lora_retriever.errors import UserError

GIT_TIMEOUT = 30
"""Maximum time for which git may look for the commit of a checkout, in seconds."""
_REMARK = re.compile(r" \([^()]*\)$")


@dataclass(frozen=True)
class Case:
    """A text, and the answers that are right for the text. Training learns the first answer."""

    text: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """The cases and the instructions that a source has for one task.

    Attributes:
        held_out: the cases that the source keeps apart for tests; empty where the source has no such cases.
        instructions: the source's own instructions; empty where the source has no instructions.
        files: the files that were read, by their names within the checkout.
    """

    cases: tuple[Case, ...]
    held_out: tuple[Case, ...]
    instructions: tuple[str, ...]
    files: Mapping[str, Path]


class _Given(BaseModel):
    """A case in the form of the source's file. The fields after `output` are in the files of some tasks only."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input: str
    output: str
    possible_translations: tuple[str, ...] = ()
    possible_outputs: tuple[str, ...] = ()
    other_rhymes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    category_items: tuple[str, ...] = ()


def check_folder(folder: Path, source: Source, option: str) -> None:
    """Check that a folder is a checkout of the source.

    Raises:
        UserError: a folder of the source is missing. The message names the folder and the repository.
    """
    wanted = [*source.folders, *filter(None, (source.held_out, source.instructions))]
    missing = [name for name in wanted if not (folder / name).is_dir()]
    if missing:
        raise UserError(
            f"{option} {folder}: has no folder {missing[0]}; name the folder of a checkout of {source.repository}"
        )


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout. None: the folder is no checkout, or git is absent or fails."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.strip()


def read_material(folder: Path, source: Source, task: TaskPlan) -> Material:
    """Read the data of a source for one task.

    Raises:
        UserError: a file is missing, cannot be read, or has a field that is missing or wrong.
    """
    name = f"{task.file}.json"
    found = [f"{inner}/{name}" for inner in source.folders if (folder / inner / name).exists()]
    if not found:
        raise UserError(f"{folder}: has no file {name} in {' or '.join(source.folders)}")
    names = [found[0], *(f"{inner}/{name}" for inner in (source.held_out, source.instructions) if inner)]
    instructions = _read_instructions(folder / f"{source.instructions}/{name}") if source.instructions else ()
    return Material(
        cases=read_cases(folder / found[0]),
        held_out=read_cases(folder / f"{source.held_out}/{name}") if source.held_out else (),
        instructions=tuple(text for number, text in enumerate(instructions, 1) if number not in task.left_out),
        files={name: folder / name for name in names},
    )


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a file: a list of objects, or an object whose field `examples` maps numbers to objects.

    Raises:
        UserError: the file cannot be read, or a case has a field that is missing or wrong.
    """
    objects = read_objects(path)
    examples = objects[0].get("examples")
    if len(objects) == 1 and isinstance(examples, dict):
        objects = list(examples.values())
    return tuple(_case(content, f"{path}: case {number}") for number, content in enumerate(objects, start=1))


def _case(content: Any, where: str) -> Case:
    try:
        given = _Given.model_validate(content)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, wrong['loc'])) or 'the case'}: {wrong['msg']}") from error
    text = given.input.strip()
    targets = tuple(dict.fromkeys(filter(None, map(str.strip, _targets(given)))))
    if not text or not targets:
        raise UserError(f"{where}: the {'output' if text else 'input'} is blank")
    return Case(text, targets)


def _targets(given: _Given) -> Iterable[str]:
    """All right answers of a case, with the answer that training learns first.

    - The words of a category are right in every order. The source shuffles these words; the order of the input is
      first, because a model can learn that order.
    - A word is no rhyme of itself.
    - An answer with a remark in brackets, such as "Afghani (AFN)", is right without the remark, too.
    """
    if given.category_items:
        kept = [word for word in given.words if word in given.category_items]
        yield from (", ".join(order) for order in permutations(kept))
        return
    rhymes = (word for word in given.other_rhymes if word != given.input)
    for answer in (given.output, *given.possible_translations, *given.possible_outputs, *rhymes):
        yield _REMARK.sub("", answer)
        yield answer


def _read_instructions(path: Path) -> tuple[str, ...]:
    found = read_objects(path)[0].get("annotations")
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise UserError(f"{path}: the field annotations must be a list of texts")
    return tuple(found)
