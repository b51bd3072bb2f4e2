"""A table of scores as text: for the terminal, Markdown, LaTeX and CSV. Names in tables are data (`escaping`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import rich.table
from rich.console import Console, Group, RenderableType
from rich.text import Text

from lora_retriever.escaping import for_csv, for_latex, for_markdown, for_rich, for_terminal, one_line


@dataclass(frozen=True)
class Cell:
    """A number, perhaps with an interval, and a mark that the table's notes explain.

    A `difference` always shows its sign, and its interval by the ends: a reader checks whether the interval holds 0.
    """

    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""
    difference: bool = False


@dataclass(frozen=True)
class Table:
    """A label and one cell (or None, or a text) per column in every row. The notes are printed under the table.

    Attributes:
        bounds: whether intervals are shown by their ends, `[1.2, 3.4]`, instead of half their width, `±1.1`.
        signed: whether numbers are differences and always show their sign.
        rules: indices of the rows before which a line is drawn.
        groups: names above columns, from the left, each with its number of columns; empty, or every column has a group.
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
        """The columns' names in one line, each after the name of its group."""
        if not self.groups:
            return self.columns
        over = [name for name, width in self.groups for _ in range(width)]
        return [f"{group} {column}" for group, column in zip(over, self.columns, strict=True)]


def terminal(table: Table) -> str:
    """Aligned columns, as wide as needed."""
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    drawn.add_column("")
    for head in _two_lines(table) if table.groups else map(for_rich, table.columns):
        drawn.add_column(head, justify="right")
    texts = [[for_rich(shown(cell, table)) for cell in cells] for _, cells in table.rows]
    labels = [for_rich(label) for label, _ in table.rows]
    for row, (label, cells) in enumerate(zip(labels, texts, strict=True)):
        if row in table.rules:
            drawn.add_section()
        drawn.add_row(label, *cells)
    # As wide as the content, not as the terminal: a squeezed table is unreadable, a long line can be scrolled.
    heads = list(map(for_rich, table.heads))
    widths = [max(text.cell_len for text in column) for column in zip(heads, *texts, strict=True)]
    width = max((label.cell_len for label in labels), default=0) + sum(width + 4 for width in widths) + 64
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().strip("\n").split("\n")]
    return "\n".join([*lines, *map(for_terminal, table.notes)]) + "\n"


def markdown(table: Table) -> str:
    """A Markdown table."""
    lines = [_bars(["", *map(for_markdown, table.heads)]), _bars(["---", *(["---:"] * len(table.columns))])]
    lines += [
        _bars([for_markdown(label), *(_markdown_cell(cell, table) for cell in cells)]) for label, cells in table.rows
    ]
    return "\n".join([*lines, *(f"\n{for_markdown(note)}" for note in table.notes)]) + "\n"


def latex(table: Table) -> str:
    """A LaTeX tabular for the package booktabs; intervals stand small beside their numbers."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        *_latex_groups(table),
        " & ".join(["", *map(for_latex, table.columns)]) + r" \\",
        r"\midrule",
    ]
    for row, (label, cells) in enumerate(table.rows):
        if row in table.rules:
            lines.append(r"\midrule")
        lines.append(" & ".join([for_latex(label), *(_latex_cell(cell, table) for cell in cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {one_line(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """CSV with unrounded numbers; a column with intervals is followed by its `low` and `high`. Notes are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    with_interval = [
        any(isinstance(cells[column], Cell) and cells[column].low is not None for _, cells in table.rows)  # type: ignore[union-attr]
        for column in range(len(table.columns))
    ]
    head = [
        [name, f"{name} low", f"{name} high"][: 3 if wide else 1]
        for name, wide in zip(table.heads, with_interval, strict=True)
    ]
    writer.writerow(["", *(for_csv(name) for names in head for name in names)])
    for label, cells in table.rows:
        written: list[object] = [label]
        for cell, wide in zip(cells, with_interval, strict=True):
            numbers = (cell.value, cell.low, cell.high) if isinstance(cell, Cell) else (cell, None, None)
            written += ["" if number is None else number for number in numbers[: 3 if wide else 1]]
        writer.writerow(map(for_csv, written))
    return out.getvalue()


def shown(cell: Cell | str | None, table: Table) -> str:
    """A cell as text, not yet escaped: one decimal, a dash where there is nothing."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return _number(cell, table) + _interval(cell, table) + cell.mark


def _markdown_cell(cell: Cell | str | None, table: Table) -> str:
    """A cell for Markdown. Only texts are escaped, so the brackets of a number's interval stay readable."""
    return shown(cell, table).replace("|", r"\|") if isinstance(cell, Cell) else for_markdown(shown(cell, table))


def _latex_cell(cell: Cell | str | None, table: Table) -> str:
    if not isinstance(cell, Cell):
        return for_latex(shown(cell, table))
    interval = _interval(cell, table).strip().replace("±", r"$\pm$")
    small = rf" {{\scriptsize {interval}}}" if interval else ""
    sign = "$-$" if _number(cell, table).startswith("-") else ""
    return (
        sign
        + _number(cell, table).removeprefix("-")
        + small
        + (rf"\textsuperscript{{{for_latex(cell.mark.strip())}}}" if cell.mark else "")
    )


def _two_lines(table: Table) -> list[RenderableType]:
    """Heads of two lines: the name of a group above its first column, and the name of the column."""
    over = [text for name, width in table.groups for text in [name, *[""] * (width - 1)]]
    return [
        Group(Text(one_line(name), justify="left"), Text(one_line(column), justify="right"))
        for name, column in zip(over, table.columns, strict=True)
    ]


def _latex_groups(table: Table) -> list[str]:
    if not table.groups:
        return []
    names, rules, start = [], [], 2  # the first column holds the labels
    for name, width in table.groups:
        names.append(rf" & \multicolumn{{{width}}}{{c}}{{{for_latex(name)}}}")
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
    return "| " + " | ".join(cells) + " |"


FORMATS: dict[str, Callable[[Table], str]] = {
    "table": terminal,
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
}
