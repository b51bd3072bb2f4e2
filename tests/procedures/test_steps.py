"""Plans step by step: the questions, the end of a plan, the examples of an adapter; and the whole miniature."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import lines_of

from lora_retriever.cli import main
from lora_retriever.data.plans import SCENE, steps_of
from lora_retriever.data.rows import Row, Sample
from lora_retriever.metrics.base import compute
from lora_retriever.metrics.plans import KAS
from lora_retriever.procedures import Ask, find_procedure
from lora_retriever.procedures.steps import StepByStep, next_steps
from lora_retriever.training.pool import taught


def asked(answers: list[str], inputs: str = "Take it.", **options: bool | int) -> tuple[list[Ask], str]:
    """The questions for a goal, given the answers in turn, and the plan."""
    row = Row(inputs=inputs, targets="x", task="t", domain="d", metric="kas", id=0)
    talk = StepByStep(**options)(row)  # type: ignore[arg-type]
    questions = [next(talk)]
    try:
        for answer in answers:
            questions.append(talk.send(answer))
    except StopIteration as end:
        return [question for question in questions if isinstance(question, Ask)], end.value
    raise AssertionError("the procedure asks on")


@pytest.mark.parametrize(
    ("answers", "plan"),
    [
        (["STEP 1: Go left.", "STEP 2: Take it.", "END"], "STEP 1: Go left. | STEP 2: Take it. | END"),
        (["Go left. | STEP 2: Take it.", " END | more"], "STEP 1: Go left. | END"),  # one step at a time
        (["STEP 1: Go left.", "  "], "STEP 1: Go left. | END"),
        (["END"], "END"),
        (["ENDIVES: wash them", "END."], "STEP 1: ENDIVES: wash them | END"),
    ],
)
def test_a_plan_ends_with_end_or_a_blank_answer(answers: list[str], plan: str) -> None:
    assert asked(answers)[1] == plan


def test_each_step_is_asked_with_the_steps_so_far_and_the_table() -> None:
    inputs = f"Take it.{SCENE}Mug 0.0 1.0 Desk"
    questions, _ = asked(["STEP 1: Go left.", "END"], inputs)
    assert questions == [
        Ask(f"Take it. |{SCENE}Mug 0.0 1.0 Desk"),
        Ask(f"Take it. | STEP 1: Go left. |{SCENE}Mug 0.0 1.0 Desk"),
    ]
    questions, _ = asked(["STEP 1: Go left.", "END"], inputs, anew=True)
    assert [question.query for question in questions] == ["Take it. |", "Take it. | STEP 1: Go left. |"]


def test_a_plan_has_at_most_max_steps_steps() -> None:
    assert asked(["a", "b"], max_steps=2)[1] == "STEP 1: a | STEP 2: b | END"


def test_training_asks_what_decoding_asks() -> None:
    sample = Sample(inputs=f"Take it.{SCENE}Mug", targets="STEP 1: Go left. | STEP 2: Take it. | END")
    examples = next_steps(sample)
    questions, plan = asked([example.target for example in examples], sample.inputs)
    assert [question.inputs for question in questions] == [example.inputs for example in examples]
    assert plan == sample.target
    assert taught([sample], "steps_anew") == examples
    assert taught([sample], "plain") == [sample]
    assert find_procedure("steps").examples is next_steps


@pytest.mark.slow
def test_the_miniature_of_plans_is_answered_step_by_step_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--profile", "tiny-plans", "--only", "best_selection,selection", "--results", str(tmp_path)]
    assert main(["run", "-q", "--limit", "16", *arguments]) == 0
    lines = lines_of(tmp_path, "best_selection")
    assert sum(len(steps_of(line["predicted_answer"])) == 4 for line in lines) >= 12
    assert (
        compute(KAS, predictions=[x["predicted_answer"] for x in lines], references=[x["targets"] for x in lines])[
            "kas"
        ]
        > 50
    )
    for line in lines_of(tmp_path, "selection"):
        assert line["predicted_answer"].count("STEP") in (len(line["stages"]), len(line["stages"]) - 1)
    assert main(["summarize", str(tmp_path), "--scoring", "standard", "--by", "rooms"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("kas", "aligned-f1", "length-error", "seen", "unseen"))
