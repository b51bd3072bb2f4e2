"""Functions that several commands share: reading runs, scoring runs, loading an encoder, finding a device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.errors import UserError
from lora_retriever.files import hash_path

if TYPE_CHECKING:
    from lora_retriever.analysis.folders import Folder
    from lora_retriever.analysis.runs import Run
    from lora_retriever.analysis.side_by_side import Names
    from lora_retriever.metrics import Scoring
    from lora_retriever.report.content import ReportContent
    from lora_retriever.retrieval.encoders import Encoder
    from lora_retriever.retrieval.index import AdapterIndex
    from lora_retriever.retrieval.scorers import Scorer


def report_content(args: argparse.Namespace, console: Console, index: AdapterIndex | None = None) -> ReportContent:
    """The tables and figures of the runs that the arguments name, for the report and for the terminal."""
    from lora_retriever.analysis.comparison import compare_pairs
    from lora_retriever.analysis.groups import scored_groups
    from lora_retriever.analysis.side_by_side import all_runs, notes_of, only, pairs_of, summarize_folders
    from lora_retriever.report import make_content

    folders = read_folders_of(args)
    (scoring,) = scorings(args)
    with console.status(scoring_of(folders, scoring)):
        names = shown_names(args, folders, scoring)
        summaries = summarize_folders(folders, scoring)
        comparisons = compare_pairs(pairs_of(summaries, args.versus, names)) if args.versus else ()
        shown = [folder for folder in folders if folder.name in names]
        groups = scored_groups(folders, args.by, scoring) if args.by is not None else None
        return make_content(all_runs(only(summaries, names)), comparisons, index, notes_of(shown), groups)


def shown_names(args: argparse.Namespace, folders: Sequence[Folder], scoring: Scoring) -> Names:
    """The runs of each folder that `--runs` chooses, in the order that `--sort` asks for.

    Raises:
        UserError: `--runs` names an unknown run, or a row cannot be scored.
    """
    from lora_retriever.analysis.side_by_side import by_falling_mean, chosen_names, summarize_folders

    names = chosen_names(folders, args.runs)
    return by_falling_mean(names, summarize_folders(folders, scoring)) if args.sort == "mean" else names


def title_of(args: argparse.Namespace) -> str:
    """The title of the report: the names of the results folders."""
    return ", ".join(folder.resolve().name for folder in args.results)


def scoring_of(folders: Sequence[Folder], scoring: Scoring) -> str:
    """The text that the terminal shows while runs are scored."""
    return f"{scoring.name} scores of {sum(len(folder.runs) for folder in folders)} runs"


def scorings(args: argparse.Namespace) -> list[Scoring]:
    """The scorings that the arguments name."""
    from lora_retriever.metrics import KINDS, SCORINGS, Scoring, read_kinds

    kinds = read_kinds(KINDS) | (read_kinds(args.kinds) if args.kinds else {})
    names = SCORINGS if args.scoring == "both" else (args.scoring,)
    return [Scoring(name, kinds, args.stemming, args.allow_hub_metrics, tuple(args.allow_metrics)) for name in names]


def runs_and_notes(results: Path) -> tuple[list[Run], list[str]]:
    """The finished runs of a results folder, and notes on files that are not shown."""
    from lora_retriever.analysis.runs import open_results

    return open_results(results)


def read_folders_of(args: argparse.Namespace) -> list[Folder]:
    """The results folders that the arguments name, without leaked rows if the arguments say so."""
    from lora_retriever.analysis.audit import leaked_ids
    from lora_retriever.analysis.folders import open_folders
    from lora_retriever.analysis.runs import id_ranges, pool_file
    from lora_retriever.data.rows import read_pool

    folders = open_folders(args.results, args.rows)
    if not args.without_leaks:
        return folders
    runs = [run for folder in folders for run in folder.runs]
    if not any(row.inputs for run in runs for row in run.rows.values()):
        raise UserError(f"{args.results[0]}: its rows have no inputs, so no row can be looked up in the pool")
    path = args.pool or pool_file(runs)
    pool = read_pool(path)
    leaked = set().union(*(leaked_ids(run.rows.values(), pool) for run in runs))
    for run in runs:
        if leaked >= run.rows.keys():
            raise UserError(f"{run.name}: the inputs of all rows are in the pool {path}; without leaks no row is left")
    note = (
        f"Without {len(leaked)} rows whose inputs are in the pool {path.name}: {id_ranges(leaked)}."
        if leaked
        else f"No row's inputs are in the pool {path.name}: no row was left out."
    )
    return [
        replace(folder, runs=[run.without(leaked) for run in folder.runs], notes=[*folder.notes, note])
        for folder in folders
    ]


def load_encoder_of(encoder: str, args: argparse.Namespace) -> Encoder:
    """The encoder of a folder or a Hub id, behind the cache of embeddings unless the arguments say `--no-cache`.

    An encoder of the user's own, `module:object`, is looked for in the current folder, too, and is not cached.

    Raises:
        UserError: the encoder cannot be found or loaded.
    """
    from lora_retriever.hub import ENCODER_WANTED, folder_or_id
    from lora_retriever.own_objects import is_own
    from lora_retriever.retrieval.embedding_cache import cached
    from lora_retriever.retrieval.encoders import load_encoder
    from lora_retriever.retrieval.own import find_encoder

    if is_own(encoder):
        return find_encoder(encoder, Path.cwd())
    folder = folder_or_id(encoder, ENCODER_WANTED)
    load = partial(load_encoder, folder, args.layout, args.instruction)
    return load() if args.no_cache else cached(load, hash_path(folder), args.layout, args.instruction)


def scorer_of(name: str) -> Scorer:
    """The scorer of this name. A scorer of the user's own, `module:object`, is looked for in the current folder, too.

    Raises:
        UserError: the scorer is unknown or cannot be loaded.
    """
    from lora_retriever.retrieval.own import find_scorer

    return find_scorer(name, Path.cwd())


def device_of(name: str) -> str:
    """The device of torch that an argument names.

    Raises:
        UserError: torch does not know or does not find the device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: torch finds no such device; say auto or cpu") from error
    return name
