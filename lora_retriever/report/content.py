"""Everything that the report shows, as plain data, computed once for the page and for the plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from lora_retriever.analysis.comparison import Comparison, comparison_table
from lora_retriever.analysis.groups import ScoredGroups
from lora_retriever.analysis.runs import Run
from lora_retriever.analysis.scores import MEAN
from lora_retriever.analysis.summary import Interval, RunSummary, to_table
from lora_retriever.report.leaderboard import Standing, standing_of
from lora_retriever.report.matrices import Matrix, adapter_similarity, retrieval_maps, task_similarity
from lora_retriever.report.rows import Rows, all_rows, pack_rows, tasks_of
from lora_retriever.report.sweeps import Sweep, sweeps_of
from lora_retriever.report.use import Use, use_of
from lora_retriever.retrieval.index import AdapterIndex
from lora_retriever.tables import Cell, Table

CellContent = str | list[float | str | None] | None
"""A number as [value, low, high, mark], a text, or nothing."""


@dataclass(frozen=True)
class TableContent:
    """A table of scores. Sorting moves the rows before index `foot`; the later rows stay at the bottom.

    The numbers are not rounded: the page rounds them as the terminal does. `bounds` and `signed` are as in `Table`.
    """

    name: str
    columns: list[str]
    rows: list[tuple[str, list[CellContent]]]
    foot: int
    signed: bool
    bounds: bool
    notes: list[str]


@dataclass(frozen=True)
class RunContent:
    """A run: its name, its mean over tasks, the mean's interval (None: none known), and how the run was made."""

    name: str
    rows: int
    mean: float
    interval: Interval | None
    made: dict[str, str]


@dataclass(frozen=True)
class GroupsContent:
    """The further field by whose values the rows are split, with its values."""

    field: str
    values: list[str]
    notes: list[str]


@dataclass(frozen=True)
class ReportContent:
    """The report.

    Attributes:
        scoring: the scoring's name, then a line per score that says how the score is computed.
        leaderboard: a line for each run, in the order of the runs.
        groups: None: the rows are not split.
        tables: the scores by domain, by task, and, if asked for, the comparison with one run.
        notes: the notes that all tables share. A table has only its own notes.
    """

    scoring: list[str]
    runs: list[RunContent]
    leaderboard: list[Standing]
    groups: GroupsContent | None
    tables: list[TableContent]
    notes: list[str]
    retrieval: list[Matrix]
    similarity: Matrix | None
    sweeps: list[Sweep]
    use: list[Use]
    rows: Rows


def make_content(
    runs: Sequence[RunSummary],
    comparisons: Sequence[Comparison] = (),
    index: AdapterIndex | None = None,
    left_out: Sequence[str] = (),
    groups: ScoredGroups | None = None,
) -> ReportContent:
    """Compute a report of scored runs.

    Args:
        comparisons: every run compared with one run, for a table of the differences.
        index: the pool's index, for the similarity of its adapters. Without an index, tasks are compared by the
            adapters that were retrieved for the tasks.
        left_out: notes on the rows that were left out.
        groups: the same runs on the rows of each value of a further field, for the leaderboard and the reader.
    """
    scored, scoring = [run.scored for run in runs], runs[0].scored.scoring
    rows = all_rows(runs)
    tasks = tasks_of(rows)
    tables = {
        "by domain": to_table(runs, left_out=left_out),
        "by task": to_table(runs, by_task=True, left_out=left_out),
    }
    if comparisons:
        tables[f"against {comparisons[0].other}"] = comparison_table(comparisons, scoring.name, left_out)
    used = [use_of(run, tasks) for run in scored]
    first, *others = (table.notes for table in tables.values())
    shared = [note for note in first if all(note in notes for notes in others)]
    return ReportContent(
        scoring=[scoring.name, *(f"{score}: {how}" for score, how in scoring.details.items())],
        runs=[
            RunContent(run.name, run.rows, run.values[MEAN], run.intervals.get(MEAN), _made(run.scored.run))
            for run in runs
        ],
        leaderboard=[standing_of(run, use, groups) for run, use in zip(runs, used, strict=True)],
        groups=GroupsContent(groups.field, list(groups.by_value), groups.notes) if groups else None,
        tables=[_table(name, table, shared) for name, table in tables.items()],
        notes=shared,
        retrieval=retrieval_maps(scored, tasks),
        similarity=adapter_similarity(index, tasks) if index else task_similarity(scored, tasks),
        sweeps=sweeps_of(runs),
        use=used,
        rows=pack_rows(runs, rows, tasks, list(groups.ids.values()) if groups else []),
    )


def _table(name: str, table: Table, shared: Sequence[str]) -> TableContent:
    notes = [note for note in table.notes if note not in shared]
    rows = [(label, [_cell(cell) for cell in cells]) for label, cells in table.rows]
    return TableContent(
        name, table.columns, rows, min(table.rules, default=len(rows)), table.signed, table.bounds, notes
    )


def _cell(cell: Cell | str | None) -> CellContent:
    if not isinstance(cell, Cell):
        return cell
    return [*(_finite(number) for number in (cell.value, cell.low, cell.high)), cell.mark.strip()]


def _finite(number: float | None) -> float | None:
    """The number; None for NaN and infinity, which JSON lacks."""
    return None if number is None or not isfinite(number) else number


def _made(run: Run) -> dict[str, str]:
    """The fields of `runs.yaml` and of the run's record, one line for each field."""
    meta: dict[str, Any] = run.meta
    configuration = meta.get("configuration", {})
    versions, adapters = meta.get("versions"), configuration.get("adapters")
    if isinstance(versions, dict):
        versions = ", ".join(f"{package} {version}" for package, version in versions.items())
    settings = {name: value for name, value in configuration.items() if name not in ("adapters", "method")}
    settings |= {"adapters": f"{len(adapters)} files' hashes"} if isinstance(adapters, dict) else {}
    fields = {
        **(run.origin.fields if run.origin else {}),
        "configuration hash": meta.get("configuration_hash"),
        "profile": meta.get("profile"),
        "hardware": meta.get("hardware"),
        "versions": versions,
        "truncated rows": meta.get("truncated_rows"),
        "failed rows": len(meta.get("failed_rows", [])) or None,
        "seconds": meta.get("timings", {}).get("seconds"),
        **settings,
    }
    return {name: str(value) for name, value in fields.items() if value not in (None, "")}
