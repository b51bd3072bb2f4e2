"""Names stay text in every output language: a reader of each language reads the names back."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nasty_names import NASTY_NAMES
from rich.console import Console

from lora_retriever.escaping import (
    as_json,
    for_csv,
    for_latex,
    for_markdown,
    for_rich,
    for_shell,
    for_terminal,
    one_line,
    visible,
)
from lora_retriever.tables import FORMATS, Cell, Table

DIRECTIONS = ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "PDI", "FSI")
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates, too


def everywhere(name: str) -> Table:
    """A table that has a name in every part that can hold text."""
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (name, [Cell(-1.25, -2, 3), name]),
        (f"{name} em", [None, Cell(2, mark=" †")]),
    ]
    return Table(
        [name, f"{name} paper"], rows, notes=[name, f"{name}: a note"], rules=frozenset({1}), groups=((name, 2),)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY_NAMES)
@pytest.mark.parametrize("written", [for_terminal, one_line, for_latex, for_markdown, for_csv])
def test_nothing_that_is_written_acts_on_a_terminal_or_cannot_be_encoded(
    written: Callable[[str], str], name: str
) -> None:
    text = written(name)
    text.encode("utf-8")
    allowed = "\n\t" if written in (for_terminal, for_csv) else ""
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed]
    assert not [
        c
        for c in text
        if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "PDI", "FSI")
    ]


@pytest.mark.slow
@given(ANY_TEXT)
def test_no_text_acts_on_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert shown == text or "\\" in shown


def test_what_acts_is_shown_as_its_escape_and_what_does_not_stays() -> None:
    assert visible("\x1b[31m \u202e \ud83d") == r"\x1b[31m \u202e \ud83d"
    assert visible("café 费用 👩\u200d🔬 می\u200cخواهم ½ \u00a0x") == "café 费用 👩\u200d🔬 می\u200cخواهم ½ \u00a0x"
    assert one_line("a\r\n\n\tb\u2028c") == "a b c"
    assert for_terminal("a\r\nb\x1b") == "a\nb\\x1b"


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_name_breaks_no_line_of_any_table(name: str) -> None:
    table, plain = everywhere(name), everywhere("plain")
    for format in ("table", "markdown", "latex"):
        lines = FORMATS[format](table).split("\n")
        # On the terminal, a note keeps its own line ends; nothing else adds a line.
        extra = 2 * for_terminal(name).count("\n") if format == "table" else 0
        assert len(lines) == len(FORMATS[format](plain).split("\n")) + extra, format


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY_NAMES)
def test_the_terminal_shows_every_name_whole(name: str) -> None:
    text = FORMATS["table"](everywhere(name))
    assert text.count(one_line(name).strip()) >= 5
    label = next(line for line in text.split("\n") if "±" in line)
    assert label.strip().startswith(one_line(name).strip())


def test_columns_of_wide_letters_stand_under_each_other() -> None:
    from rich.cells import cell_len

    table = Table(["a"], [("费用费用", [Cell(1)]), ("plain", [Cell(10)])])
    lines = [line for line in FORMATS["table"](table).split("\n") if "." in line]
    assert len({cell_len(line) for line in lines}) == 1


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_rich_shows_a_name_as_it_is(name: str) -> None:
    console = Console(file=io.StringIO(), width=400)
    console.print(for_rich(name))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rstrip() == one_line(name).rstrip()


class Cells(HTMLParser):
    """The texts of the table cells and paragraphs of a page, and the tags that are there."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th", "p"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_markdown_shows_every_name_as_text(name: str) -> None:
    page = Cells()
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page.feed(markdown.render(FORMATS["markdown"](everywhere(name))))
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    shown = one_line(name).strip()
    assert [" ".join(text.split()) for text in page.texts] == [
        " ".join(text.split())
        for text in (
            *("", f"{shown} {shown}", f"{shown} {shown} paper"),
            *(shown, "-1.2 ±2.5", shown),
            *(f"{shown} em", "–", "2.0 †"),
            *(shown, one_line(f"{name}: a note")),
        )
    ]


def test_markdown_leaves_plain_names_alone() -> None:
    for name in ("best_selection_ood", "mixture@k=3,scorer=cosine", "R&D", "a ~ b", "x-y.z (1)", "-1.5", "20 %"):
        assert for_markdown(name) == name


LATEX = {
    **{"\\" + character: character for character in "&_%#${}"},
    "\\textbackslash{}": "\\",
    "\\textasciicircum{}": "^",
    "\\textasciigrave{}": "`",
    "\\ldots{}": "…",
    "{[}": "[",
    "{]}": "]",
    "{*}": "*",
    "{}": "",
    "$\\sim$": "~",
    "$<$": "<",
    "$>$": ">",
    "$|$": "|",
    "$-$": "−",
    "$\\pm$": "±",
    "$\\times$": "×",
    "$\\cdot$": "·",
    "$\\neq$": "≠",
    "$\\approx$": "≈",
    "$\\leq$": "≤",
    "$\\geq$": "≥",
    "$\\infty$": "∞",
    "$\\surd$": "√",
    "$\\rightarrow$": "→",
    "$\\leftarrow$": "←",
    "$\\dagger$": "†",
    "$\\ddagger$": "‡",
}


def set_by_latex(source: str) -> str:
    """The text that LaTeX sets; fails on any character that LaTeX would not set as itself."""
    text, known = "", sorted(LATEX, key=len, reverse=True)
    while source:
        for command in known:
            if source.startswith(command):
                text, source = text + LATEX[command], source[len(command) :]
                break
        else:
            assert source[0] not in "\\{}$&#^_%~`<>|[]*", source
            assert source[:2] not in ("--", "''", ",,"), source
            text, source = text + source[0], source[1:]
    return text


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_latex_sets_a_name_as_text(name: str) -> None:
    assert set_by_latex(for_latex(name)) == one_line(name)


@pytest.mark.slow
@given(ANY_TEXT)
def test_latex_sets_any_text_as_text(text: str) -> None:
    assert set_by_latex(for_latex(text)) == one_line(text)


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_latex_table_has_its_cells_whatever_the_names(name: str) -> None:
    rows = [line for line in FORMATS["latex"](everywhere(name)).split("\n") if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 2, 2, 2]  # the group spans two columns
    notes = FORMATS["latex"](everywhere(name)).split(r"\end{tabular}")[1].strip("\n").split("\n")
    assert len(notes) == 2 and all(note.startswith("% ") for note in notes)


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_no_cell_of_csv_is_a_formula(name: str) -> None:
    parsed = list(csv.reader(io.StringIO(FORMATS["csv"](everywhere(name)), newline="")))
    assert [len(row) for row in parsed] == [5, 5, 5]
    assert parsed[1][1:4] == ["-1.25", "-2", "3"]  # numbers stay numbers
    for cell in (parsed[1][0], parsed[1][4], parsed[0][1]):
        assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
        assert cell.removeprefix("'").startswith(visible(name, line_ends=True))


@pytest.mark.parametrize("text", ["-1.5", "+3", "1e-5", "-.5", "12"])
def test_numbers_as_texts_stay_numbers_in_csv(text: str) -> None:
    assert for_csv(text) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in NASTY_NAMES if "\x00" not in name), "no UTF-8 \udcff"])
def test_a_shell_takes_a_name_as_one_word(name: str) -> None:
    word = for_shell(name)
    assert visible(word) == word
    done = subprocess.run(["bash", "-c", f"printf %s:%s {word} end"], capture_output=True, check=True)
    errors = "surrogateescape" if "\udcff" in name else "surrogatepass"
    assert done.stdout == f"{name}:end".encode("utf-8", errors)


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY_NAMES)
def test_json_holds_the_name_itself(name: str) -> None:
    text = as_json({name: [name, 1.5]})
    assert json.loads(text) == {name: [name, 1.5]}
    assert visible(text, line_ends=True) == text
    text.encode("utf-8")
    assert "费用" in as_json("费用")


SCRIPT = """
from lora_retriever.escaping import replace_unwritable
from lora_retriever.tables import Cell, Table, terminal
from rich.console import Console
import sys
replace_unwritable()
print(terminal(Table(["café"], [("费用 \\u0142 ½", [Cell(1, 0, 2)])], ["− …"])), end="")
print("– \\ud83d", file=sys.stderr)
Console(stderr=True).print("─ é ń")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "lines", "errors"),
    [
        ("ascii", ["cafe", "---", "?? ? ? 1.0 +-1.0", "- ..."], ["- ?", "- e n"]),
        ("latin-1", ["café", "---", "?? ? ½ 1.0 +-1.0", "- ..."], ["- ?", "- é n"]),
        ("utf-8", ["café", "───", "费用 ł ½ 1.0 ±1.0", "− …"], ["– ?", "─ é ń"]),
    ],
)
def test_output_in_any_encoding_is_written(encoding: str, lines: list[str], errors: list[str]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    shown = [" ".join(line.split()) for line in done.stdout.decode(encoding).split("\n") if line.strip()]
    assert [line if set(line) - {"-", "─"} else line[:3] for line in shown] == lines
    assert done.stderr.decode(encoding).split("\n")[:2] == errors
