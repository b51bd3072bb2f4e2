"""How much does each method cost? `python scripts/methods/bench_methods.py [--profile tiny] [--methods mixture,arrow]`

Under every method, the same rows are read and get the same number of new tokens. The methods take turns. The time of a
method in a round is divided by the base model's time in the same round. A first batch does not count: in this batch, a
gate prepares what is prepared only once.

*Routing at first* is all work of a method before its first token, apart from encoding the texts of rows and pool
(bench_encoding times the encoding). The method trains its gate, learns weights, probes the rows, fits and calibrates
its index, and gives the rows their adapters. Each method does all this work for itself, although the methods of a run
share a part of the work. With --results, a method uses what a run or an earlier method left in the folder.

*Again* is the router alone, a second time, with the results of this work: gates are not asked, and no prompt is read.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from lora_retriever.experiment.benchmark import Benchmark, model_source, open_benchmark
from lora_retriever.experiment.profile import Profile, load_profile
from lora_retriever.files import write_json
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.loading import load_generator
from lora_retriever.generation.loop import continued
from lora_retriever.generation.prompt import Prompt
from lora_retriever.generation.sampling import Sampling
from lora_retriever.methods import Composition, LearnedGate, Method, methods_of
from lora_retriever.methods.context import Context, Resources
from lora_retriever.running.results_folder import locked
from lora_retriever.tables import Table, terminal
from peft_composition import Gate

sys.path.append(str(Path(__file__).resolve().parent.parent / "composition"))  # where `bench_composition` is
from bench_composition import peak_bytes

MIB = 2**20


@dataclass(frozen=True)
class Routed:
    """A method with its rows' compositions, its gate, and the seconds that finding them took, first and again."""

    method: Method
    compositions: list[Composition]
    gate: Gate | None
    first_seconds: float
    again_seconds: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--methods", default="all", help="separated by commas (default: all), without variants")
    parser.add_argument("--rows", type=int, default=16, help="in the one batch that is answered (default: 16)")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="results folder where methods look for what they have learned")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    profile = load_profile(args.profile)
    methods = [method for method in methods_of(profile, ["base", *args.methods.split(",")]) if not method.masked]
    figures = measure(profile, methods, args)
    print(terminal(table(figures)))
    if args.json:
        write_json(args.json, figures)


def measure(profile: Profile, methods: Sequence[Method], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of every method, the base's first."""
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    benchmark = open_benchmark(profile, 1)
    chosen = benchmark.rows[:: max(1, len(benchmark.rows) // args.rows)][: args.rows]
    benchmark.rows[:] = chosen
    generator = load_generator(model_source(profile, benchmark))
    routed = route_all(profile, methods, benchmark, generator, args.results)
    generator.eos_ids = []  # rows go on after an EOS token, too
    # With shared beginnings the prompts of some methods would have fewer tokens than the prompts of others.
    generator.settings = generator.settings.model_copy(update={"share_prefix": False})
    prompts = make_prompts([row.inputs for row in chosen], generator.tokenizer, profile.generation)
    # The longest first, as in a run; a method's compositions go with their rows.
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place].token_ids))
    answer = {each.method.name: partial(answered, generator, prompts, each, order, args.new_tokens) for each in routed}
    peaks = {name: peak_bytes(act, generator.model.device) for name, act in answer.items()}  # and all is prepared now
    seconds: dict[str, list[float]] = {name: [] for name in answer}
    names = list(answer)
    for turn in track(range(args.rounds), description="answering"):
        # the first method of a round is at a disadvantage, so every round begins with another method
        first = turn * len(names) // args.rounds
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            answer[name]()
            seconds[name].append(time.perf_counter() - started)
    base = routed[0].method.name
    return [
        {
            "method": each.method.name,
            "reads": sorted(each.method.reads),
            "first_routing_seconds": each.first_seconds,
            "routing_seconds_per_row": each.again_seconds / len(chosen),
            "answering_ratio": median(
                mine / its for mine, its in zip(seconds[each.method.name], seconds[base], strict=True)
            ),
            "answering_seconds_per_row": median(seconds[each.method.name]) / len(chosen),
            "memory_above_base_mib": (peaks[each.method.name] - peaks[base]) / MIB,
        }
        for each in routed
    ]


def route_all(
    profile: Profile, methods: Sequence[Method], benchmark: Benchmark, generator: Generator, results: Path | None
) -> list[Routed]:
    """The methods routed one by one, each with a results folder of its own unless one is given."""

    def resources_in(folder: Path) -> Resources:
        return Resources(profile, benchmark, folder, Console(stderr=True), lambda: generator)

    routed = []
    with tempfile.TemporaryDirectory() as scratch:
        shared = resources_in(Path(scratch))
        if any("encoder" in method.reads for method in methods):
            _ = shared.embeddings  # encoded now, and not while the first method is timed
        for method in track(methods, description="routing"):
            resources = resources_in(results or Path(scratch) / method.name)
            if "encoder" in method.reads:
                resources.embeddings = shared.embeddings  # nothing else: every method fits its own index
            with locked(resources.results):
                routed.append(route(method, Context(resources, profile, method.declaration)))
    return routed


def route(method: Method, setting: Context) -> Routed:
    """A method's compositions and gate."""
    begun = time.perf_counter()
    gate = method.gate.fit(setting) if isinstance(method.gate, LearnedGate) else method.gate
    method.router.route(setting)
    ready = time.perf_counter()
    compositions = method.router.route(setting)
    return Routed(method, compositions, gate, ready - begun, time.perf_counter() - ready)


def answered(
    generator: Generator, prompts: Sequence[Prompt], routed: Routed, order: Sequence[int], new_tokens: int
) -> None:
    """Compose, read the prompts and make `new_tokens` tokens for every row."""
    sampling, mode, gate = Sampling(new_tokens), routed.method.mode, routed.gate
    continued(
        generator,
        [Job(prompts[place].token_ids, routed.compositions[place], mode, sampling, gate) for place in order],
    )


def table(figures: Sequence[dict[str, Any]]) -> Table:
    """The figures, a method a line."""
    return Table(
        ["ratio to base", "s a row", "routing at first, s", "again, s a row", "MiB above base"],
        [
            (
                figure["method"],
                [
                    f"{figure['answering_ratio']:.3f}",
                    f"{figure['answering_seconds_per_row']:.3f}",
                    f"{figure['first_routing_seconds']:.2f}",
                    f"{figure['routing_seconds_per_row']:.5f}",
                    f"{figure['memory_above_base_mib']:.1f}",
                ],
            )
            for figure in figures
        ],
        [
            "Answering, base = 1: medians of rounds.",
            "Routing at first: all that the method learns, probes and fits, but not the encoding of texts.",
            "Again: the router alone, with all of that at hand.",
        ],
    )


if __name__ == "__main__":
    main()
