"""`lora-retriever lorahub --examples`: learn the weights for one task, and save the fusion as a PEFT checkpoint."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from lora_retriever.commands.lorahub.arguments import SCORINGS
from lora_retriever.commands.lorahub.parts import parts_of
from lora_retriever.files import writing

if TYPE_CHECKING:
    from lora_retriever.methods.parts.lorahub_weights import Search


def search_of(args: argparse.Namespace) -> Search:
    """How weights are searched for, by the arguments."""
    from lora_retriever.methods.parts.lorahub_weights import Search

    return Search(args.steps, args.l1, args.bound, args.optimizer, args.penalty)


def run(args: argparse.Namespace, console: Console) -> int:
    """Learn the weights, and save the fusion. Returns the exit status."""
    from lora_retriever.data.rows import read_samples
    from lora_retriever.escaping import for_terminal
    from lora_retriever.fewshot.choosing import Nearest, choose, losses_alone
    from lora_retriever.fewshot.objectives import objective_of
    from lora_retriever.fewshot.tasks import labels_of, rows_of
    from lora_retriever.generation.loading import load_generator
    from lora_retriever.methods.parts.lorahub_weights import learn_checkpoint, weights_table
    from lora_retriever.tables import terminal

    samples = read_samples(args.examples)
    with writing(args.out):  # an unusable path is refused before the learning
        args.out.parent.mkdir(parents=True, exist_ok=True)
    parts = parts_of(args, console)
    names = list(parts.locations)
    drawn = names
    if args.choice != "loss":
        nearest = Nearest(*parts.retrieval(), names) if args.choice == "retrieved" else None
        drawn = choose(args.choice, names, args.count, args.seed, samples, nearest)
    with console.status("loading"):
        generator = load_generator(parts.source(drawn))
    if args.choice == "loss":
        drawn = choose("loss", names, args.count, args.seed, samples, losses=losses_alone(generator, names, samples))
    labels = labels_of(samples, args.examples) if args.scoring == "likelihood" else ()
    rows = rows_of(samples, "examples", "examples", SCORINGS[args.scoring], labels)
    loss = objective_of(args.objective, generator, drawn, rows)
    chosen = {"choice": args.choice, "objective": args.objective, "scoring": args.scoring}
    search = search_of(args)
    learned = learn_checkpoint(generator, drawn, samples, args.out, loss, search, args.seed, console, chosen)
    print(terminal(weights_table(learned)), end="")
    print(for_terminal(f"{args.out}: fusion of {len(drawn)} adapters"))
    return 0
