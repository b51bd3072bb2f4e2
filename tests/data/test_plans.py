"""Plans and object tables of G-PlanET."""

from __future__ import annotations

import pytest
from places import ROOT

from lora_retriever.data.objects import read_objects
from lora_retriever.data.plans import (
    divided,
    joined,
    kinds_in,
    next_step_input,
    plan_of,
    sorted_table,
    steps_of,
    things_of,
)

TABLE = (
    "id, object_type, position_x, position_y, position_z, rotation_x, rotation_y, rotation_z, parent_receptacle [SEP] "
    "0, Agent, 1.0, 0.9, 1.0, 0, 180, 0,  [SEP] 1, Mug, 2.0, 1.0, 1.5, 0, 90, 0, 3 [SEP] "
    "2, Ladle, 1.1, 1.0, 1.0, 0, 0, 0, Drawer|+01.5|0 [SEP] 3, CounterTop, 2.0, 0.9, 1.5, 0, 0, 0,  [SEP] "
    "4, Fridge, -3.0, 0, 1.0, 0, 0, 0,  [SEP] 5, Wall, , , , , , , "
)


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        ("STEP 1: Turn left. | STEP 2: Take it: now | END", ["Turn left.", "Take it: now"]),
        ("STEP 1: Turn left | and go | END | STEP 3: more", ["Turn left", "and go"]),
        ("step 1: a\nSTEP 2: b", ["a", "b"]),
        ("STEP 1: a | ENDIVES: wash them | STEP 3: b | END.", ["a", "ENDIVES: wash them", "b"]),
        ("END", []),
        ("", []),
    ],
)
def test_steps_are_read_with_and_without_numbers(plan: str, steps: list[str]) -> None:
    assert steps_of(plan) == steps
    assert steps_of(plan_of(steps)) == steps


def test_the_next_step_is_asked_with_goal_steps_and_table() -> None:
    assert divided(joined("Take it.", TABLE)) == ("Take it.", TABLE.strip())
    assert next_step_input("Take it.", [], "") == "Take it. |"
    text = next_step_input("Take it.", ["Turn left"], TABLE)
    assert text == f"Take it. | STEP 1: Turn left | SCENE DESCRIPTION: {TABLE}"


def test_a_table_has_things_with_their_receptacles() -> None:
    things = things_of(TABLE)
    assert [thing.kind for thing in things] == ["Agent", "Mug", "Ladle", "CounterTop", "Fridge", "Wall"]
    assert [thing.parent for thing in things] == ["", "CounterTop", "Drawer", "", "", ""]
    assert things[-1].position is None
    assert kinds_in(joined("x", TABLE)) == {"mug", "ladle", "counter top", "fridge"}


def test_a_sorted_table_begins_with_what_the_goal_names_and_where_it_is() -> None:
    whole = sorted_table("Put the mugs in the fridge", TABLE, 1000)
    assert whole == "Mug 1.0 0.5 CounterTop; Fridge -4.0 0.0; CounterTop 1.0 0.5; Ladle 0.1 0.0 Drawer"
    assert sorted_table("Put the mugs in the fridge", TABLE, 50) == "Mug 1.0 0.5 CounterTop; Fridge -4.0 0.0"
    assert kinds_in(joined("x", whole)) == {"mug", "fridge", "counter top", "ladle"}


@pytest.mark.slow
def test_all_published_plans_can_be_read() -> None:
    folder = ROOT.parent / "shared" / "data" / "gplanet"
    if not folder.is_dir():
        pytest.skip("the data of G-PlanET (../shared/data/gplanet) is not here")
    for split, plans in {"tests_seen": 705, "tests_unseen": 694}.items():
        rows = read_objects(folder / f"{split}.jsonl")
        steps = [steps_of(row["output"][0]) for row in rows]
        assert len(steps) == plans
        assert {3, 19 if split == "tests_unseen" else 16} == {min(map(len, steps)), max(map(len, steps))}
