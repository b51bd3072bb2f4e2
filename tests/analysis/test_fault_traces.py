"""The traces of faults in answers: faults that are planted in made-up answers are found, and hand-made counts agree."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from answer_traces import (
    Answers,
    difference_within,
    equal_inputs,
    heterogeneity,
    in_mixed_batches,
    mean_over_tasks,
    padding,
    read_answers,
    shared_input,
    slope,
)
from fault_traces import crossed, one_input, sampling

from lora_retriever.data.rows import Row
from lora_retriever.errors import UserError

TASKS = ["x"] * 12 + ["y"] * 12
ROWS = [
    Row(
        inputs="shared" if place in (1, 3, 13, 14) else f"input {place}" * (1 + place % 3),
        targets="right.", task=task, domain="d", metric="em", id=place,
    )
    for place, task in enumerate(TASKS)
]  # fmt: skip


def answers(name: str, texts: list[str]) -> Answers:
    return Answers(name, tuple(texts), np.array([100.0 * (text == "right") for text in texts]))


def test_only_rows_of_batches_with_two_tasks_are_mixed() -> None:
    assert in_mixed_batches(ROWS).nonzero()[0].tolist() == list(range(8, 16))


def test_padding_is_the_share_of_the_longest_input_that_a_row_lacks() -> None:
    rows = [row.model_copy(update={"inputs": "i" * length}) for row, length in zip(ROWS, [4, 8, 2, 8], strict=False)]
    assert padding(rows).tolist() == [0.5, 0.0, 0.75, 0.0]


def test_pairs_of_equal_inputs_are_counted_by_batch_and_within_tasks() -> None:
    texts = ["a"] * 24
    texts[3] = texts[14] = "b"
    found = equal_inputs(ROWS, answers("m", texts))
    assert found.together == (2, 2)  # rows 1 and 3, rows 13 and 14
    assert found.apart == (0, 0)  # pairs of two tasks do not count
    assert sampling({"s": {"fusion": answers("fusion", texts)}}, ROWS).rows == [("s: fusion", ["2 of 2", "0 of 0"])]


def test_means_and_differences_are_taken_within_tasks() -> None:
    values = np.array([100.0] * 6 + [0.0] * 6 + [100.0] * 12)
    chosen = np.array(([True] * 3 + [False] * 3) * 2 + [False] * 11 + [True])
    assert mean_over_tasks(values, TASKS)[0] == 75.0
    value, low, high = difference_within(values, TASKS, chosen)
    assert value == 0.0  # in x, chosen and other rows have mean 50; in y, 100
    assert low <= 0.0 <= high
    values[-1] = math.nan  # y has no chosen row left
    assert difference_within(values, TASKS, chosen)[0] == 0.0
    chosen = np.array([True] * 6 + [False] * 18)
    assert difference_within(values, TASKS, chosen)[0] == 100.0


def test_a_batch_that_went_wrong_is_seen_and_an_ordinary_run_is_not() -> None:
    tasks = ["x"] * 48
    ordinary = np.tile([100.0, 0.0, 0.0], 16)
    broken = np.where(np.arange(48) // 8 == 2, 0.0, 100.0)
    batches = [place // 8 for place in range(48)]
    assert heterogeneity(broken, tasks, batches) < 0.001
    assert heterogeneity(ordinary, tasks, batches) > 0.05
    assert heterogeneity(np.append(broken, math.nan), [*tasks, "x"], [*batches, 2]) < 0.001


def test_the_correlation_is_that_of_numpy_within_one_task() -> None:
    generator = np.random.default_rng(1)
    values, predictor = generator.random(40), generator.random(40)
    correlation, p = slope(values, ["x"] * 40, predictor)
    assert correlation == pytest.approx(np.corrcoef(values, predictor)[0, 1])
    assert p > 0.01
    assert slope(2 * predictor, ["x"] * 40, predictor) == (pytest.approx(1.0), 1 / 2000)


def test_an_answer_of_one_adapter_alone_is_named() -> None:
    own = ["-"] * 24
    for place, text in ((1, "from x"), (3, "from x"), (13, "from y"), (14, "from y")):
        own[place] = text
    fused = ["from y" if row.inputs == "shared" else "-" for row in ROWS]
    assert shared_input(ROWS) == "shared"
    table = one_input(
        {"s": {"best_selection": answers("best_selection", own), "fusion": answers("fusion", fused)}}, ROWS
    )
    assert table.columns == ["x", "y"]
    assert dict(table.rows) == {
        "s: fusion": ["= adapter y (2 of 2)", "= adapter y (2 of 2)"],
        "s: best_selection": ["= adapter x (2 of 2)", "= adapter y (2 of 2)"],
    }


def test_two_sources_are_compared_answer_by_answer() -> None:
    sources = {
        "s": {"fusion": answers("fusion", ["a"] * 24)},
        "t": {"fusion": answers("fusion", ["a"] * 6 + ["b"] * 18)},
    }
    table = crossed(sources)
    assert table.columns == ["s: fusion", "t: fusion"]
    assert dict(table.rows) == {"t: fusion": ["25", "100"], "s: fusion": ["100", "25"]}


def test_answers_are_read_with_task_names_from_elsewhere_and_scored_by_the_paper(tmp_path: Path) -> None:
    given = [
        {**row.model_dump(exclude={"id"}), "task": f"{row.task}_10templates", "predicted_answer": " Right.\n"}
        for row in ROWS
    ]
    given[0]["predicted_answer"] = "wrong"
    (tmp_path / "fusion.json").write_text(json.dumps(given))
    found = read_answers(tmp_path, ROWS)["fusion"]
    assert found.texts[:2] == ("wrong", "Right.")
    assert found.exact.tolist() == [0.0] + [100.0] * 23
    (tmp_path / "fusion.json").write_text(json.dumps(given[::-1]))
    with pytest.raises(UserError, match="fusion: its rows are not the benchmark's rows"):
        read_answers(tmp_path, ROWS)
    with pytest.raises(UserError, match="no results folder"):
        read_answers(tmp_path / "nothing", ROWS)
