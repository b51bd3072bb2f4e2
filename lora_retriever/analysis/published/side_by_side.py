"""The paper's figures beside the scores of several results folders: for every run, one column for each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_retriever.analysis.folders import Folder
from lora_retriever.analysis.published import Published
from lora_retriever.analysis.published.reproduction import (
    DERIVED,
    MARKS,
    MEANS,
    ReproducedFigure,
    Reproduction,
    explanations_of,
    notes_on,
    printed_quantities,
    reproduce,
    reproduction_as_json,
    reproduction_table,
)
from lora_retriever.analysis.scores import Quantity
from lora_retriever.analysis.side_by_side import Summaries, common_notes, in_folder
from lora_retriever.tables import Cell, Table


def reproduce_folders(folders: Sequence[Folder], summaries: Summaries, paper: Published) -> dict[str, Reproduction]:
    """The runs of every folder beside the paper's, by the folder's name.

    Raises:
        UserError: the paper has none of the runs of a folder. With several folders, the message names this folder.
    """
    found = {}
    for folder in folders:
        with in_folder(folder, folders):
            found[folder.name] = reproduce(summaries[folder.name], paper)
    return found


def reproductions_table(
    reproductions: Mapping[str, Reproduction],
    by_task: bool = False,
    intervals: bool = True,
    left_out: Sequence[str] = (),
) -> Table:
    """The paper's table 1, or tables 4 and 5 by task. With one folder, the table of `reproduction_table`.

    With several folders, each run has a column for the paper and a column for each folder. A folder's cell is the
    score, its interval, the difference from the paper's figure, and the mark of the verdict.
    """
    if len(reproductions) == 1:
        return reproduction_table(next(iter(reproductions.values())), by_task, intervals, left_out)
    level = "task" if by_task else "domain"
    paper = next(iter(reproductions.values())).paper
    by_run = _figures_by_run(reproductions)
    printed = printed_quantities(paper, level)
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            MEANS.get(quantity, f"{quantity.group} {quantity.score}"),
            [
                cell
                for of_run in by_run.values()
                for cell in _cells([figures.get(quantity) for figures in of_run.values()], intervals)
            ],
        )
        for quantity in [*printed, *MEANS]
    ]
    return Table(
        [column for of_run in by_run.values() for column in ("paper", *of_run)],
        rows,
        [*left_out, *_notes(reproductions, level, intervals)],
        rules=frozenset({len(printed)}),
        groups=tuple((name, 1 + len(of_run)) for name, of_run in by_run.items()),
    )


def means_table(
    reproductions: Mapping[str, Reproduction], intervals: bool = True, left_out: Sequence[str] = ()
) -> Table:
    """A row for each run: for each mean, the paper's figure and the cell of every folder (`reproductions_table`)."""
    rows: list[tuple[str, list[Cell | str | None]]] = [
        (
            name,
            [
                cell
                for mean in MEANS
                for cell in _cells([of_run.get(folder, {}).get(mean) for folder in reproductions], intervals)
            ],
        )
        for name, of_run in _figures_by_run(reproductions).items()
    ]
    return Table(
        ["paper", *reproductions] * len(MEANS),
        rows,
        [*left_out, *_notes(reproductions, "task", intervals)],
        groups=tuple((label, 1 + len(reproductions)) for label in MEANS.values()),
    )


def reproductions_as_json(folders: Sequence[Folder], reproductions: Mapping[str, Reproduction]) -> dict[str, Any]:
    """The reproduction of a folder as JSON; of several, the reproduction of each under the folder's name."""
    found = {folder.name: reproduction_as_json(reproductions[folder.name], folder.notes) for folder in folders}
    return {"scoring": "paper", "folders": found} if len(found) > 1 else found[folders[0].name]


def _figures_by_run(
    reproductions: Mapping[str, Reproduction],
) -> dict[str, dict[str, dict[Quantity, ReproducedFigure]]]:
    """The figures by run, in the paper's order, and by folder. A run that no folder has is left out."""
    found: dict[str, dict[str, dict[Quantity, ReproducedFigure]]] = {}
    for name in next(iter(reproductions.values())).paper.printed:
        for folder, reproduction in reproductions.items():
            for run in reproduction.runs:
                if run.name == name:
                    found.setdefault(name, {})[folder] = run.figures
    return found


def _notes(reproductions: Mapping[str, Reproduction], level: str, intervals: bool) -> list[str]:
    explanations = explanations_of(
        next(iter(reproductions.values())).paper,
        level,
        "After a score: the score minus the paper's figure, and a mark; neither where the score is of other tasks.",
        our="the folder's",
    )
    lines = {name: notes_on(of, level, intervals, explanations) for name, of in reproductions.items()}
    return common_notes(lines)


def _cells(figures: Sequence[ReproducedFigure | None], intervals: bool) -> list[Cell | None]:
    """The paper's figure, then the cell of every folder. A difference is shown only between figures of equal tasks."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return [None] * (1 + len(figures))
    paper = known[0].paper
    return [
        Cell(paper.value, mark=DERIVED if paper.derived else ""),
        *(_cell(figure, intervals, figure is not None and figure.paper == paper) for figure in figures),
    ]


def _cell(figure: ReproducedFigure | None, intervals: bool, same_tasks: bool) -> Cell | None:
    if figure is None or figure.ours is None:
        return None
    low, high = (figure.interval if intervals else None) or (None, None)
    mark = ""
    if same_tasks and figure.difference is not None and figure.verdict is not None:
        sign = "−" if figure.difference < 0 else "+"
        mark = f" {sign}{abs(figure.difference):.1f} {MARKS[figure.verdict]}"
    return Cell(figure.ours, low, high, mark)
