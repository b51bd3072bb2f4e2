"""`lora-retriever lorahub`: learn the weights of a fusion from a task's few examples, or run LoraHub's experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.arguments import count, names, nonnegative, penalty
from lora_retriever.errors import UserError
from lora_retriever.files import writing
from lora_retriever.progress import quieten_transformers

if TYPE_CHECKING:
    from lora_retriever.data.rows import PoolEntry
    from lora_retriever.generation.settings import GenerationSection
    from lora_retriever.methods.parts.lorahub_weights import Search
    from lora_retriever.retrieval.encoders import Encoder

HELP = "learn the weights of a fusion from a task's few examples, or run LoraHub's experiment on a folder of tasks"
EXAMPLES = """
lora-retriever lorahub --base ./models/my-base --adapters adapters --examples few.jsonl --out task
lora-retriever lorahub --base ./models/my-base --adapters adapters --tasks bbh --results results/bbh
"""
SCORINGS = {"exact": "em", "starts-with": "starts_with", "likelihood": "choice"}
"""The ways of scoring, with the names of their metrics."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--base", required=True, help="base model: a folder or a Hub id")
    parser.add_argument("--adapter", action="append", default=[], metavar="LOCATION", help="repeat for each adapter")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="take every adapter folder in FOLDER")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--examples", type=Path, metavar="FILE", help="the task's examples: inputs and targets")
    what.add_argument("--tasks", type=Path, metavar="FOLDER", help="the experiment: files {input, target}, one a task")
    parser.add_argument("--out", type=Path, help="with --examples: folder for the checkpoint")

    learning = parser.add_argument_group("how weights are learned")
    learning.add_argument("--count", type=count, default=20, help="number of adapters of a draw (default: 20)")
    learning.add_argument(
        "--choice",
        choices=["random", "retrieved", "loss"],
        default="random",
        help="which adapters: drawn, retrieved for the examples, or with the lowest loss alone (default: random)",
    )
    learning.add_argument(
        "--objective", choices=["loss", "score"], default="loss", help="what the weights optimise (default: loss)"
    )
    learning.add_argument(
        "--optimizer", choices=["cobyla", "cma", "random"], default="cobyla", help="default: cobyla, the paper's"
    )
    learning.add_argument("--steps", type=count, default=40, help="number of weight vectors tried (default: 40)")
    learning.add_argument("--bound", type=_bound, default=1.5, help="maximum absolute weight (default: 1.5)")
    learning.add_argument("--l1", type=penalty, default=0.05, help="penalty on the absolute weights (default: 0.05)")
    learning.add_argument(
        "--penalty", choices=["mean", "sum"], default="mean", help="of the absolute weights (default: mean)"
    )
    learning.add_argument("--seed", type=nonnegative, default=0, help="with --examples: seed of the draw (default: 0)")
    learning.add_argument("--encoder", metavar="LOCATION", help="encoder for what is retrieved")
    learning.add_argument("--pool", type=Path, metavar="FILE", help="samples of the adapters, for what is retrieved")

    answers = parser.add_argument_group("prompts and answers")
    answers.add_argument("--template", default="alpaca", help="a template's name, or a text with {inputs} in it")
    answers.add_argument("--system", metavar="TEXT", help="system prompt of the template chat (default: its own)")
    answers.add_argument("--scoring", choices=list(SCORINGS), default="exact", help="default: exact")
    answers.add_argument("--max-prompt-tokens", type=count, default=512, help="longer prompts are cut (default: 512)")
    answers.add_argument("--max-new-tokens", type=count, default=50, help="longest answer (default: 50)")
    answers.add_argument("--batch-size", type=count, default=8, help="examples or rows in a batch (default: 8)")
    answers.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    answers.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    experiment = parser.add_argument_group("the experiment, with --tasks")
    experiment.add_argument("--results", type=Path, metavar="DIR", help="results folder; a stopped experiment goes on")
    experiment.add_argument("--names", type=names, default=[], metavar="TASK,TASK", help="these tasks (default: all)")
    experiment.add_argument(
        "--descriptions", type=Path, metavar="FOLDER", help="a file TASK.txt with the task's description, as of BBH"
    )
    experiment.add_argument("--draws", type=count, default=5, help="draws of adapters, with seeds from 1 (default: 5)")
    experiment.add_argument("--shots", type=count, default=5, help="number of examples (default: 5)")
    experiment.add_argument("--held-out", type=count, default=100, help="rows that are not tested (default: 100)")
    experiment.add_argument("--split-seed", type=nonnegative, default=42, help="seed of examples (default: 42)")
    experiment.add_argument("--limit", type=count, metavar="N", help="test at most N rows of each task")
    experiment.add_argument(
        "--baselines",
        type=_baselines,
        default=("zero_shot", "in_context", "lora"),
        metavar="NAME,NAME",
        help="of zero_shot, in_context, mixture, lora; or none (default: zero_shot,in_context,lora)",
    )
    experiment.add_argument("--without-own", action="store_true", help="leave out the adapter of the task's name")
    experiment.add_argument("--lora-rank", type=count, default=16, help="of the LoRA on the examples (default: 16)")
    experiment.add_argument("--lora-epochs", type=count, default=20, help="default: 20")
    experiment.add_argument("--lora-rate", type=_bound, default=2e-4, help="learning rate (default: 0.0002)")
    experiment.add_argument("--lora-targets", type=names, default=["q_proj", "v_proj"], metavar="NAME,NAME")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    import torch

    from lora_retriever.generation.prompt import check_system, check_template
    from lora_retriever.generation.settings import GenerationSection
    from lora_retriever.methods.parts.lorahub_weights import Search

    if args.examples and args.out is None:
        raise UserError("--examples: name a folder for the checkpoint with --out")
    if args.tasks and (args.out or not args.results):
        raise UserError("--tasks: name a results folder with --results, and no --out")
    if args.out and args.out.exists():
        raise UserError(f"--out {args.out}: exists already; name a new folder")
    retrieves = args.choice == "retrieved" or bool(args.tasks and "mixture" in args.baselines)
    if retrieves and not (args.encoder and args.pool):
        raise UserError("what is retrieved needs --encoder and --pool")
    try:
        check_system(args.system, check_template(args.template))
    except ValueError as error:
        raise UserError(str(error)) from error
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")
    settings = GenerationSection(
        template=args.template,
        system=args.system,
        batch_size=args.batch_size,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
    )
    search = Search(args.steps, args.l1, args.bound, args.optimizer, args.penalty)
    if args.tasks:
        return _experiment(args, settings, search, device, console)
    return _checkpoint(args, settings, search, device, console)


def _checkpoint(
    args: argparse.Namespace, settings: GenerationSection, search: Search, device: str, console: Console
) -> int:
    """Learn the weights for one task, and save the fusion."""
    import torch

    from lora_retriever.data.rows import read_samples
    from lora_retriever.escaping import for_terminal
    from lora_retriever.fewshot.choosing import Nearest, choose, losses_alone
    from lora_retriever.fewshot.objectives import objective_of
    from lora_retriever.fewshot.tasks import labels_of, rows_of
    from lora_retriever.generation.generator import Generator
    from lora_retriever.generation.loading import load_composable, load_tokenizer
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.hub import folder_or_id
    from lora_retriever.methods.parts.lorahub_weights import learn_checkpoint, weights_table
    from lora_retriever.tables import terminal

    samples = read_samples(args.examples)
    with writing(args.out):  # an unusable path is refused before the learning
        args.out.parent.mkdir(parents=True, exist_ok=True)
    locations = _locations(args, console)
    nearest = None
    if args.choice == "retrieved":
        encoder, pool = _retrieval(args)
        by_name = {entry.model_name: entry for entry in pool}
        found = [(place, by_name.get(Path(place).name)) for place in locations]
        renamed = [entry.model_copy(update={"model_name": place}) for place, entry in found if entry]
        nearest = Nearest(encoder, renamed, locations)
    drawn = locations
    if args.choice != "loss":
        drawn = choose(args.choice, locations, args.count, args.seed, samples, nearest)
    base = folder_or_id(args.base, files_wanted(args.template))
    quieten_transformers()
    with console.status("loading"):
        model = load_composable(base, {location: location for location in drawn}, getattr(torch, args.dtype), device)
        generator = Generator(model, load_tokenizer(base), settings)
    if args.choice == "loss":
        alone = losses_alone(generator, locations, samples)
        drawn = choose("loss", locations, args.count, args.seed, samples, losses=alone)
    metric = SCORINGS[args.scoring]
    labels = labels_of(samples, args.examples) if args.scoring == "likelihood" else ()
    rows = rows_of(samples, "examples", "examples", metric, labels)
    loss = objective_of(args.objective, generator, drawn, rows)
    chosen = {"choice": args.choice, "objective": args.objective, "scoring": args.scoring}
    learned = learn_checkpoint(generator, drawn, samples, args.out, loss, search, args.seed, console, chosen)
    print(terminal(weights_table(learned)), end="")
    print(for_terminal(f"{args.out}: fusion of {len(drawn)} adapters"))
    return 0


def _experiment(
    args: argparse.Namespace, settings: GenerationSection, search: Search, device: str, console: Console
) -> int:
    """Run the experiment, or go on with it, and print its tables."""
    import torch

    from lora_retriever.fewshot.experiment import (
        Design,
        Experiment,
        configuration_of,
        draws_of,
        hold_to,
        lora_name,
        trained_adapters,
    )
    from lora_retriever.fewshot.published import belongs_to
    from lora_retriever.fewshot.table import score_table, task_scores, weight_table
    from lora_retriever.fewshot.tasks import Division, read_tasks
    from lora_retriever.files import hash_path
    from lora_retriever.generation.generator import Generator
    from lora_retriever.generation.loading import load_composable, load_tokenizer
    from lora_retriever.generation.prompt import files_wanted
    from lora_retriever.hub import folder_or_id
    from lora_retriever.running.results_folder import locked
    from lora_retriever.tables import terminal
    from lora_retriever.training.lora import TrainingOptions

    division = Division(args.shots, args.held_out, args.split_seed, args.limit)
    tasks = read_tasks(args.tasks, args.names, division, SCORINGS[args.scoring], args.descriptions)
    locations = _locations(args, console)
    adapters = {Path(location).name: location for location in locations}
    if len(adapters) < len(locations):
        raise UserError("--tasks: two adapters have folders of one name; rename one of the folders")
    design = Design(args.draws, args.count, args.choice, args.objective, search, args.baselines, args.without_own)
    options = TrainingOptions(
        rank=args.lora_rank,
        alpha=2 * args.lora_rank,
        targets=tuple(args.lora_targets),
        dropout=0,
        epochs=args.lora_epochs,
        learning_rate=args.lora_rate,
        max_tokens=args.max_prompt_tokens,
        template=args.template,
        system=args.system,
    )
    base = folder_or_id(args.base, files_wanted(args.template))
    quieten_transformers()
    further = {
        "base": hash_path(base),
        "adapters": {name: hash_path(folder_or_id(location)) for name, location in adapters.items()},
        "generation": settings.recorded(),
        "dtype": args.dtype,
        "division": vars(division),
        "encoder": hash_path(folder_or_id(args.encoder)) if args.encoder else None,
        "pool": hash_path(args.pool) if args.pool else None,
        "scoring": args.scoring,
        "files": {task.name: hash_path(task.file) for task in tasks},
        "lora": options.model_dump(mode="json") if "lora" in design.baselines else None,
    }
    with locked(args.results) as held:
        held.require_writable()
        hold_to(args.results, configuration_of(design, tasks, further))
        tokenizer = load_tokenizer(base)
        dtype = getattr(torch, args.dtype)
        trained: dict[str, Path] = {}
        if "lora" in design.baselines:
            trained = trained_adapters(args.results, base, tokenizer, tasks, options, dtype, device, console)
        with console.status("loading"):
            every: dict[str, Path | str] = {**adapters, **{lora_name(task): folder for task, folder in trained.items()}}
            generator = Generator(load_composable(base, every, dtype, device), tokenizer, settings)
        needed = args.choice == "retrieved" or "mixture" in design.baselines
        retrieval = _retrieval(args) if needed else None
        Experiment(design, tasks, generator, list(adapters), args.results, retrieval, console).run()
    task_names = [task.name for task in tasks]
    scores = task_scores(args.results, design, task_names)
    print(terminal(score_table(scores, design, belongs_to(args.base))), end="")
    print()
    print(terminal(weight_table(draws_of(args.results, task_names, design.seeds))), end="")
    return 0


def _locations(args: argparse.Namespace, console: Console) -> list[str]:
    """The locations of the adapters; says which folders of --adapters are passed over."""
    from lora_retriever.escaping import for_rich
    from lora_retriever.methods.parts.lorahub_weights import ADAPTER_CONFIG, adapter_folders

    locations, passed_over = adapter_folders(args.adapter, args.adapters)
    if passed_over:
        passed = ", ".join(path.name for path in passed_over)
        console.print(for_rich(f"--adapters {args.adapters}: passed over, no {ADAPTER_CONFIG}: {passed}"))
    return locations


def _retrieval(args: argparse.Namespace) -> tuple[Encoder, list[PoolEntry]]:
    """The encoder and the pool of the arguments."""
    from lora_retriever.data.rows import read_pool
    from lora_retriever.retrieval.encoders import load_encoder

    return load_encoder(args.encoder), read_pool(args.pool)


def _bound(text: str) -> float:
    """A finite number above 0. Raises `argparse.ArgumentTypeError` for another number."""
    number = penalty(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _baselines(text: str) -> tuple[str, ...]:
    """The names of baselines in the table's order. Raises `argparse.ArgumentTypeError` for an unknown name."""
    known = ("zero_shot", "in_context", "mixture", "lora")
    given = [] if text == "none" else names(text)
    if unknown := [name for name in given if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown baseline {unknown[0]!r} (known: {', '.join(known)}, or none)")
    return tuple(name for name in known if name in given)
