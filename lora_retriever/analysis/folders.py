"""Several results folders of one benchmark, opened so that their runs can be compared row by row.

The benchmark's rows are the rows of a file, or else the rows of the first folder. Every answered row gets the id of
the benchmark's row with the same task, inputs and targets. So lists of answers without ids can be in another order,
lack rows or have rows twice, and every such finding becomes a note. Texts that differ only by white space or Unicode
form are the same text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_retriever.analysis.runs import (
    AnsweredRow,
    Run,
    check_is_folder,
    check_rows_agree,
    id_ranges,
    open_results,
    read_folder,
)
from lora_retriever.data.rows import Row, read_rows, shortened, single_spaced, texts_of
from lora_retriever.errors import UserError

Content = tuple[str, str, tuple[str, ...]]
"""The fields that identify a row in any order: task, inputs and targets."""


@dataclass(frozen=True)
class Folder:
    """A results folder: its finished runs, and notes on files and rows that are left out, renamed or matched.

    Attributes:
        name: the name in tables: the end of the folder's path that no other folder of the table has.
    """

    name: str
    path: Path
    runs: list[Run]
    notes: list[str]


@dataclass(frozen=True)
class BenchmarkRows:
    """The rows with which answered rows are matched, by id, and the name of their file or folder."""

    name: str
    rows: Mapping[int, Row | AnsweredRow]


def open_folders(paths: Sequence[Path], rows_file: Path | None = None) -> list[Folder]:
    """Open results folders of one benchmark.

    Args:
        rows_file: the file of the benchmark's rows. None: the rows of the first folder are the rows of the benchmark.

    Raises:
        UserError: a folder is there twice or cannot be read (`read_folder`), two runs have other rows under one id, or
            a run cannot be matched (`matched`).
    """
    names = _names(paths)
    benchmark = None
    if rows_file is not None:
        benchmark = BenchmarkRows(str(rows_file), {row.id: row for row in read_rows(rows_file)})
    folders = []
    for name, path in zip(names, paths, strict=True):
        if benchmark is None:
            runs, notes = open_results(path)
            rows = sorted((row for run in runs for row in run.rows.values()), key=lambda row: bool(row.inputs))
            benchmark = BenchmarkRows(name, {row.id: row for row in rows})  # a row with inputs replaces one without
        else:
            runs, notes = read_folder(path)
            runs, found = _match_all(runs, benchmark, path)
            notes += found
        folders.append(Folder(name, path, runs, notes))
    return folders


def matched(run: Run, benchmark: BenchmarkRows, where: object) -> tuple[Run, list[str]]:
    """The run with the benchmark's ids, inputs, targets and further fields, in the benchmark's order; and the findings.

    A row keeps its id where the benchmark's row of that id is the same. Any other row gets the id of a row with the
    same content that is not answered yet. A row that the benchmark lacks, or that is answered already, is left out.

    Raises:
        UserError: no row is in the benchmark, or a task has another domain or metric there.
    """
    places: dict[Content, list[int]] = defaultdict(list)
    for id, row in sorted(benchmark.rows.items(), reverse=True):
        places[_content(row)].append(id)  # the last id is used first
    given: dict[int, int] = {}  # the benchmark's id of each row that is matched, by the row's own id
    for own, answered in run.rows.items():
        if own in benchmark.rows and _agree(answered, benchmark.rows[own]):
            given[own] = own
    taken = set(given.values())
    repeated: list[int] = []
    unknown: list[int] = []
    for own, answered in run.rows.items():
        if own in given:
            continue
        free = places.get(_content(answered), []) if answered.inputs else []
        while free and free[-1] in taken:
            free.pop()
        if free:
            given[own] = free.pop()
            taken.add(given[own])
        else:
            (repeated if _content(answered) in places else unknown).append(own)
    if not given:
        raise UserError(
            f"{where}: {run.name}: none of its {len(run.rows)} rows is a row of {benchmark.name}: these are not "
            "answers to the same benchmark"
        )
    rows = {}
    for own, id in sorted(given.items(), key=lambda pair: pair[1]):
        row, wanted = run.rows[own], benchmark.rows[id]
        if (row.domain, row.metric) != (wanted.domain, wanted.metric):
            raise UserError(
                f"{where}: task {shortened(row.task)!r} is of domain {shortened(row.domain)!r} and scored by "
                f"{shortened(row.metric)!r} in {run.name} (row {own}), of {shortened(wanted.domain)!r} and by "
                f"{shortened(wanted.metric)!r} in {benchmark.name}: a task has one of each"
            )
        inputs, targets = (wanted.inputs, wanted.targets) if row.inputs else (row.inputs, wanted.targets)
        further = {**row.further, **wanted.further}
        rows[id] = row.model_copy(update={"id": id, "inputs": inputs, "targets": targets, "further": further})
    return replace(run, rows=rows), _findings(run, benchmark, given, repeated, unknown)


def _match_all(runs: Sequence[Run], benchmark: BenchmarkRows, path: Path) -> tuple[list[Run], list[str]]:
    """All runs of a folder, matched; a note for each finding, with the runs that it concerns."""
    found: dict[str, list[str]] = {}
    result = []
    for run in runs:
        same_rows, findings = matched(run, benchmark, path)
        missing = frozenset(benchmark.rows.keys() - same_rows.rows.keys())  # `findings` name all of them
        result.append(replace(same_rows, noted_as_missing=missing))
        for text in findings:
            found.setdefault(text, []).append(run.name)
    check_rows_agree(result, path)
    notes = [f"{'All runs' if len(names) == len(runs) else ', '.join(names)}: {text}" for text, names in found.items()]
    return result, notes


def _findings(
    run: Run, benchmark: BenchmarkRows, given: Mapping[int, int], repeated: Sequence[int], unknown: Sequence[int]
) -> list[str]:
    """The differences between a run's rows and the benchmark: order, rows twice, other rows, rows that are missing.

    The lines call a row that the benchmark lacks a row with other targets if a missing row has the same task and
    inputs, and a row with other inputs if the missing row of the same id has the same task and targets.
    """
    missing = benchmark.rows.keys() - given.values()
    lines = []
    if moved := _moved([given[own] for own in run.rows if own in given]):
        lines.append(
            f"in another order than {benchmark.name}, so matched by task, inputs and targets: rows {id_ranges(moved)}."
        )
    if repeated:
        twice = {_content(run.rows[own]) for own in repeated}
        ids = [id for id, row in benchmark.rows.items() if _content(row) in twice]
        lines.append(f"answered more than once, and the first answer counts: rows {id_ranges(ids)}.")
    with_inputs = {_content(benchmark.rows[id])[:2]: id for id in missing if benchmark.rows[id].inputs}
    altered: dict[str, list[int]] = {}
    for own in unknown:
        task, inputs, targets = _content(run.rows[own])
        if (task, inputs) in with_inputs:
            altered.setdefault("targets", []).append(with_inputs[task, inputs])
        elif own in missing and _content(benchmark.rows[own])[::2] == (task, targets):
            altered.setdefault("inputs", []).append(own)
        else:
            altered.setdefault("", []).append(own)
    for field, ids in altered.items():
        if field:
            lines.append(f"other {field} than in {benchmark.name}, so left out: rows {id_ranges(ids)}.")
        else:
            lines.append(f"no rows of {benchmark.name}, so left out: rows {id_ranges(ids)} of the run's file.")
    if lacking := missing - {id for field, ids in altered.items() if field for id in ids}:
        lines.append(f"{len(lacking)} rows of {benchmark.name} not answered: {id_ranges(lacking)}.")
    return lines


def _moved(ids: Sequence[int]) -> list[int]:
    """The smallest set of ids without which the other ids ascend: all ids outside a longest rising subsequence."""
    ends: list[int] = []  # the least id in which a rising subsequence of each length ends
    lengths = []
    for id in ids:
        lengths.append(bisect_left(ends, id))
        ends[lengths[-1] : lengths[-1] + 1] = [id]
    kept, wanted = set(), len(ends) - 1
    for id, length in zip(reversed(ids), reversed(lengths), strict=True):
        if length == wanted:
            kept.add(id)
            wanted -= 1
    return sorted(set(ids) - kept)


def _content(row: Row | AnsweredRow) -> Content:
    return row.task, single_spaced(row.inputs), tuple(map(single_spaced, texts_of(row.targets)))


def _agree(row: AnsweredRow, wanted: Row | AnsweredRow) -> bool:
    """Whether two rows of one id are the same row. A run may come without inputs."""
    mine, theirs = _content(row), _content(wanted)
    return mine[::2] == theirs[::2] and (mine[1] == theirs[1] or not (mine[1] and theirs[1]))


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders: the shortest end of each path that is not the end of another path.

    Raises:
        UserError: there is no such folder, or two paths are the same folder.
    """
    for path in paths:
        check_is_folder(path)
    parts = [path.resolve().parts for path in paths]
    if repeated := [path for index, path in enumerate(paths) if parts[index] in parts[:index]]:
        raise UserError(f"{repeated[0]} is there more than once; name each results folder once")
    names = []
    for own in parts:
        others: Iterable[tuple[str, ...]] = [other for other in parts if other != own]
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names.append("/".join(own[-length:]))
    return names
