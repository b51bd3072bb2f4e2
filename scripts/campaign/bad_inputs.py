"""All bad inputs, and their trials."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from campaign import cases_data, cases_models, cases_results
from campaign.figures import Log
from campaign.inputs import (
    MAX_MEMORY,
    MAX_SECONDS,
    Case,
    files_in,
    make_benchmark,
    problems_of_files,
    problems_of_output,
)
from campaign.world import World, start


def all_cases() -> list[Case]:
    """Every bad input.

    Raises:
        ValueError: two cases have one name.
    """
    cases = [
        *cases_data.rows(), *cases_data.pools(), *cases_data.profiles(), *cases_models.adapters(),
        *cases_models.bases(), *cases_models.encoders(), *cases_results.folders(), *cases_results.indices(),
        *cases_results.embeddings(), *cases_results.arguments(),
    ]  # fmt: skip
    twice = [key for key, count in Counter(case.key for case in cases).items() if count > 1]
    if twice:
        raise ValueError(f"cases of one name: {twice}")
    return cases


def spread(cases: list[Case], count: int | None) -> list[Case]:
    """At most `count` cases, spread evenly."""
    if count is None or count >= len(cases):
        return cases
    return [cases[place * len(cases) // count] for place in range(count)]


def try_all(world: World, scratch: Path, log: Log, count: int | None) -> None:
    """Try the cases, each in a process of its own."""
    least = start(world, ["--version"], scratch / "out", stand_in=False)
    least.wait()
    for case in spread(all_cases(), count):
        if case.key in log.trials:
            continue
        folder = scratch / "spoilt"
        shutil.rmtree(folder, ignore_errors=True)
        make_benchmark(folder, case.copies)
        case.spoil(folder)
        before = files_in(folder)
        started = start(world, case.arguments(folder), scratch / "out", stand_in=False)
        try:
            status = started.wait(MAX_SECONDS)
        except TimeoutError as error:
            log.add(case.key, case.kind, [str(error)])
            continue
        problems = problems_of_output(case, status, started.text()) + problems_of_files(case, folder, before)
        used = started.memory - least.memory
        if used > MAX_MEMORY:
            problems.append(f"needed {used >> 20} MiB")
        log.add(case.key, case.kind, problems, seconds=round(started.seconds, 2))
