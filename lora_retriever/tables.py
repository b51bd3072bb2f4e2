"""A table of scores as text: for the terminal, Markdown, LaTeX and CSV. Knows nothing of where the scores come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import rich.table
from rich.console import Console, Group, RenderableType
from rich.text import Text

_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "&_%#$"},
        "~": r"$\sim$",
        "<": "$<$",
        "≠": r"$\neq$",
        "≈": r"$\approx$",
        "†": r"$\dagger$",
    }
)


@dataclass(frozen=True)
class Cell:
    """A number with its interval, if it has one, and a mark that the table's notes explain.

    A `difference` always shows its sign, and its interval by its ends: whether that holds 0 is what matters.
    """

    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""
    difference: bool = False


@dataclass(frozen=True)
class Table:
    """A label and one cell (or None, or a text) per column in every row. A note stands under the table.

    Attributes:
        bounds: whether intervals are shown by their ends, `[1.2, 3.4]`, instead of half their width, `±1.1`.
        signed: whether numbers are differences and always show their sign.
        rules: rows before which a line is drawn.
        groups: names over so many columns each, from the left; none, or such that every column stands under one.
    """

    columns: list[str]
    rows: list[tuple[str, list[Cell | str | None]]]
    notes: list[str] = field(default_factory=list)
    bounds: bool = False
    signed: bool = False
    rules: frozenset[int] = frozenset()
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def heads(self) -> list[str]:
        """The columns' names in one line, that of their group before each."""
        if not self.groups:
            return self.columns
        over = [name for name, width in self.groups for _ in range(width)]
        return [f"{group} {column}" for group, column in zip(over, self.columns, strict=True)]


def terminal(table: Table) -> str:
    """Aligned columns, as wide as needed."""
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    drawn.add_column("")
    for head in _two_lines(table) if table.groups else table.columns:
        drawn.add_column(head, justify="right")
    texts = [[shown(cell, table) for cell in cells] for _, cells in table.rows]
    for place, ((label, _), cells) in enumerate(zip(table.rows, texts, strict=True)):
        if place in table.rules:
            drawn.add_section()
        drawn.add_row(rich.markup.escape(label), *map(rich.markup.escape, cells))
    # Not the terminal's width: a squeezed table is unreadable, a long line can be scrolled.
    widths = [max(map(len, column)) for column in zip(table.heads, *texts, strict=True)]
    console = Console(file=io.StringIO(), width=64 + sum(width + 4 for width in widths), color_system=None)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().strip("\n").splitlines()]
    return "\n".join([*lines, *table.notes]) + "\n"


def markdown(table: Table) -> str:
    """A Markdown table."""
    lines = [_bars(["", *table.heads]), _bars(["---", *(["---:"] * len(table.columns))])]
    lines += [_bars([label, *(shown(cell, table) for cell in cells)]) for label, cells in table.rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: Table) -> str:
    """A LaTeX tabular for the package booktabs; intervals stand small beside their numbers."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        *_latex_groups(table),
        " & ".join(["", *map(escaped, table.columns)]) + r" \\",
        r"\midrule",
    ]
    for place, (label, cells) in enumerate(table.rows):
        if place in table.rules:
            lines.append(r"\midrule")
        lines.append(" & ".join([escaped(label), *(_latex_cell(cell, table) for cell in cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """CSV with unrounded numbers; a column with intervals has two more, its `low` and `high`. Notes are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    with_interval = [
        any(isinstance(cells[place], Cell) and cells[place].low is not None for _, cells in table.rows)  # type: ignore[union-attr]
        for place in range(len(table.columns))
    ]
    head = [
        [name, f"{name} low", f"{name} high"][: 3 if wide else 1]
        for name, wide in zip(table.heads, with_interval, strict=True)
    ]
    writer.writerow(["", *(name for names in head for name in names)])
    for label, cells in table.rows:
        written: list[object] = [label]
        for cell, wide in zip(cells, with_interval, strict=True):
            numbers = (cell.value, cell.low, cell.high) if isinstance(cell, Cell) else (cell, None, None)
            written += ["" if number is None else number for number in numbers[: 3 if wide else 1]]
        writer.writerow(written)
    return out.getvalue()


def shown(cell: Cell | str | None, table: Table) -> str:
    """A cell as text: one decimal, a dash where there is nothing."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return _number(cell, table) + _interval(cell, table) + cell.mark


def escaped(text: str) -> str:
    """Text with LaTeX's special characters escaped, and signs that its fonts lack as formulas."""
    return text.translate(_LATEX)


def _latex_cell(cell: Cell | str | None, table: Table) -> str:
    if not isinstance(cell, Cell):
        return escaped(shown(cell, table))
    interval = _interval(cell, table).strip().replace("±", r"$\pm$")
    small = rf" {{\scriptsize {interval}}}" if interval else ""
    sign = "$-$" if _number(cell, table).startswith("-") else ""
    return (
        sign
        + _number(cell, table).removeprefix("-")
        + small
        + (rf"\textsuperscript{{{escaped(cell.mark.strip())}}}" if cell.mark else "")
    )


def _two_lines(table: Table) -> list[RenderableType]:
    """Heads whose first line begins a group with its name, and whose second is the column's."""
    over = [text for name, width in table.groups for text in [name, *[""] * (width - 1)]]
    return [
        Group(Text(name, justify="left"), Text(column, justify="right"))
        for name, column in zip(over, table.columns, strict=True)
    ]


def _latex_groups(table: Table) -> list[str]:
    if not table.groups:
        return []
    names, rules, start = [], [], 2  # the first column holds the labels
    for name, width in table.groups:
        names.append(rf" & \multicolumn{{{width}}}{{c}}{{{escaped(name)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return ["".join(names) + r" \\", "".join(rules)]


def _number(cell: Cell, table: Table) -> str:
    return f"{cell.value:+.1f}" if table.signed or cell.difference else f"{cell.value:.1f}"


def _interval(cell: Cell, table: Table) -> str:
    if cell.low is None or cell.high is None:
        return ""
    if table.bounds or cell.difference:
        signed = table.signed or cell.difference
        return f" [{cell.low:+.1f}, {cell.high:+.1f}]" if signed else f" [{cell.low:.1f}, {cell.high:.1f}]"
    return f" ±{(cell.high - cell.low) / 2:.1f}"


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


FORMATS: dict[str, Callable[[Table], str]] = {
    "table": terminal,
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
}
