"""The runs of one results folder or of several (`folders`) in one table, and compared across folders.

With several folders, a run is named FOLDER:RUN, except in its folder's own group of columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from lora_retriever.analysis.comparison import pairs_with
from lora_retriever.analysis.folders import Folder
from lora_retriever.analysis.scores import MEAN, ScoredRun
from lora_retriever.analysis.summary import RunSummary, labels_of, summarize, to_json, to_table
from lora_retriever.errors import UserError
from lora_retriever.metrics import Scoring
from lora_retriever.tables import Cell, Table

Summaries = Mapping[str, Sequence[RunSummary]]
"""The scored runs of each folder, by the folder's name."""
Names = Mapping[str, Sequence[str]]
"""The names of the chosen runs of each folder, by the folder's name, in the order in which tables show them."""


def summarize_folders(folders: Sequence[Folder], scoring: Scoring) -> dict[str, list[RunSummary]]:
    """Score the runs of every folder. Scores are normalized by the oracle of the same folder.

    Raises:
        UserError: a row cannot be scored; of several folders, the message names the folder.
    """
    found = {}
    for folder in folders:
        with in_folder(folder, folders):
            found[folder.name] = summarize(folder.runs, scoring)
    return found


def chosen_names(folders: Sequence[Folder], patterns: Sequence[str] | None) -> dict[str, list[str]]:
    """The names of the runs that `--runs` chooses, in the folders' order. Folders without such a run are left out.

    Args:
        patterns: names of runs, or patterns of a shell (`*`, `?`, `[…]`); of several folders also FOLDER:RUN. None: all
            runs.

    Raises:
        UserError: no run has a name, or matches a pattern.
    """
    full = {
        (folder.name, run.name): {run.name, f"{folder.name}:{run.name}"} if len(folders) > 1 else {run.name}
        for folder in folders
        for run in folder.runs
    }
    wanted = set()
    for pattern in patterns or ["*"]:
        found = {
            key for key, names in full.items() if pattern in names or any(fnmatchcase(name, pattern) for name in names)
        }
        if not found:
            known = dict.fromkeys(run for _, run in full)
            raise UserError(f"--runs {pattern}: no such run (there are: {', '.join(known)})")
        wanted |= found
    names = {folder.name: [run.name for run in folder.runs if (folder.name, run.name) in wanted] for folder in folders}
    return {folder: of_folder for folder, of_folder in names.items() if of_folder}


def by_falling_mean(names: Names, summaries: Summaries) -> dict[str, list[str]]:
    """The names, in every folder by falling mean over tasks. Equal means keep their order."""
    found = {}
    for folder, of_folder in names.items():
        means = {run.name: run.values[MEAN] for run in summaries[folder]}
        found[folder] = sorted(of_folder, key=lambda name: -means[name])
    return found


def only(summaries: Summaries, names: Names) -> dict[str, list[RunSummary]]:
    """The runs of these names, in the order of the names."""
    found = {}
    for folder, of_folder in names.items():
        known = {run.name: run for run in summaries[folder]}
        found[folder] = [known[name] for name in of_folder]
    return found


def all_runs(summaries: Summaries, several: bool | None = None) -> list[RunSummary]:
    """The runs of all folders.

    Args:
        several: whether each run is named FOLDER:RUN. None: only if there are several folders.
    """
    if several is False or (several is None and len(summaries) == 1):
        return [run for runs in summaries.values() for run in runs]
    return [
        replace(run, scored=replace(run.scored, run=replace(run.scored.run, name=f"{folder}:{run.name}")))
        for folder, runs in summaries.items()
        for run in runs
    ]


def summaries_table(
    summaries: Summaries, by_task: bool = False, intervals: bool = True, left_out: Sequence[str] = ()
) -> Table:
    """The table of every folder (`summary.to_table`). Several tables stand side by side, each as a group of columns."""
    tables = [to_table(runs, by_task, intervals) for runs in summaries.values()]
    if len(tables) == 1:
        return replace(tables[0], notes=[*left_out, *tables[0].notes])
    labels, means = labels_of(tables)
    rows: list[tuple[str, list[Cell | str | None]]] = []
    for label in labels:
        cells = [dict(table.rows).get(label, [None] * len(table.columns)) for table in tables]
        rows.append((label, [cell for of_folder in cells for cell in of_folder]))
    return Table(
        [column for table in tables for column in table.columns],
        rows,
        [*left_out, *common_notes({name: table.notes for name, table in zip(summaries, tables, strict=True)})],
        rules=frozenset({len(rows) - means}),
        groups=tuple((name, len(table.columns)) for name, table in zip(summaries, tables, strict=True)),
    )


def summaries_as_json(folders: Sequence[Folder], summaries: Summaries, scoring: Scoring) -> dict[str, Any]:
    """The summary of a folder as JSON (`summary.to_json`); of several, the summary of each under the folder's name."""
    found = {folder.name: to_json(summaries[folder.name], scoring, folder.notes) for folder in folders}
    return {"scoring": scoring.name, "folders": found} if len(found) > 1 else found[folders[0].name]


def notes_of(folders: Sequence[Folder]) -> list[str]:
    """The notes of the folders."""
    return common_notes({folder.name: folder.notes for folder in folders})


def common_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """The notes of several folders: first the notes of single folders with the folder's name, then the shared notes."""
    folders: dict[str, list[str]] = {}
    for name, lines in notes.items():
        for note in dict.fromkeys(lines):
            folders.setdefault(note, []).append(name)
    shared = [note for note, names in folders.items() if len(names) == len(notes)]
    return [f"{', '.join(names)}: {note}" for note, names in folders.items() if note not in shared] + shared


@contextmanager
def in_folder(folder: Folder, folders: Sequence[Folder]) -> Iterator[None]:
    """Put the folder's path before the message of a `UserError`, where there are several folders."""
    try:
        yield
    except UserError as error:
        if len(folders) == 1:
            raise
        raise UserError(f"{folder.path}: {error}") from error


def pairs_of(summaries: Summaries, versus: str, chosen: Names | None = None) -> list[tuple[ScoredRun, ScoredRun]]:
    """The pairs of runs that `--versus` asks for.

    Args:
        versus: of one folder, a run: every other run is compared with this run. Of several folders, one of three.
            FOLDER:RUN: every other run of all folders is compared with this run. FOLDER: every run of the other folders
            is compared with the run of the same name in this folder. RUN: in every folder, every other run is compared
            with the folder's own run of this name.
        chosen: the runs that are compared, in this order. The runs with which these runs are compared need not be
            chosen. None: all runs.

    Raises:
        UserError: there is no such folder or run, the name is a folder's and a run's, or there is no pair.
    """
    pairs = _pairs(summaries, versus)
    if chosen is None:
        return pairs
    several = len(summaries) > 1
    names = [f"{folder}:{name}" if several else name for folder, of_folder in chosen.items() for name in of_folder]
    wanted = [(run, other) for name in names for run, other in pairs if run.name == name]
    if not wanted:
        raise UserError(f"--versus {versus}: --runs leaves no run to compare with it")
    return wanted


def _pairs(summaries: Summaries, versus: str) -> list[tuple[ScoredRun, ScoredRun]]:
    runs = {run.name: run.scored for run in all_runs(summaries)}
    if len(summaries) == 1 or versus in runs:
        return pairs_with([*runs.values()], versus)
    names = {folder: [run.name for run in of_folder] for folder, of_folder in summaries.items()}
    everything = list(dict.fromkeys(name for of_folder in names.values() for name in of_folder))
    if versus in names and versus in everything:
        raise UserError(f"--versus {versus}: a folder and a run have this name; write FOLDER:RUN")
    if versus in names:
        wanted = [
            (f"{folder}:{name}", f"{versus}:{name}")
            for folder, of_folder in names.items()
            for name in of_folder
            if folder != versus and name in names[versus]
        ]
        reason = "no other folder has a run of the same name; write FOLDER:RUN"
    elif versus in everything:
        if lacking := [folder for folder, of_folder in names.items() if versus not in of_folder]:
            there = next(folder for folder in names if folder not in lacking)
            raise UserError(
                f"--versus {versus}: {', '.join(lacking)} has no run of this name; {there}:{versus} compares the runs "
                "of all folders with one run"
            )
        wanted = [
            (f"{folder}:{name}", f"{folder}:{versus}")
            for folder, of_folder in names.items()
            for name in of_folder
            if name != versus
        ]
        reason = f"every folder has this run alone; write the name of a folder ({', '.join(names)})"
    else:
        raise UserError(
            f"--versus {versus}: no such run; write a run ({', '.join(everything)}), a folder ({', '.join(names)}) or "
            "FOLDER:RUN"
        )
    if not wanted:
        raise UserError(f"--versus {versus}: there is nothing to compare: {reason}")
    return [(runs[name], runs[other]) for name, other in wanted]
