"""The tables of a finished few-shot experiment: scores by task, and the adapters that got the most weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lora_retriever.fewshot.experiment import CHOSEN, Design, part_file, read_lines
from lora_retriever.fewshot.objectives import mean_score
from lora_retriever.fewshot.published import COLUMNS, PUBLISHED
from lora_retriever.tables import Cell, Table

SHOWN = 10
"""Number of adapters in the table of weights."""


def task_scores(results: Path, design: Design, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """The score of every run, by task and run, in percent."""

    def score(run: str, task: str) -> float:
        lines = read_lines(part_file(results, run, task))
        targets = [line["targets"] for line in lines]
        return mean_score(lines[0]["metric"], [line["predicted_answer"] for line in lines], targets)

    return {task: {run: score(run, task) for run in design.runs} for task in tasks}


def score_table(scores: Mapping[str, Mapping[str, float]], design: Design, published: bool) -> Table:
    """One line for each task, and the mean over tasks: baselines, mean and best of the draws, the chosen draw.

    Args:
        scores: the score by task and run, in percent.
        published: whether the paper's figures stand beside the scores.
    """
    draws = [f"lorahub_{draw}" for draw in design.seeds]
    columns = [*design.baselines, "mean of draws", "best draw", "chosen draw"]
    lines: dict[str, list[float | None]] = {}
    for task, by_run in scores.items():
        drawn = [by_run[run] for run in draws]
        lines[task] = [*(by_run[run] for run in design.baselines), fmean(drawn), max(drawn), by_run[CHOSEN]]
        if published:
            lines[task] += PUBLISHED.get(task, [None] * len(COLUMNS))
    if published:
        columns += [f"published {name}" for name in COLUMNS]
    means = [
        fmean(known) if len(known := [value for value in column if value is not None]) == len(lines) else None
        for column in zip(*lines.values(), strict=True)
    ]
    notes = [
        f"{len(draws)} draw(s) of {design.count} adapters ({design.choice}), {design.search.steps} steps of "
        f"{design.search.optimizer} on the {design.objective} of the examples",
        "best draw: chosen by the test score, so too high; chosen draw: chosen by the objective on the examples",
    ]
    if len(draws) > 1:
        spread = fmean(stdev(by_run[run] for run in draws) for by_run in scores.values())
        notes.append(f"standard deviation over draws: {spread:.1f} in the mean over tasks")
    return Table(
        columns,
        [(label, [_cell(value) for value in line]) for label, line in [*lines.items(), ("mean over tasks", means)]],
        notes,
        rules=frozenset({len(lines)}),
    )


def weight_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The adapters with the largest mean absolute weight, over the draws that had them.

    Args:
        records: the records of the draws, with `weights` by adapter.
    """
    weights: dict[str, list[float]] = {}
    for record in records:
        for name, weight in record["weights"].items():
            weights.setdefault(name, []).append(weight)
    ordered = sorted(weights, key=lambda name: -fmean(map(abs, weights[name])))
    return Table(
        ["mean |weight|", "mean weight", "positive", "draws"],
        [
            (
                name,
                [
                    f"{fmean(map(abs, weights[name])):.3f}",
                    f"{fmean(weights[name]):+.3f}",
                    str(sum(weight > 0 for weight in weights[name])),
                    str(len(weights[name])),
                ],
            )
            for name in ordered[:SHOWN]
        ],
        [f"the {min(SHOWN, len(ordered))} of {len(ordered)} adapters with the largest weights"],
    )


def _cell(value: float | None) -> Cell | None:
    return None if value is None else Cell(value)
