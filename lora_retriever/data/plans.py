"""Plans in numbered steps, and the object tables of G-PlanET (arXiv 2209.00465).

A plan is `STEP 1: … | STEP 2: … | END`. An input is a goal, or a goal with a table of a room's objects: the goal,
` SCENE DESCRIPTION: `, a header, and one row for each object; rows are parted by ` [SEP] `, fields by commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

END = "END"
SCENE = " SCENE DESCRIPTION: "
ROW, FIELD = " [SEP] ", ", "
HEADER = "id, object_type, position_x, position_y, position_z, rotation_x, rotation_y, rotation_z, parent_receptacle"
AGENT = "Agent"
_NUMBER = re.compile(r"\s*step\s*\d+\s*:\s*", re.IGNORECASE)
_END = re.compile(rf"\s*{END}\b")
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def steps_of(plan: str) -> list[str]:
    """The steps of a plan, without their numbers and without END. A step may lack its number."""
    steps = []
    for part in plan.replace("\n", " | ").split("|"):
        text = _NUMBER.sub("", part, count=1).strip()
        if is_end(text) or is_end(part):
            break
        if text:
            steps.append(text)
    return steps


def is_end(text: str) -> bool:
    """Whether a text begins with the word END.

    A step such as `ENDIVES: wash the leaves` does not begin with this word.
    """
    return _END.match(text) is not None


def plan_of(steps: Sequence[str]) -> str:
    """The plan of some steps: `STEP 1: … | STEP 2: … | END`."""
    return " | ".join([*(f"STEP {number}: {step}" for number, step in enumerate(steps, start=1)), END])


def divided(inputs: str) -> tuple[str, str]:
    """The goal and the table of an input. Without a table, the table is empty."""
    goal, _, table = inputs.partition(SCENE.rstrip())
    return goal.strip(), table.strip()


def joined(goal: str, table: str) -> str:
    """The input of a goal and a table."""
    return f"{goal}{SCENE}{table}" if table else goal


def next_step_input(goal: str, steps: Sequence[str], table: str) -> str:
    """The input that asks for the step after `steps`: the goal, ` | `, the numbered steps so far, then the table.

    Training and decoding share this function. (The published code puts ` | ` after the goal in training only.)
    """
    so_far = plan_of(steps).removesuffix(END)
    return joined(f"{goal} | {so_far}".rstrip(), table)


@dataclass(frozen=True)
class Thing:
    """One row of an object table.

    Attributes:
        kind: the type of the object, such as `CounterTop`.
        position: x, y, z in metres. None: the row has no position, as the row of a wall.
        parent: the type of the receptacle that holds the object. Empty: nothing holds the object.
    """

    kind: str
    position: tuple[float, float, float] | None
    parent: str


def things_of(table: str) -> list[Thing]:
    """The objects of a table, the agent first. Rows that cannot be read are left out."""
    fields = [[field.strip() for field in row.split(",")] for row in table.split("[SEP]")]
    rows = [row for row in fields if len(row) >= 9 and row[0].isdigit()]
    kinds = {row[0]: row[1] for row in rows}
    things = []
    for row in rows:
        try:
            x, y, z = (float(value) for value in row[2:5])
            position: tuple[float, float, float] | None = (x, y, z)
        except ValueError:
            position = None
        parent = kinds.get(row[8], row[8].split("|")[0])  # about 1 % of parents are names in place of ids
        things.append(Thing(row[1], position, parent))
    return things


def kinds_in(inputs: str) -> set[str]:
    """The words of the types of all objects in the table of an input, such as `counter top`. Walls do not count."""
    table = divided(inputs)[1]
    if "[SEP]" in table:
        kinds = {thing.kind for thing in things_of(table)}
    else:  # the sorted form
        kinds = {row.split(" ")[0] for row in table.split("; ") if row}
    return {words_of(kind) for kind in kinds if kind and kind not in (AGENT, "Wall")}


def words_of(kind: str) -> str:
    """The type of an object in lower-case words: `CounterTop` becomes `counter top`."""
    return " ".join(_CAMEL.findall(kind)).lower()


def sorted_table(goal: str, table: str, length: int) -> str:
    """The table in short form, the objects that the goal names first, cut at a row's end.

    A row is `Mug 0.5 1.2 CounterTop`: type, distance ahead of the agent's place in x and z (metres), and the receptacle
    that holds the object. First come objects whose types share most words with the goal, then receptacles of these
    objects, then the nearest objects. Of rows with equal texts the first is kept. Rotations, heights and walls are left
    out.

    Args:
        length: maximum length of the result, in characters.
    """
    things = things_of(table)
    agent = next((thing.position for thing in things if thing.kind == AGENT and thing.position), (0.0, 0.0, 0.0))
    named = set(re.findall(r"[a-z]+", goal.lower()))
    named |= {word.removesuffix("s") for word in named}
    plain = "".join(re.findall(r"[a-z]", goal.lower()))

    def shared(kind: str) -> int:
        words = words_of(kind).split()
        return len(named & set(words)) + (kind.lower() in plain)

    placed = [thing for thing in things if thing.kind != AGENT and thing.position is not None]
    holding = {thing.parent for thing in placed if shared(thing.kind)}

    def place(thing: Thing) -> tuple[float, ...]:
        assert thing.position is not None
        near = (thing.position[0] - agent[0]) ** 2 + (thing.position[2] - agent[2]) ** 2
        return (-shared(thing.kind), thing.kind not in holding, near)

    rows: list[str] = []
    for thing in sorted(placed, key=place):
        assert thing.position is not None
        x, z = thing.position[0] - agent[0], thing.position[2] - agent[2]
        row = f"{thing.kind} {x:.1f} {z:.1f} {thing.parent}".strip()
        if row not in rows:
            if len("; ".join([*rows, row])) > length:
                break
            rows.append(row)
    return "; ".join(rows)
