"""Evaluations of retrieval as tables and as JSON. This file computes no figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_retriever.analysis.published import retrieval_figures, source
from lora_retriever.analysis.retrieval.evaluation import CUTS, Evaluation, Figures
from lora_retriever.analysis.retrieval.rankings import RetrievalData
from lora_retriever.analysis.retrieval.templates import Templates, shared_words
from lora_retriever.tables import Cell, Table

Cells = list[Cell | str | None]

INTERVALS = "±: half of the 95 % interval; rows are resampled within their tasks."
TOP_1_AND_3 = ("top1", "top3")


def report_tables(
    evaluations: Sequence[Evaluation], by: str | None, confusions: int | None, with_paper: bool
) -> list[Table]:
    """The main table, the table of cut pools if pools were cut, and the tables that the user chose.

    Args:
        with_paper: whether the main table has the rows of the paper's table 2, which are of the official data.
    """
    tables = [main_table(evaluations, with_paper)]
    if evaluations[0].cut:
        tables.append(cut_table(evaluations))
    if by:
        tables.append(group_table(evaluations, by))
    if confusions:
        tables.append(confusion_table(evaluations, confusions))
    return tables


def main_table(evaluations: Sequence[Evaluation], with_paper: bool) -> Table:
    """A line per encoder and scorer with all figures; below, if asked for, the paper's table 2."""
    first = evaluations[0]
    sections: list[tuple[str, list[str], Callable[[Evaluation], Cells]]] = [
        (
            "own adapter",
            [*(f"top {k}" for k in CUTS), "MRR", "ECE"],
            lambda one: [*_cells(one.overall, [*(f"top{k}" for k in CUTS), "mrr"]), _plain(one.calibration_error)],
        )
    ]
    if "same_domain1" in first.overall.cells:
        sections.append(
            (
                "masked",
                ["top 1", "top 3"],
                lambda one: _cells(one.overall, ["same_domain1", "same_domain3"]),
            )
        )
    if first.seen or first.unseen:
        sections.append(("unseen", ["rows", "top 1", "top 3"], lambda one: _unseen(one)))
    if first.left_out:
        sections.append(("left out", ["top 1", "top 3"], lambda one: _cells(one.left_out, TOP_1_AND_3)))
    rows: list[tuple[str, Cells]] = [
        (label, [cell for _, _, cells in sections for cell in cells(one)])
        for label, one in zip(_labels(evaluations), evaluations, strict=True)
    ]
    width = sum(len(columns) for _, columns, _ in sections)
    for encoder, shares in retrieval_figures().items() if with_paper else ():
        printed: Cells = [Cell(share) for share in shares]
        rows.append((f"paper: {encoder}", [*printed, *([None] * (width - len(printed)))]))
    return Table(
        [column for _, columns, _ in sections for column in columns],
        rows,
        [*_main_notes(first), *([f"paper: {source('table2.csv')}, on the official rows."] if with_paper else [])],
        rules=frozenset({len(evaluations)} if with_paper else ()),
        groups=tuple((name, len(columns)) for name, columns, _ in sections),
    )


def group_table(evaluations: Sequence[Evaluation], by: str) -> Table:
    """A line per group of rows: the number of rows, and each scorer's share of rows with the own adapter found.

    Args:
        by: "domain", "task", or the further field by whose values the rows were evaluated.
    """
    groups = [{"domain": one.domains, "task": one.tasks}.get(by, one.groups) for one in evaluations]
    rows: list[tuple[str, Cells]] = [
        (name, [str(over.rows), *(cell for of_one in groups for cell in _cells(of_one[name], TOP_1_AND_3))])
        for name, over in groups[0].items()
    ]
    heads = [("", 1), *((label, 2) for label in _labels(evaluations))]
    notes = [INTERVALS]
    if without := evaluations[0].overall.rows - sum(over.rows for over in groups[0].values()):
        notes.append(f"{without} rows without {by}, so left out here.")
    return Table(["rows", *(["top 1", "top 3"] * len(evaluations))], rows, notes, groups=tuple(heads))


def cut_table(evaluations: Sequence[Evaluation]) -> Table:
    """A line per encoder and scorer: the figures when every adapter has only a few samples."""
    columns = ["top 1", "top 3", *(["unseen rows", "unseen top 1"] if evaluations[0].seen else [])]

    def cells(one: Evaluation) -> Cells:
        return [*_cells(one.overall, TOP_1_AND_3), *_unseen(one)[: len(columns) - 2]]

    rows: list[tuple[str, Cells]] = [
        (label, [cell for size in (*one.cut.values(), one) for cell in cells(size)])
        for label, one in zip(_labels(evaluations), evaluations, strict=True)
    ]
    sizes = [*(f"{size} sample{'s' if size > 1 else ''}" for size in evaluations[0].cut), "all samples"]
    return Table(columns * len(sizes), rows, [INTERVALS], groups=tuple((size, len(columns)) for size in sizes))


def confusion_table(evaluations: Sequence[Evaluation], most: int) -> Table:
    """The most frequent confusions over all scorers: rows of one task whose best adapter is of another task."""
    total: Counter[tuple[str, str]] = Counter()
    for one in evaluations:
        total.update(one.confusions)
    rows: list[tuple[str, Cells]] = [
        (f"{own} → {found}", [str(one.confusions.get((own, found), 0)) for one in evaluations])
        for (own, found), _ in total.most_common(most)
    ]
    return Table(_labels(evaluations), rows, ["Task of the rows → adapter of another task that was found first."])


def template_table(data: RetrievalData, templates: Templates) -> Table:
    """The templates that were found: the words that all their inputs share, and the number of their inputs."""
    assert data.described is not None, "templates are found in texts"
    rows: list[tuple[str, Cells]] = []
    for adapter, (name, groups) in enumerate(zip(data.names, templates.samples, strict=True)):
        own = np.flatnonzero(templates.own == adapter)
        for group in np.unique([*groups, *templates.rows[own]]).tolist():
            samples = [data.described.samples[adapter][at] for at in np.flatnonzero(groups == group)]
            inputs = [data.described.inputs[row] for row in own if templates.rows[row] == group]
            rows.append((f"{name}: {shared_words([*samples, *inputs])}", [str(len(samples)), str(len(inputs))]))
    found = len(rows) / len(data.names)
    notes = [
        f"{found:.1f} templates per adapter, each shown by the words that all its samples and rows share (⏎: new line)."
    ]
    return Table(["samples", "rows"], rows, notes)


def as_json(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The figures that `--json` writes, in percent. The first encoder's figures are at the top."""
    encoders: dict[str, dict[str, Any]] = {}
    for one in evaluations:
        of_encoder = encoders.setdefault(one.encoder, {"rows": one.overall.rows, "scorers": {}, "details": {}})
        of_encoder["scorers"][one.scorer] = _shares(one.overall)
        of_encoder["details"][one.scorer] = _details(one)
    first = next(iter(encoders.values()))
    return first if len(encoders) == 1 else {"rows": first["rows"], "scorers": first["scorers"], "encoders": encoders}


def _details(one: Evaluation) -> dict[str, Any]:
    return {
        **_as_json(one.overall),
        "calibration_error": _rounded(one.calibration_error),
        "seen": _as_json(one.seen),
        "unseen": _as_json(one.unseen),
        "left_out": _as_json(one.left_out),
        "domains": {name: _as_json(over) for name, over in one.domains.items()},
        "tasks": {name: _as_json(over) for name, over in one.tasks.items()},
        **({"groups": {value: _as_json(over) for value, over in one.groups.items()}} if one.groups else {}),
        "confusions": [{"task": own, "found": found, "rows": rows} for (own, found), rows in one.confusions.items()],
        "samples": {str(size): _details(cut) for size, cut in one.cut.items()},
    }


def _as_json(over: Figures | None) -> dict[str, Any]:
    """Figures with their intervals; empty if there are no figures."""
    if over is None:
        return {}
    return {
        "rows": over.rows,
        **_shares(over),
        **{name: _rounded(cell.value) for name, cell in over.cells.items()},
        "intervals": {name: [_rounded(cell.low), _rounded(cell.high)] for name, cell in over.cells.items()},
    }


def _shares(over: Figures) -> dict[str, float | None]:
    return {
        name: _rounded(over.cells[name].value) if name in over.cells else None for name in (f"top{k}" for k in CUTS)
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _labels(evaluations: Sequence[Evaluation]) -> list[str]:
    """The scorers' names; with several encoders also the encoders' names, by the last part of the path if unique."""
    encoders = list(dict.fromkeys(one.encoder for one in evaluations))
    if len(encoders) == 1:
        return [one.scorer for one in evaluations]
    short = [Path(encoder).name for encoder in encoders]
    names: Mapping[str, str] = dict(zip(encoders, short if len(set(short)) == len(short) else encoders, strict=True))
    return [f"{names[one.encoder]} {one.scorer}" for one in evaluations]


def _cells(over: Figures | None, names: Sequence[str]) -> Cells:
    return [None if over is None else over.cells.get(name) for name in names]


def _unseen(one: Evaluation) -> Cells:
    return [str(one.unseen.rows if one.unseen else 0), *_cells(one.unseen, TOP_1_AND_3)]


def _plain(value: float | None) -> Cell | None:
    return None if value is None else Cell(value)


def _main_notes(first: Evaluation) -> list[str]:
    lines = [
        f"Percent of {first.overall.rows:,} rows. {INTERVALS}",
        "own adapter: rows with the own adapter among the best k. MRR: mean reciprocal rank of the own adapter, × 100. "
        "ECE: expected calibration error, the distance of stated probabilities from the shares of right results.",
    ]
    if "same_domain1" in first.overall.cells:
        lines.append(
            "masked: with the own adapter masked, the share of the best k adapters that are of the row's domain."
        )
    if first.seen or first.unseen:
        lines.append("unseen: only the rows whose prompt template no sample of their own adapter has.")
    if first.left_out:
        lines.append(
            f"left out: {first.left_out.rows:,} rows, each ranked while its own adapter lacks the samples of the row's "
            "template."
        )
    return lines
