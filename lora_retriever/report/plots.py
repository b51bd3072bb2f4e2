"""The report's plots for a paper, by matplotlib: each function draws one, `save_plots` writes them as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lora_retriever.metrics.base import Array
from lora_retriever.report.content import Content, RunContent
from lora_retriever.report.matrices import Label, Matrix
from lora_retriever.report.sweeps import Sweep

MARKERS = "os^Dv<>P"
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text, to be searched and set in the paper's own font
    "svg.hashsalt": "lora-retriever",  # the same content gives the same file
}


def save_plots(content: Content, folder: Path) -> None:
    """Write every plot there is something for into `folder`, as PNG and as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        for name, figure in plots_of(content).items():
            for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                figure.savefig(folder / f"{name}.{ending}", dpi=200, bbox_inches="tight", metadata=metadata)


def plots_of(content: Content) -> dict[str, Figure]:
    """The plots by the names of their files."""
    plots = {"means": means_plot(content.runs)}
    if content.retrieval:
        plots["retrieval"] = heat_map(content.retrieval[0], "share of rows retrieved first")
    if content.similarity:
        plots["similarity"] = heat_map(content.similarity, "cosine")
    plots |= {f"sweep-{sweep.setting}": sweep_plot(sweep) for sweep in content.sweeps}
    return plots


def means_plot(runs: Sequence[RunContent]) -> Figure:
    """Every run's mean over tasks, with its 95 % interval as a whisker."""
    figure = Figure(figsize=(5, 0.6 + 0.22 * len(runs)))
    axes = figure.subplots()
    places = np.arange(len(runs))
    means = [run.mean for run in runs]
    whiskers = _whiskers(means, [run.interval or (None, None) for run in runs])
    axes.errorbar(means, places, xerr=whiskers, fmt="o", markersize=4, capsize=2, linewidth=1)
    axes.set_yticks(places, [run.name for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("mean over tasks, 95 % interval")
    axes.grid(axis="x", linewidth=0.4)
    return figure


def heat_map(matrix: Matrix, unit: str) -> Figure:
    """A labelled matrix, with lines between domains and the domains' names at the right."""
    figure = Figure(figsize=(2.2 + 0.15 * len(matrix.columns), 1.6 + 0.15 * len(matrix.rows)))
    axes = figure.subplots()
    image = axes.imshow(np.array(matrix.values), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(range(len(matrix.columns)), [label.name for label in matrix.columns], rotation=90, fontsize=6)
    axes.set_yticks(range(len(matrix.rows)), [label.name for label in matrix.rows], fontsize=6)
    axes.spines[:].set_visible(True)
    for start, _, _ in _domains(matrix.columns)[1:]:
        axes.axvline(start - 0.5, color="0.4", linewidth=0.6)
    for start, end, domain in _domains(matrix.rows):
        axes.axhline(start - 0.5, color="0.4", linewidth=0.6)
        axes.text(len(matrix.columns), (start + end - 1) / 2, domain, fontsize=6, va="center")
    figure.colorbar(image, ax=axes, location="bottom", label=unit, shrink=0.4, pad=0.22)
    return figure


def sweep_plot(sweep: Sweep) -> Figure:
    """The mean over tasks against a swept setting, a line per method, with 95 % intervals."""
    figure = Figure(figsize=(4.5, 3))
    axes = figure.subplots()
    places = {value: place for place, value in enumerate(sweep.values)}
    for number, line in enumerate(sweep.lines):
        # Lines stand beside each other, so that whiskers can be told apart.
        x = np.array([places[point.value] for point in line.points]) + 0.06 * (number - (len(sweep.lines) - 1) / 2)
        means = [point.mean for point in line.points]
        whiskers = _whiskers(means, [(point.low, point.high) for point in line.points])
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(x, means, yerr=whiskers, marker=marker, markersize=4, capsize=2, label=line.name)
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlabel(sweep.setting)
    axes.set_ylabel("mean over tasks, 95 % interval")
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _whiskers(means: Sequence[float], intervals: Sequence[tuple[float | None, float | None]]) -> Array:
    """How far each interval reaches below and above its mean, [2, means]; a mean without one has none to draw."""
    bounds = np.array(intervals, dtype=float).T  # [2, means]; None becomes NaN
    return np.nan_to_num(np.abs(bounds - np.array(means)))


def _domains(labels: Sequence[Label]) -> list[tuple[int, int, str]]:
    """Where each domain's labels begin and end."""
    starts = [place for place, label in enumerate(labels) if place == 0 or labels[place - 1].domain != label.domain]
    return [(start, end, labels[start].domain) for start, end in zip(starts, [*starts[1:], len(labels)], strict=True)]
