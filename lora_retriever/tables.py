"""A table of scores as text: for the terminal, Markdown, LaTeX and CSV. Knows nothing of where the scores come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import rich.table
from rich.console import Console

from lora_retriever.summary import Table


def terminal(table: Table) -> str:
    """Aligned columns, as wide as needed."""
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    drawn.add_column("")
    for name in table.columns:
        drawn.add_column(name, justify="right")
    for label, scores in table.rows:
        drawn.add_row(label, *map(cell, scores))
    # Not the terminal's width: a squeezed table is unreadable, a long line can be scrolled.
    console = Console(file=io.StringIO(), width=24 + 18 * (len(table.columns) + 1), color_system=None)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().strip("\n").splitlines()]
    return "\n".join([*lines, *table.notes]) + "\n"


def markdown(table: Table) -> str:
    """A Markdown table."""
    lines = ["| | " + " | ".join(table.columns) + " |", "| --- |" + " ---: |" * len(table.columns)]
    lines += [f"| {label} | " + " | ".join(map(cell, scores)) + " |" for label, scores in table.rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: Table) -> str:
    """A LaTeX tabular for the package booktabs."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", *map(_escaped, table.columns)]) + r" \\",
        r"\midrule",
        *(" & ".join([_escaped(label), *map(cell, scores)]) + r" \\" for label, scores in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """CSV with unrounded means; notes are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["", *table.columns])
    for label, scores in table.rows:
        writer.writerow([label, *("" if score is None else score for score in scores)])
    return out.getvalue()


def cell(score: float | None) -> str:
    """One decimal, or a dash where there is no score."""
    return "–" if score is None else f"{score:.1f}"


def _escaped(text: str) -> str:
    return text.replace("&", r"\&").replace("_", r"\_").replace("%", r"\%")


FORMATS: dict[str, Callable[[Table], str]] = {
    "table": terminal,
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
}
