"""The tables of a finished few-shot experiment: scores by task, paired differences, and the weights of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from lora_retriever.analysis.comparison import compare_pairs, comparison_table
from lora_retriever.analysis.runs import read_run
from lora_retriever.analysis.scores import MEAN, Quantity, ScoredRun, score_run
from lora_retriever.analysis.summary import RunSummary
from lora_retriever.fewshot.experiment import CHOSEN, Design
from lora_retriever.fewshot.published import COLUMNS, published_lines
from lora_retriever.metrics import Scoring
from lora_retriever.tables import Cell, Table

SHOWN = 10
"""Maximum number of adapters in the table of weights."""
DRAWS = "mean of draws"
BEST = "best draw"


def scored_runs(results: Path, design: Design) -> dict[str, ScoredRun]:
    """Every run of a finished experiment under paper scoring, by name."""
    return {name: score_run(read_run(name, results / f"{name}.jsonl"), Scoring()) for name in design.runs}


def score_table(runs: Mapping[str, ScoredRun], design: Design, published: bool) -> Table:
    """One line for each task, and the mean over tasks: baselines, mean and best of the draws, the chosen draw.

    Args:
        published: whether the paper's figures stand beside the scores.
    """
    draws = [runs[name] for name in design.draw_names]
    summaries = {name: RunSummary(runs[name], None) for name in design.baselines}
    summaries |= {DRAWS: RunSummary(mean_of(draws), None), CHOSEN: RunSummary(runs[CHOSEN], None)}
    columns = [*design.baselines, DRAWS, BEST, CHOSEN]
    tasks = {name: Quantity("task", name, task.names[task.main]) for name, task in runs[CHOSEN].tasks.items()}
    best = {name: max(draw.quantities[quantity] for draw in draws) for name, quantity in tasks.items()}

    def line(label: str, quantity: Quantity) -> list[Cell | str | None]:
        cells = {name: _cell(summary, quantity) for name, summary in summaries.items()}
        cells[BEST] = Cell(best[label] if label in best else fmean(best.values()))
        return [cells[column] for column in columns]

    lines = {label: line(label, quantity) for label, quantity in {**tasks, "mean over tasks": MEAN}.items()}
    if published:
        columns += [f"published {name}" for name in COLUMNS]
        for cells, figures in zip(lines.values(), published_lines(list(tasks)), strict=True):
            cells += [None if figure is None else Cell(figure) for figure in figures]
    notes = [
        "± half of the 95 % bootstrap interval, rows drawn within their tasks",
        f"{len(draws)} draw(s) of {design.count} adapters ({design.choice}), {design.search.steps} steps of "
        f"{design.search.optimizer} on the {design.objective} of the examples",
        f"{BEST}: chosen by the test score, so too high; {CHOSEN}: chosen by the objective on the examples",
    ]
    if len(draws) > 1:
        spread = stdev(draw.quantities[MEAN] for draw in draws)
        notes.append(f"standard deviation of the mean over tasks, over draws: {spread:.1f}")
    return Table(columns, list(lines.items()), notes, rules=frozenset({len(tasks)}))


def mean_of(draws: Sequence[ScoredRun]) -> ScoredRun:
    """The mean over draws of each row's score. Every metric of the experiment is a mean over rows, so rows can be
    averaged over draws."""

    def mean(name: str) -> Any:
        tasks = [draw.tasks[name] for draw in draws]
        parts = [
            (metrics[0][0], np.mean([statistics for _, statistics in metrics], axis=0))
            for metrics in zip(*(task.parts for task in tasks), strict=True)
        ]
        return replace(tasks[0], parts=tuple(parts))

    return replace(draws[0], tasks={name: mean(name) for name in draws[0].tasks})


def difference_table(runs: Mapping[str, ScoredRun], design: Design) -> Table | None:
    """How far the chosen draw is above each baseline, in the mean over tasks. None: there is no baseline."""
    pairs = [(runs[CHOSEN], runs[name]) for name in design.baselines]
    return comparison_table(compare_pairs(pairs, "mean"), Scoring().name) if pairs else None


def weight_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The adapters with the largest mean absolute weight. The mean is over the draws that had the adapter.

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


def _cell(summary: RunSummary, quantity: Quantity) -> Cell:
    low, high = summary.intervals.get(quantity, (None, None))
    return Cell(summary.values[quantity], low, high)
