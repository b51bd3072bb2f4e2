"""Scores against a setting that a sweep varied, such as accuracy against k (the paper's figure 4a)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_retriever.analysis.runs import Run
from lora_retriever.analysis.scores import MEAN
from lora_retriever.analysis.summary import RunSummary


@dataclass(frozen=True)
class Point:
    """A run's mean over tasks at one value of the setting, and the mean's 95 % interval (None: none known)."""

    value: str
    run: str
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """Runs that differ in the swept setting alone; named by their method and their other settings."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Sweep:
    """A swept setting. The values of the setting are numbers if `numeric` is true, else names."""

    setting: str
    numeric: bool
    values: list[str]
    lines: list[Line]


def sweeps_of(runs: Sequence[RunSummary]) -> list[Sweep]:
    """Every setting for which some method has runs with two or more values.

    A run that no sweep made, such as plain `mixture`, has the value that its record states.
    """
    settings = dict.fromkeys(setting for run in runs for setting in run.scored.run.settings)
    sweeps = []
    for setting in settings:
        lines: dict[str, dict[str, Point]] = {}
        for run in runs:
            value = _value(run.scored.run, setting)
            if value is not None:
                low, high = run.intervals.get(MEAN, (None, None))
                point = Point(value, run.name, run.values[MEAN], low, high)
                lines.setdefault(_name_without(run.scored.run, setting), {}).setdefault(value, point)
        values = {value for points in lines.values() for value in points}
        numeric = all(map(_is_number, values))
        ordered = sorted(values, key=float) if numeric else sorted(values)
        found = [
            Line(name, [points[value] for value in ordered if value in points])
            for name, points in lines.items()
            if len(points) > 1
        ]
        if found:
            shown = [value for value in ordered if any(point.value == value for line in found for point in line.points)]
            sweeps.append(Sweep(setting, numeric, shown, found))
    return sweeps


def _value(run: Run, setting: str) -> str | None:
    if setting in run.settings:
        return run.settings[setting]
    recorded = run.meta.get("configuration", {}).get(setting)
    return None if recorded is None else str(recorded).removesuffix(".0")


def _name_without(run: Run, setting: str) -> str:
    others = [f"{name}={value}" for name, value in run.settings.items() if name != setting]
    return f"{run.method}@{','.join(others)}" if others else run.method


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
