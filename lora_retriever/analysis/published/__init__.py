"""Figures that are printed in papers, as data under this project's names. `sources.yaml` says where each file is from.

`reproduction` sets our runs beside these figures.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

from lora_retriever.analysis.runs import ORACLE
from lora_retriever.analysis.scores import MEAN, NORMALIZED, Quantity
from lora_retriever.data.official import read_tasks
from lora_retriever.errors import UserError
from lora_retriever.metrics import main_score

FOLDER = Path(str(files("lora_retriever"))) / "analysis" / "published"
MEAN_EM = Quantity("mean", score="em")
"""The mean over the exact-match tasks, by which the paper's runs can be compared in one number."""


@dataclass(frozen=True)
class PublishedTask:
    """A task of the official benchmark. `printed` are the task's names in the paper's tables."""

    name: str
    domain: str
    metric: str
    rows: int
    printed: tuple[str, ...]

    @property
    def main_score(self) -> str:
        """The score that counts in means over tasks."""
        score = main_score(self.metric)
        assert score is not None, "the benchmark's tasks have the project's own metrics"
        return score


@dataclass(frozen=True)
class PublishedFigure:
    """A figure of the paper. `derived`: the figure is not printed, but computed from printed figures."""

    value: float
    derived: bool = False


@dataclass(frozen=True)
class Published:
    """The paper's figures of one model, by run: the domains of table 1 and the tasks of tables 4 and 5."""

    model: str
    tasks: dict[str, PublishedTask]
    printed: dict[str, dict[Quantity, float]]

    def figures(self, run: str, tasks: Collection[str]) -> dict[Quantity, PublishedFigure]:
        """The figures of a run on some of the paper's tasks.

        A domain of which only some tasks are given gets the mean of these tasks. The paper prints no mean over tasks
        and no normalized score; both are derived from tables 4 and 5.
        """
        printed = self.printed[run]
        here = [task for task in self.tasks.values() if task.name in tasks]
        found = {}
        for quantity, value in printed.items():
            if quantity.level == "task":
                if quantity.group in tasks:
                    found[quantity] = PublishedFigure(value)
                continue
            members = [task for task in self.tasks.values() if task.domain == quantity.group]
            if all(task in here for task in members):
                found[quantity] = PublishedFigure(value)
            elif there := [task for task in members if task in here]:
                found[quantity] = _mean([printed[Quantity("task", task.name, quantity.score)] for task in there])
        main = {task: Quantity("task", task.name, task.main_score) for task in here}
        if exact := [printed[quantity] for task, quantity in main.items() if task.metric == "em"]:
            found[MEAN_EM] = _mean(exact)
        if main:
            found[MEAN] = _mean([printed[quantity] for quantity in main.values()])
        if main and run != ORACLE:
            best = self.printed[ORACLE]
            found[NORMALIZED] = _mean([100 * printed[quantity] / best[quantity] for quantity in main.values()])
        return found


@dataclass(frozen=True)
class NormalizedScores:
    """The normalized scores of a method in LoRAuter: in-domain (`iid`) and with own adapters masked (`ood`)."""

    method: str
    iid: float
    ood: float


def published_table(model: str) -> Published:
    """The paper's figures for a model, `llama2-7b` or `llama2-13b`.

    Raises:
        UserError: the paper has no such model.
    """
    tasks = {
        row["task"]: PublishedTask(
            row["task"], row["domain"], row["metric"], int(row["rows"]), tuple(row["printed"].split("|"))
        )
        for row in read_tasks()
    }
    known = list(dict.fromkeys(row["model"] for row in _read("table1.csv")))
    if model not in known:
        raise UserError(f"the paper has no figures for {model!r} (it has: {', '.join(known)})")
    printed: dict[str, dict[Quantity, float]] = {}
    for file, level in (("table1.csv", "domain"), ("tables4_5.csv", "task")):
        for row in _read(file):
            if row.pop("model") == model:
                quantity = Quantity(level, row.pop(level), row.pop("score"))  # type: ignore[arg-type]
                for run, value in row.items():
                    printed.setdefault(run, {})[quantity] = float(value)
    return Published(model, tasks, printed)


def retrieval_figures() -> dict[str, tuple[float, ...]]:
    """The paper's table 2: by encoder, percent of inputs whose own adapter is among the best 1, 3, 5 and 8."""
    return {row["encoder"]: tuple(float(row[f"top{k}"]) for k in (1, 3, 5, 8)) for row in _read("table2.csv")}


def normalized_scores(model: str) -> list[NormalizedScores]:
    """LoRAuter's normalized scores on a model. There are such scores for `llama2-7b` only."""
    return [
        NormalizedScores(row["method"], float(row["iid"]), float(row["ood"]))
        for row in _read("normalized.csv")
        if row["model"] == model
    ]


def source(file: str) -> str:
    """Where the figures of a file are printed."""
    return str(yaml.safe_load((FOLDER / "sources.yaml").read_text(encoding="utf-8"))[file]["where"])


def _read(file: str) -> list[dict[str, str]]:
    with (FOLDER / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _mean(values: list[float]) -> PublishedFigure:
    return PublishedFigure(float(np.mean(values)), derived=True)
