"""The report's plots for a paper, by matplotlib: each function draws one plot, `save_plots` writes them as PNG and SVG.

Names of runs, tasks, adapters and domains are drawn as plain text (`label`): never as mathematics or LaTeX.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from numpy.typing import NDArray

from lora_retriever.escaping import one_line
from lora_retriever.report.content import ReportContent, RunContent
from lora_retriever.report.matrices import Label, Matrix
from lora_retriever.report.sweeps import Sweep

MARKERS = "os^Dv<>P"
LONGEST_LABEL = 60  # Maximum length of a label, in characters.
DPI = 200  # Maximum resolution of a PNG, in pixels per inch.
MAX_PIXELS = 10_000  # Maximum width and height of a PNG, in pixels; a larger plot gets a lower resolution.
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text, to be searched and set in the paper's own font
    "svg.hashsalt": "lora-retriever",  # the same content gives the same file
    "text.parse_math": False,  # "$" in a name is a dollar sign
    "text.usetex": False,
}


def save_plots(content: ReportContent, folder: Path) -> None:
    """Write every plot that the content has data for into `folder`, as PNG and as SVG.

    Characters that matplotlib's font lacks are drawn in other installed fonts. Characters that no installed font has
    are drawn as boxes; one line on standard error names them.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        fonts, missing = _fonts_for(content)
        matplotlib.rcParams["font.family"] = [*matplotlib.rcParams["font.family"], *fonts]
        if missing:
            print(f"lora-retriever: plots: {_missing_line(missing)}", file=sys.stderr)
        # the line above names these characters already
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        for name, figure in plots_of(content).items():
            dpi = resolution(figure)
            for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                figure.savefig(folder / f"{name}.{ending}", dpi=dpi, bbox_inches="tight", metadata=metadata)


def label(text: str) -> str:
    """A name as one short line of visible characters."""
    line = one_line(text)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"


def resolution(figure: Figure) -> float:
    """The resolution at which a figure is written, in pixels per inch."""
    return min(DPI, MAX_PIXELS / max(figure.get_size_inches()))


def plots_of(content: ReportContent) -> dict[str, Figure]:
    """The plots by the names of their files."""
    plots = {"means": means_plot(content.runs)}
    if content.retrieval:
        plots["retrieval"] = heat_map(content.retrieval[0], "share of rows retrieved first")
    if content.similarity:
        plots["similarity"] = heat_map(content.similarity, "cosine")
    plots |= {f"sweep-{sweep.setting}": sweep_plot(sweep) for sweep in content.sweeps}
    return plots


def means_plot(runs: Sequence[RunContent]) -> Figure:
    """Every run's mean over tasks, with the 95 % interval as a whisker."""
    figure = Figure(figsize=(5, 0.6 + 0.22 * len(runs)))
    axes = figure.subplots()
    positions = np.arange(len(runs))
    means = [run.mean for run in runs]
    whiskers = _whiskers(means, [run.interval or (None, None) for run in runs])
    axes.errorbar(means, positions, xerr=whiskers, fmt="o", markersize=4, capsize=2, linewidth=1)
    axes.set_yticks(positions, [label(run.name) for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("mean over tasks, 95 % interval")
    axes.grid(axis="x", linewidth=0.4)
    return figure


def heat_map(matrix: Matrix, unit: str) -> Figure:
    """A labelled matrix, with lines between domains and the names of the domains at the right."""
    figure = Figure(figsize=(2.2 + 0.15 * len(matrix.columns), 1.6 + 0.15 * len(matrix.rows)))
    axes = figure.subplots()
    image = axes.imshow(np.array(matrix.values), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(
        range(len(matrix.columns)), [label(column.name) for column in matrix.columns], rotation=90, fontsize=6
    )
    axes.set_yticks(range(len(matrix.rows)), [label(row.name) for row in matrix.rows], fontsize=6)
    axes.spines[:].set_visible(True)
    for start, _, _ in _domains(matrix.columns)[1:]:
        axes.axvline(start - 0.5, color="0.4", linewidth=0.6)
    for start, end, domain in _domains(matrix.rows):
        axes.axhline(start - 0.5, color="0.4", linewidth=0.6)
        axes.text(len(matrix.columns), (start + end - 1) / 2, label(domain), fontsize=6, va="center")
    figure.colorbar(image, ax=axes, location="bottom", label=unit, shrink=0.4, pad=0.22)
    return figure


def sweep_plot(sweep: Sweep) -> Figure:
    """The mean over tasks against a swept setting, a line per method, with 95 % intervals."""
    figure = Figure(figsize=(4.5, 3))
    axes = figure.subplots()
    positions = {value: position for position, value in enumerate(sweep.values)}
    for number, line in enumerate(sweep.lines):
        # Lines are drawn beside each other, so that their whiskers do not overlap.
        x = np.array([positions[point.value] for point in line.points]) + 0.06 * (number - (len(sweep.lines) - 1) / 2)
        means = [point.mean for point in line.points]
        whiskers = _whiskers(means, [(point.low, point.high) for point in line.points])
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(x, means, yerr=whiskers, marker=marker, markersize=4, capsize=2, label=str(number))
    axes.set_xticks(list(positions.values()), [label(value) for value in positions])
    axes.set_xlabel(label(sweep.setting))
    axes.set_ylabel("mean over tasks, 95 % interval")
    axes.grid(axis="y", linewidth=0.4)
    # matplotlib leaves a name that begins with "_" out of a legend, so the names come in afterwards. `best` is the
    # default; matplotlib warns that finding the place is slow only if the default was left.
    for text, line in zip(axes.legend(loc="best", fontsize=7, frameon=False).get_texts(), sweep.lines, strict=True):
        text.set_text(label(line.name))
    return figure


def _whiskers(means: Sequence[float], intervals: Sequence[tuple[float | None, float | None]]) -> NDArray[np.float64]:
    """How far each interval reaches below and above its mean, [2, means]; 0 for a mean without an interval."""
    bounds = np.array(intervals, dtype=float).T  # [2, means]; None becomes NaN
    return np.nan_to_num(np.abs(bounds - np.array(means)))


def _domains(labels: Sequence[Label]) -> list[tuple[int, int, str]]:
    """Each domain as the index of its first label, the index after its last label, and its name."""
    starts = [at for at, here in enumerate(labels) if at == 0 or labels[at - 1].domain != here.domain]
    return [(start, end, labels[start].domain) for start, end in zip(starts, [*starts[1:], len(labels)], strict=True)]


def _fonts_for(content: ReportContent) -> tuple[list[str], set[str]]:
    """Installed fonts for the characters that matplotlib's font lacks, and the characters that no font has."""
    missing = {character for text in _texts(content) for character in label(text)}
    missing -= _characters(findfont(FontProperties()))
    fonts: list[str] = []
    # Last Resort is matplotlib's own font of boxes.
    for font in sorted(fontManager.ttflist, key=lambda font: (font.weight != 400, font.style != "normal", font.name)):
        if not missing:
            break
        if not font.name.startswith("Last Resort") and (found := missing & _characters(font.fname)):
            fonts.append(font.name)
            missing -= found
    return fonts, missing


def _texts(content: ReportContent) -> set[str]:
    """All names that some plot shows."""
    texts = {run.name for run in content.runs}
    for matrix in (*content.retrieval[:1], *([content.similarity] if content.similarity else [])):
        for named in (*matrix.rows, *matrix.columns):
            texts |= {named.name, named.domain}
    for sweep in content.sweeps:
        texts |= {sweep.setting, *sweep.values, *(line.name for line in sweep.lines)}
    return texts


def _characters(font: str) -> set[str]:
    """The characters that a font file can draw; none if the file is not readable."""
    try:
        return {chr(code) for code in get_font(font).get_charmap()}
    except (OSError, RuntimeError):
        return set()


def _missing_line(missing: set[str]) -> str:
    shown = ", ".join(f"{character} (U+{ord(character):04X})" for character in sorted(missing)[:5])
    rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"no installed font has {shown}{rest}; boxes are drawn instead. Install a font with these characters"
