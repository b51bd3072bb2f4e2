"""Instructions and layouts: how the text of a case becomes the input of a row or of a sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from instruction_benchmark.plan import TaskPlan
from lora_retriever.errors import UserError

MIN_SEEN = 4
"""Minimum number of instructions of a task that the pool and the training examples use."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Instructions:
    """The instructions of one task:

    `seen` instructions for the pool, the training and half of the test rows, and `unseen` instructions for the other
    rows.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def instructions_of(name: str, task: TaskPlan, from_source: Sequence[str]) -> Instructions:
    """The instructions of a task: the source's own ones, then the project's, each only once.

    Raises:
        UserError: there are too few instructions.
    """
    different: dict[str, str] = {}
    for text in (*from_source, *task.seen):
        different.setdefault(_compared(text), text)
    seen = tuple(different.values())
    if len(seen) < MIN_SEEN:
        raise UserError(f"task {name}: {len(seen)} seen instructions, and {MIN_SEEN} are needed")
    return Instructions(seen, task.unseen)


def check_distinct(tasks: Mapping[str, Instructions]) -> None:
    """Check that no instruction belongs to two tasks, or to both halves of one task.

    Raises:
        UserError: an instruction is there twice. The message names the instruction and the tasks.
    """
    owners: dict[str, str] = {}
    for name, instructions in tasks.items():
        for half, texts in (("seen", instructions.seen), ("unseen", instructions.unseen)):
            for text in texts:
                where = f"{name} ({half})"
                other = owners.setdefault(_compared(text), where)
                if other is not where:
                    raise UserError(f"the instruction {text!r} is there twice: {other} and {where}; word one anew")


def worded(layout: str, instruction: str, text: str) -> str:
    """The input that a layout makes of an instruction and a text."""
    plain = instruction.strip().rstrip(" .:")
    question = plain.endswith("?")
    return layout.format(text=text, colon=plain if question else f"{plain}:", stop=plain if question else f"{plain}.")


def dealt(items: Sequence[Item], count: int, rng: Random) -> list[Item]:
    """`count` values, dealt like cards: every value comes once, in random order, before any value comes again."""
    found: list[Item] = []
    while len(found) < count:
        found += rng.sample(items, len(items))
    return found[:count]


def _compared(instruction: str) -> str:
    """The words of an instruction, in which two instructions with the same wording are equal."""
    return " ".join(re.findall(r"\w+", instruction.casefold()))
