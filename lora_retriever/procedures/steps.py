"""`steps`: a plan step by step, each step asked with the goal and the steps so far (G-PlanET, arXiv 2209.00465)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from lora_retriever.data.plans import END, divided, is_end, next_step_input, plan_of, steps_of
from lora_retriever.data.rows import Row, Sample
from lora_retriever.procedures.base import Ask, Procedure, Talk


@dataclass(frozen=True)
class StepByStep:
    """Ask for the next step until the answer is END or blank, or there are `max_steps` steps.

    Attributes:
        max_steps: maximum number of steps; the published code has 12.
        anew: whether adapters are retrieved for each step, with the goal and the steps so far as the query. If not, one
            composition answers all steps.
    """

    max_steps: Annotated[int, Field(ge=1, le=500, strict=True)] = 12
    anew: bool = False

    def __call__(self, row: Row) -> Talk:
        """Ask step after step. The prediction is the plan."""
        goal, table = divided(row.inputs)
        steps: list[str] = []
        while len(steps) < self.max_steps:
            query = next_step_input(goal, steps, "") if self.anew else None
            answer: str = yield Ask(next_step_input(goal, steps, table), query)
            if is_end(answer):
                break
            found = steps_of(answer)
            if not found:
                break
            steps.append(found[0])
        return plan_of(steps)


def next_steps(sample: Sample) -> list[Sample]:
    """The T + 1 examples of a plan of T steps: goal and steps so far, and the next step. The last target is END."""
    goal, table = divided(sample.inputs)
    steps = steps_of(sample.target)
    return [
        Sample(inputs=next_step_input(goal, steps[:done], table), targets=_numbered(steps, done))
        for done in range(len(steps) + 1)
    ]


def _numbered(steps: list[str], done: int) -> str:
    return f"STEP {done + 1}: {steps[done]}" if done < len(steps) else END


CITATION = "G-PlanET, iterative decoding, arXiv 2209.00465"
PROCEDURES = (
    Procedure("steps", "a plan step by step, under the row's composition", CITATION, StepByStep(), next_steps),
    Procedure(
        "steps_anew",
        "a plan step by step, with adapters retrieved for each step",
        "this project, after arXiv 2209.00465",
        StepByStep(anew=True),
        next_steps,
    ),
)
