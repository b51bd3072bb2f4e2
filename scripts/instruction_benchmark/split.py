"""The cases of a task, divided into test rows, examples to train on, and samples of the pool.

The samples are the first examples. No case of a test row is among the examples, whatever the order of its words and
whether its letters are capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from instruction_benchmark.plan import TaskPlan
from instruction_benchmark.sources import Case
from instruction_benchmark.wording import Instructions, dealt, worded
from lora_retriever.data.rows import single_spaced
from lora_retriever.errors import UserError

TEST_ROWS = 50
"""Number of test rows of a task. Every second row has an unseen instruction."""
POOL_SAMPLES = 20
"""Number of samples of a pool entry."""
MAX_EXAMPLES = 500
"""Maximum number of examples of a task, the samples of the pool included."""
MAX_CHARACTERS = 300
"""Maximum length of the text of a case, in characters. Longer cases are left out, so that a CPU can train quickly."""
METRIC = "em"

Objects = list[dict[str, Any]]


@dataclass(frozen=True)
class TaskData:
    """The data of one task, in the form of the files.

    Attributes:
        cases: the number of different cases that could be used.
        rows: the test rows. The field `instruction` is `seen` or `unseen`.
        entry: the entry of the training file. Its first `POOL_SAMPLES` samples are the pool's.
    """

    cases: int
    rows: Objects
    entry: dict[str, Any]

    @property
    def pool_entry(self) -> dict[str, Any]:
        """The entry of the pool's file."""
        return {**self.entry, "sample": self.entry["sample"][:POOL_SAMPLES]}


def task_data(
    name: str,
    task: TaskPlan,
    cases: Sequence[Case],
    held_out: Sequence[Case],
    instructions: Instructions,
    layouts: Sequence[str],
    seed: int,
) -> TaskData:
    """Build the data of one task. Another task does not change the result.

    Raises:
        UserError: there are too few cases.
    """
    rng = Random(f"instruction benchmark/{seed}/{name}")
    test, training = divided(cases, held_out, rng)
    if len(test) < TEST_ROWS or len(training) < POOL_SAMPLES:
        raise UserError(
            f"task {name}: {task.file}.json has cases for {len(test)} test rows and {len(training)} samples; "
            f"{TEST_ROWS} and {POOL_SAMPLES} are needed"
        )
    half = TEST_ROWS // 2
    seen = _samples(test[:half], instructions.seen, layouts, rng)
    unseen = _samples(test[half:], instructions.unseen, layouts, rng)
    rows = [
        {**sample, "task": name, "domain": task.domain, "metric": METRIC, "instruction": kind}
        for pair in zip(seen, unseen, strict=True)
        for kind, sample in zip(("seen", "unseen"), pair, strict=True)
    ]
    samples = _samples(training, instructions.seen, layouts, rng)
    count = len(merged((*cases, *held_out)))
    return TaskData(count, rows, {"model_name": name, "domain": task.domain, "sample": samples})


def divided(cases: Sequence[Case], held_out: Sequence[Case], rng: Random) -> tuple[list[Case], list[Case]]:
    """Cases for tests, and cases for training, both in random order.

    The tests come from `held_out` where the source has such cases, or else from all cases. A case with the words of a
    test case is not used for training, and gives no second test.
    """
    candidates = merged(held_out or cases)
    rng.shuffle(candidates)
    tests: dict[tuple[str, ...], Case] = {}
    for case in candidates:
        if len(tests) < TEST_ROWS:
            tests.setdefault(_words(case.text), case)
    training = [case for case in merged(cases) if _words(case.text) not in tests]
    rng.shuffle(training)
    return list(tests.values()), training[:MAX_EXAMPLES]


def merged(cases: Iterable[Case]) -> list[Case]:
    """The cases that are short enough, each text once. A text that is there several times has all its answers."""
    found: dict[str, Case] = {}
    for case in cases:
        if len(case.text) <= MAX_CHARACTERS:
            known = found.setdefault(single_spaced(case.text), case)
            targets = tuple(dict.fromkeys((*known.targets, *case.targets)))
            found[single_spaced(case.text)] = Case(known.text, targets)
    return list(found.values())


def _words(text: str) -> tuple[str, ...]:
    """The words of a case in alphabetical order. A test case and a training case must not have the same words."""
    return tuple(sorted(re.findall(r"\w+", text.casefold()))) or (text,)


def _samples(cases: Sequence[Case], instructions: Sequence[str], layouts: Sequence[str], rng: Random) -> Objects:
    """The cases under instructions and layouts that are dealt evenly."""
    chosen = zip(cases, dealt(instructions, len(cases), rng), dealt(layouts, len(cases), rng), strict=True)
    return [
        {
            "inputs": worded(layout, instruction, case.text),
            "targets": case.targets[0] if len(case.targets) == 1 else list(case.targets),
        }
        for case, instruction, layout in chosen
    ]
