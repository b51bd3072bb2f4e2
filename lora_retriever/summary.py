"""From a folder of answers to the table: scores per task, per domain, per run.

A task's score is the mean over its rows × 100, rounded to one decimal, a domain's the mean of its tasks' (the
original's way).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_retriever.data import Row, read_records
from lora_retriever.errors import UserError
from lora_retriever.methods import METHODS
from lora_retriever.metrics import MAIN_SCORE, METRICS

ORACLE = "best_selection"


@dataclass(frozen=True)
class TaskScore:
    """One task under one run. `scores` are the task's metric's, in percent, rounded to one decimal."""

    domain: str
    metric: str
    n: int
    scores: dict[str, float]

    @property
    def main(self) -> float:
        """The score by which the task counts in means over tasks: em, bleu or rouge-1."""
        return self.scores[MAIN_SCORE[self.metric]]


@dataclass(frozen=True)
class RunSummary:
    """One run, scored. `empty` counts rows whose answer is empty or dots only; they score 0."""

    name: str
    rows: int
    empty: int
    tasks: dict[str, TaskScore]
    note: str = ""

    @property
    def domains(self) -> dict[str, dict[str, float]]:
        """Per domain and metric, the mean of its tasks' scores."""
        gathered: dict[str, dict[str, list[float]]] = {}
        for task in self.tasks.values():
            for metric, score in task.scores.items():
                gathered.setdefault(task.domain, {}).setdefault(metric, []).append(score)
        return {
            domain: {metric: round(sum(values) / len(values), 4) for metric, values in metrics.items()}
            for domain, metrics in gathered.items()
        }

    @property
    def mean(self) -> float:
        """Mean of the tasks' main scores."""
        return round(sum(task.main for task in self.tasks.values()) / len(self.tasks), 4)

    def normalized(self, oracle: RunSummary | None) -> float | None:
        """Mean over tasks of score / oracle's score × 100 (LoRAuter, arXiv 2601.21795); None without an oracle.

        Tasks on which the oracle scores 0 have no such ratio and are left out.
        """
        if oracle is None:
            return None
        ratios = [
            task.main / oracle.tasks[name].main * 100
            for name, task in self.tasks.items()
            if name in oracle.tasks and oracle.tasks[name].main > 0
        ]
        return round(sum(ratios) / len(ratios), 4) if ratios else None


def summarize(folder: Path) -> list[RunSummary]:
    """All finished runs in a results folder, the paper's configurations first, in its order.

    Raises:
        UserError: there is no such folder, no run in it, or a run's file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"no results folder {folder}; `bash eval_all.sh` makes one")
    files = {path.stem: path for path in sorted(folder.glob("*.json")) if not path.name.endswith(".meta.json")}
    files |= {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise UserError(f"{folder} holds no finished run (NAME.jsonl, or the original's NAME.json)")
    order = {name: place for place, name in enumerate(METHODS)}
    names = sorted(files, key=lambda name: (order.get(name, len(order)), name))
    return [summarize_run(name, files[name]) for name in names]


def summarize_run(name: str, path: Path) -> RunSummary:
    """Score one run's answers by the paper's metrics.

    Raises:
        UserError: the file is no list of answered rows.
    """
    grouped: dict[str, list[tuple[Row, dict[str, float]]]] = {}
    empty = 0
    for place, record in enumerate(read_records(path), start=1):
        absent = [key for key in ("targets", "task", "domain", "metric", "predicted_answer") if key not in record]
        if absent:
            raise UserError(f"{path}: row {place}: field {absent[0]!r} is missing; is this a run's file?")
        if record["metric"] not in METRICS:
            raise UserError(f"{path}: row {place}: unknown metric {record['metric']!r} (known: {', '.join(METRICS)})")
        row = Row.model_construct(**{"id": place - 1, **record})
        answer = record["predicted_answer"]
        if not isinstance(answer, str):
            raise UserError(f"{path}: row {place}: field 'predicted_answer' is {answer!r}, not a text")
        empty += not answer.replace(".", "").strip()
        grouped.setdefault(row.task, []).append((row, METRICS[row.metric](row.targets, answer)))
    tasks = {task: _task_score(scored) for task, scored in grouped.items()}
    return RunSummary(name, sum(task.n for task in tasks.values()), empty, tasks, _note(path))


def to_json(runs: Sequence[RunSummary], scoring: str) -> dict[str, Any]:
    """The summary as the JSON of the design's contract."""
    oracle = _oracle(runs)
    return {
        "scoring": scoring,
        "runs": {
            run.name: {
                "rows": run.rows,
                "empty_answers": run.empty,
                "tasks": {name: {"domain": t.domain, "n": t.n, **t.scores} for name, t in run.tasks.items()},
                "domains": run.domains,
                "mean": run.mean,
                "normalized": run.normalized(oracle),
            }
            for run in runs
        },
    }


@dataclass(frozen=True)
class Table:
    """A table of scores: a label and one number (or None) per run in every row."""

    columns: list[str]
    rows: list[tuple[str, list[float | None]]]
    notes: list[str]


def to_table(runs: Sequence[RunSummary], by_task: bool) -> Table:
    """Rows as in the paper's table 1 (a domain and a metric each), or one per task and metric; means at the end."""
    cells: dict[tuple[str, str], list[float | None]] = {}
    for place, run in enumerate(runs):
        scores = {name: task.scores for name, task in run.tasks.items()} if by_task else run.domains
        for group, metrics in scores.items():
            for metric, score in metrics.items():
                cells.setdefault((group, metric), [None] * len(runs))[place] = score
    rows = [(f"{group} {metric}", scores) for (group, metric), scores in cells.items()]
    oracle = _oracle(runs)
    rows.append(("mean over tasks", [run.mean for run in runs]))
    rows.append(("normalized", [run.normalized(oracle) for run in runs]))
    return Table([run.name for run in runs], rows, _notes(runs))


def _task_score(scored: Sequence[tuple[Row, dict[str, float]]]) -> TaskScore:
    first = scored[0][0]
    sums: dict[str, float] = {}
    for _, scores in scored:
        for metric, score in scores.items():
            sums[metric] = sums.get(metric, 0.0) + score
    means = {metric: round(total / len(scored) * 100, 1) for metric, total in sums.items()}
    return TaskScore(first.domain, first.metric, len(scored), means)


def _oracle(runs: Sequence[RunSummary]) -> RunSummary | None:
    return next((run for run in runs if run.name == ORACLE), None)


def _note(path: Path) -> str:
    meta = path.with_name(f"{path.stem}.meta.json")
    return str(json.loads(meta.read_text(encoding="utf-8")).get("note", "")) if meta.exists() else ""


def _notes(runs: Sequence[RunSummary]) -> list[str]:
    notes = list(dict.fromkeys(run.note for run in runs if run.note))
    most = max(run.rows for run in runs)
    notes += [f"{run.name} has {run.rows} rows, others up to {most}." for run in runs if run.rows < most]
    notes += [f"{run.name}: {run.empty} answers are empty or dots only; they score 0." for run in runs if run.empty]
    return notes
