"""`lora-retriever lorahub --tasks`: LoraHub's experiment on a folder of tasks, and its tables."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.lorahub.arguments import SCORINGS
from lora_retriever.commands.lorahub.checkpoint import search_of
from lora_retriever.commands.lorahub.parts import Parts, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_retriever.fewshot.experiment import Design
    from lora_retriever.fewshot.tasks import Division, FewShotTask
    from lora_retriever.training.lora import TrainingOptions


def run(args: argparse.Namespace, console: Console) -> int:
    """Run or continue the experiment, and print its tables. Returns the exit status."""
    from lora_retriever.fewshot.experiment import Design, check_own_adapters
    from lora_retriever.fewshot.tasks import Division, read_tasks

    parts = parts_of(args, console)
    division = Division(args.shots, args.held_out, args.split_seed, args.limit)
    tasks = read_tasks(args.tasks, args.names, division, SCORINGS[args.scoring], args.descriptions)
    design = Design(
        args.draws, args.count, args.choice, args.objective, search_of(args), args.baselines, args.without_own
    )
    if design.without_own:
        check_own_adapters(tasks, list(parts.locations))
    _compute(args, parts, design, division, tasks, console)
    _print_tables(args.results, parts.base_name, design, tasks)
    return 0


def _compute(
    args: argparse.Namespace,
    parts: Parts,
    design: Design,
    division: Division,
    tasks: Sequence[FewShotTask],
    console: Console,
) -> None:
    """Compute the results that the results folder does not have yet."""
    from lora_retriever.fewshot.experiment import (
        Experiment,
        code_of,
        configuration_of,
        hold_to,
        is_finished,
        trained_adapters,
        write_runs,
    )
    from lora_retriever.files import hash_path
    from lora_retriever.generation.loading import load_generator
    from lora_retriever.running.results_folder import locked

    options = _training(args, parts)
    source = parts.source(parts.locations)
    further = {
        "base": hash_path(source.base),
        "adapters": {name: hash_path(folder) for name, folder in source.adapters.items()},
        "generation": parts.settings.recorded(),
        "dtype": parts.dtype,
        "division": vars(division),
        **parts.hashes,
        "scoring": args.scoring,
        "files": {task.name: hash_path(task.file) for task in tasks},
        "lora": options.model_dump(mode="json") if "lora" in design.baselines else None,
    }
    with locked(args.results) as held:
        held.require_writable()
        hold_to(args.results, configuration_of(design, tasks, further), code_of(design), args.keep_answers)
        if not is_finished(args.results, design, tasks):
            trained = {}
            if "lora" in design.baselines:
                trained = trained_adapters(args.results, source, tasks, options, console)
            with console.status("loading"):
                generator = load_generator(replace(source, adapters={**source.adapters, **trained}))
            names = list(parts.locations)
            Experiment(design, tasks, generator, names, args.results, parts.retrieval, console).answer()
        write_runs(args.results, design, tasks)


def _training(args: argparse.Namespace, parts: Parts) -> TrainingOptions:
    """How the baseline `lora` is trained."""
    from lora_retriever.training.lora import TrainingOptions

    return TrainingOptions(
        rank=args.lora_rank,
        alpha=2 * args.lora_rank,
        targets=tuple(args.lora_targets),
        dropout=0,
        epochs=args.lora_epochs,
        learning_rate=args.lora_rate,
        max_tokens=parts.settings.max_prompt_tokens,
        template=parts.settings.template,
        system=parts.settings.system,
    )


def _print_tables(results: Path, base: str, design: Design, tasks: Sequence[FewShotTask]) -> None:
    from lora_retriever.fewshot.experiment import draws_of
    from lora_retriever.fewshot.published import belongs_to
    from lora_retriever.fewshot.table import difference_table, score_table, scored_runs, weight_table
    from lora_retriever.tables import terminal

    runs = scored_runs(results, design)
    tables = [
        score_table(runs, design, belongs_to(base)),
        difference_table(runs, design),
        weight_table(draws_of(results, [task.name for task in tasks], design.seeds)),
    ]
    print("\n".join(terminal(table) for table in tables if table is not None), end="")
