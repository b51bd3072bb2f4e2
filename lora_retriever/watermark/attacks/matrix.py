"""The matrix: groups of attacks run one after the other. Each result is on disk before the next attack begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich
from lora_retriever.files import read_bytes, write_json, write_text
from lora_retriever.progress import progress_bar
from lora_retriever.resampling import wilson_interval
from lora_retriever.tables import Cell, Table
from lora_retriever.watermark.attacks import asking, changing, composing, innocents, merging, routing, training
from lora_retriever.watermark.attacks.harm import Harm, measure_harm
from lora_retriever.watermark.attacks.scene import Attack, Measured, Scene

GROUPS: dict[str, Callable[[Scene], Iterator[Attack]]] = {
    "composing": composing.attacks,
    "merging": merging.attacks,
    "training": training.attacks,
    "changing": changing.attacks,
    "asking": asking.attacks,
    "routing": routing.attacks,
    "innocents": innocents.attacks,
}
HARM = "harm"
RESULTS = "attacks.jsonl"
RECORD = "attacks.meta.json"
LEVELS = (0.05, 0.01)
"""Levels at which false alarms are counted."""


def run_matrix(
    scene: Scene, groups: Sequence[str], out: Path, identity: Mapping[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Run the attacks of some groups that are not on disk yet.

    Args:
        groups: names of `GROUPS`, and `harm`.
        out: folder of the results; a stopped matrix goes on there.
        identity: everything on which the results depend. A folder with results of another identity is refused.

    Returns:
        The results of all attacks in the folder, in the order in which they were measured.

    Raises:
        UserError: the folder has other results.
    """
    record = out / RECORD
    if record.exists() and json.loads(read_bytes(record)) != dict(identity):
        raise UserError(f"{out}: has results of another adapter, key or setting; name another --out")
    write_json(record, dict(identity))
    done = read_results(out)
    names = {(line["group"], line["attack"]) for line in done}
    wanted = [(group, name, measure) for group in groups for name, measure in _attacks(scene, group)]
    missing = [(group, name, measure) for group, name, measure in wanted if (group, name) not in names]
    with progress_bar(console, "attacks", len(missing)) as bar:
        for number, (group, name, measure) in enumerate(missing):
            bar.move_to(number, f"{number}/{len(missing)} {name}")
            done.append({"group": group, "attack": name, **measure()})
            write_text(out / RESULTS, "".join(json.dumps(line) + "\n" for line in done))
            console.print(for_rich(f"{name}: {summary(done[-1])}"), soft_wrap=True)
        bar.move_to(len(missing), f"{len(missing)}/{len(missing)}")
    return done


def _attacks(scene: Scene, group: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The attacks of a group by their names, and functions that give the fields of an attack's line in the results."""
    if group == HARM:
        yield HARM, lambda: {"harm": asdict(measure_harm(scene))}
        return
    for attack in GROUPS[group](scene):
        yield attack.name, partial(_measured, attack)


def _measured(attack: Attack) -> dict[str, Any]:
    return {"measured": [each.as_json() for each in attack.measure()]}


def read_results(out: Path) -> list[dict[str, Any]]:
    """The results in a folder; none if there is no file.

    Raises:
        UserError: a line of the file is damaged.
    """
    path = out / RESULTS
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in read_bytes(path).decode("utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path}: has a damaged line; delete the line to measure its attack again") from error


def summary(line: Mapping[str, Any]) -> str:
    """One line about an attack."""
    if line["group"] == HARM:
        harm = Harm(**line["harm"])
        return f"{harm.score} {harm.unmarked:.1f} → {harm.marked:.1f} [{harm.low:+.1f}, {harm.high:+.1f}]"
    measured = line["measured"]
    if not measured:
        return "not measured"
    hits, triggers = sum(each["hits"] for each in measured), sum(each["triggers"] for each in measured)
    return f"{hits} of {triggers} triggers, largest p {max(each['p_hits'] for each in measured):.1g}"


def attack_table(results: Sequence[Mapping[str, Any]], level: float) -> Table:
    """One line for each attack: the evidence of the mark."""
    rows: list[tuple[str, list[Cell | str | None]]] = []
    for line in results:
        if line["group"] in (HARM, "innocents") or not line["measured"]:
            continue
        measured = [Measured(**each) for each in line["measured"]]
        p_hits = sorted(each.p_hits for each in measured)
        ranks = sorted(each.p_ranks for each in measured if each.p_ranks is not None)
        permutations = [each.p_permutations for each in measured if each.p_permutations is not None]
        rows.append(
            (
                line["attack"],
                [
                    str(len(measured)),
                    _share(sum(each.hits for each in measured), sum(each.triggers for each in measured)),
                    f"{p_hits[-1]:.1e}",
                    f"{ranks[-1]:.1e}" if ranks else None,
                    f"{max(permutations):.1e}" if permutations else None,
                    f"{sum(p < level for p in p_hits)} of {len(p_hits)}",
                    f"{sum(p < level for p in ranks)} of {len(ranks)}" if ranks else None,
                ],
            )
        )
    columns = ["asked", "WESR", "largest p, hits", "ranks", "permutations", "by hits", "by ranks"]
    note = (
        "WESR: share of triggers answered with their target, in percent, with Wilson's 95 % interval. Largest p: of "
        f"the hits, the ranks and the permutations. By hits, by ranks: suspects with a p-value below {level:g}."
    )
    return Table(columns, rows, [note], bounds=True)


def alarm_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each kind of innocent suspect: how many p-values are small."""
    rows: list[tuple[str, list[Cell | str | None]]] = []
    for line in results:
        if line["group"] != "innocents" or not line["measured"]:
            continue
        measured = [Measured(**each) for each in line["measured"]]
        rows.append((line["attack"], _alarms(measured)))
    everything = [Measured(**each) for line in results if line["group"] == "innocents" for each in line["measured"]]
    if len(rows) > 1:
        rows.append(("all", _alarms(everything)))
    columns = ["asked", "WESR", "smallest p, hits", "smallest p, ranks"]
    columns += [f"{kind} ≤ {level:g}" for kind in ("hits", "ranks") for level in LEVELS]
    note = "Shares of p-values at or below a level, in percent, with Wilson's 95 % interval."
    return Table(columns, rows, [note], bounds=True)


def harm_table(harm: Harm) -> Table:
    """The task's score with and without the mark."""
    row: list[Cell | str | None] = [
        str(harm.rows),
        Cell(harm.unmarked),
        Cell(harm.marked),
        Cell(harm.marked - harm.unmarked, harm.low, harm.high, difference=True),
        f"{harm.better} and {harm.worse}",
    ]
    return Table(["rows", "unmarked", "marked", "difference", "rows better and worse"], [(harm.score, row)])


def tables_of(results: Sequence[Mapping[str, Any]], level: float) -> list[Table]:
    """The tables of a folder's results that have a line."""
    harms = [harm_table(Harm(**line["harm"])) for line in results if line["group"] == HARM]
    return [table for table in (attack_table(results, level), alarm_table(results), *harms) if table.rows]


def _alarms(measured: Sequence[Measured]) -> list[Cell | str | None]:
    ranks = [each.p_ranks for each in measured if each.p_ranks is not None]
    cells: list[Cell | str | None] = [
        str(len(measured)),
        _share(sum(each.hits for each in measured), sum(each.triggers for each in measured)),
        f"{min(each.p_hits for each in measured):.1e}",
        f"{min(ranks):.1e}" if ranks else None,
    ]
    for values in ([each.p_hits for each in measured], ranks):
        cells += [_share(sum(p <= level for p in values), len(values)) if values else None for level in LEVELS]
    return cells


def _share(count: int, of: int) -> Cell:
    return Cell(100 * count / of, *wilson_interval(count, of))
