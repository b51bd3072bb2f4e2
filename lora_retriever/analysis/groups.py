"""Groups of rows: the rows of results folders split by the values of a further field, side by side in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from lora_retriever.analysis.comparison import (
    Comparison,
    compare_pairs,
    comparison_table,
    comparisons_as_json,
    number_of_differences,
)
from lora_retriever.analysis.folders import Folder
from lora_retriever.analysis.runs import AnsweredRow, id_ranges
from lora_retriever.analysis.scores import ScoredRun
from lora_retriever.analysis.side_by_side import Names, Summaries, all_runs, common_notes, summarize_folders
from lora_retriever.analysis.summary import RunSummary, beside
from lora_retriever.data.further import MAX_VALUES, value_text
from lora_retriever.data.rows import Row, shortened
from lora_retriever.errors import UserError
from lora_retriever.escaping import quoted
from lora_retriever.metrics import Scoring
from lora_retriever.tables import Table

Pairs = Sequence[tuple[ScoredRun, ScoredRun]]


@dataclass(frozen=True)
class Groups:
    """Results folders, split by the values of a further field.

    Attributes:
        by_value: for each value the folders with the rows of this value alone. Every run has rows of every value.
        notes: the number of rows of each value, and the rows and runs that are left out.
    """

    field: str
    by_value: dict[str, list[Folder]]
    notes: list[str]

    @property
    def folders(self) -> list[Folder]:
        """The folders, with the rows of the first value."""
        return next(iter(self.by_value.values()))

    def summaries(self, scoring: Scoring) -> dict[str, Summaries]:
        """The scored runs of each value. Scores are normalized by the oracle on the rows of the same value.

        Raises:
            UserError: a row cannot be scored.
        """
        return {value: summarize_folders(folders, scoring) for value, folders in self.by_value.items()}

    def kept_names(self, names: Names) -> dict[str, list[str]]:
        """The names without the runs that were left out, by the folder's name.

        Raises:
            UserError: there is no such run.
        """
        runs = {folder.name: {run.name for run in folder.runs} for folder in self.folders}
        found = {folder: [name for name in of if name in runs.get(folder, ())] for folder, of in names.items()}
        if not any(found.values()):
            raise UserError(f"--by {self.field}: the chosen runs do not have rows of all values")
        return {folder: of_folder for folder, of_folder in found.items() if of_folder}


def split(folders: Sequence[Folder], field: str) -> Groups:
    """Split the rows of results folders of one benchmark by a further field.

    A row that lacks the field in one run has the field's value of another run. Rows without the field, and runs that
    have no row of one of the values, are left out.

    Raises:
        UserError: no row has the field, a row has two values, there are more than `MAX_VALUES` values, or no run is
            left.
    """
    values = _values([row for folder in folders for run in folder.runs for row in run.rows.values()], field)
    ids = {value: {id for id, its in values.items() if its == value} for value in dict.fromkeys(values.values())}
    everything = set().union(*(run.rows for folder in folders for run in folder.runs))
    notes = [f"By {field}: {', '.join(f'{value} {len(of_value):,} rows' for value, of_value in ids.items())}."]
    if without := everything - values.keys():
        notes.append(f"Rows without {field}, left out of the groups: {id_ranges(without)}.")
    kept = []
    for folder in folders:
        lacking = {
            run.name: [value for value, of_value in ids.items() if not of_value & run.rows.keys()]
            for run in folder.runs
        }
        kept.append(replace(folder, runs=[run for run in folder.runs if not lacking[run.name]]))
        prefix = f"{folder.name}:" if len(folders) > 1 else ""
        notes += [
            f"{prefix}{name} has no row of {', '.join(of)}, so it is left out of the groups."
            for name, of in lacking.items()
            if of
        ]
    kept = [folder for folder in kept if folder.runs]
    if not kept:
        raise UserError(f"--by {field}: no run has rows of all values: {', '.join(ids)}")
    return Groups(
        field,
        {
            value: [
                replace(folder, runs=[run.without(everything - of_value) for run in folder.runs]) for folder in kept
            ]
            for value, of_value in ids.items()
        },
        notes,
    )


@dataclass(frozen=True)
class ScoredGroups:
    """The runs of results folders, scored on the rows of each value of a further field.

    Attributes:
        by_value: for each value the runs by their names. Runs without a row of one of the values are left out.
        ids: for each value the ids of its rows.
    """

    field: str
    by_value: dict[str, dict[str, RunSummary]]
    ids: dict[str, set[int]]
    notes: list[str]


def scored_groups(folders: Sequence[Folder], field: str, scoring: Scoring) -> ScoredGroups:
    """Score the runs on the rows of each value. Of several folders, each run is named FOLDER:RUN.

    Raises:
        UserError: as for `split`, or a row cannot be scored.
    """
    groups = split(folders, field)
    by_value, ids = {}, {}
    for value, summaries in groups.summaries(scoring).items():
        runs = all_runs(summaries, several=len(folders) > 1)
        by_value[value] = {run.name: run for run in runs}
        ids[value] = {id for run in runs for id in run.scored.run.rows}
    return ScoredGroups(field, by_value, ids, groups.notes)


def values_of_rows(rows: Sequence[Row], field: str, where: object) -> list[str | None]:
    """Each row's value of a further field. None: the row lacks the field.

    Raises:
        UserError: no row has the field, or there are more than `MAX_VALUES` values.
    """
    values = _values(rows, field, f"{where}: ")
    return [values.get(row.id) for row in rows]


def _values(rows: Sequence[Row | AnsweredRow], field: str, where: str = "") -> dict[int, str]:
    """The value of a further field by the row's id, in the order of the ids."""
    values: dict[int, str] = {}
    for row in rows:
        if field in row.further:
            value = value_text(row.further[field])
            if values.setdefault(row.id, value) != value:
                raise UserError(
                    f"--by {field}: {where}row {row.id} has the value {quoted(value)} in one run and "
                    f"{quoted(values[row.id])} in another"
                )
    if not values:
        known = list(dict.fromkeys(name for row in rows for name in row.further))
        there = (
            f"further fields: {', '.join(shortened(name, 40) for name in known[:8])}" if known else "no further field"
        )
        advice = "" if where else ". The benchmark's file may have the field: name the file with --rows FILE"
        raise UserError(f"--by {field}: {where}no row has this field (the rows have {there}){advice}")
    if (count := len(set(values.values()))) > MAX_VALUES:
        raise UserError(f"--by {field}: {where}{count} different values, more than {MAX_VALUES}")
    return dict(sorted(values.items()))


def beside_values(groups: Groups, tables: Mapping[str, Table]) -> Table:
    """The tables of all values as one table, in which every column stands once for each value, under `COLUMN VALUE`."""
    table = beside([*tables.values()], [*tables])
    return replace(table, notes=[*groups.notes, *common_notes({value: of.notes for value, of in tables.items()})])


def compare_by_value(pairs: Mapping[str, Pairs], level: str) -> dict[str, list[Comparison]]:
    """The comparisons of each value's pairs (`compare_pairs`). The p-values are corrected for all values together.

    Raises:
        UserError: two runs of a pair share no row of a value.
    """
    together = [pair for of_all in zip(*pairs.values(), strict=True) for pair in of_all]
    compared = compare_pairs(together, level)
    return {value: compared[place :: len(pairs)] for place, value in enumerate(pairs)}


def comparisons_by_value_table(
    groups: Groups, compared: Mapping[str, Sequence[Comparison]], scoring: str, left_out: Sequence[str]
) -> Table:
    """The table of comparisons (`comparison_table`), with a column for each value of each comparison."""
    together = [comparison for of_all in zip(*compared.values(), strict=True) for comparison in of_all]
    named = [replace(one, name=f"{one.name} {value}") for one, value in zip(together, cycle(compared), strict=False)]
    return comparison_table(named, scoring, [*groups.notes, *left_out])


def comparisons_by_value_as_json(
    groups: Groups, compared: Mapping[str, Sequence[Comparison]], scoring: str, left_out: Sequence[str]
) -> dict[str, Any]:
    """The comparisons of each value as JSON. `comparisons` counts all values together."""
    total = sum(map(number_of_differences, compared.values()))
    return as_json(
        groups,
        {value: {**comparisons_as_json(of, scoring, left_out), "comparisons": total} for value, of in compared.items()},
    )


def as_json(groups: Groups, content: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of each value as JSON, under the value."""
    return {"by": groups.field, "notes": groups.notes, "values": dict(content)}
