"""Where does the time of an evaluation go, ours beside the original's loop? `python scripts/running/bench_phases.py`

Both answer the same rows in this process, in turns, under each method: ours by the local backend, and the original's
loop as in `bench_eval.py`. The seconds are CPU time, divided into three parts: the passes that read prompts, the passes
that decode tokens, and everything else. So other programs change the ratios less than they would change wall-clock
times.

The last column is a bound: the speed-up over the original of an evaluation that reads the prompts like ours and spends
no other time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from eval_loops import OriginalLoop
from torch import nn

from lora_retriever.backends.local import LocalBackend
from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import load_profile
from lora_retriever.files import write_json
from lora_retriever.generation.batches import Request
from lora_retriever.generation.loading import load_generator
from lora_retriever.methods import Method
from lora_retriever.methods.context import Context
from lora_retriever.methods.paper import METHODS as PAPER
from lora_retriever.tables import Table, terminal

METHODS = {method.name: method for method in PAPER}


@dataclass
class Phases:
    """CPU time in seconds: in all, in the passes that read prompts, and in the passes that decode tokens."""

    total: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0

    @property
    def rest(self) -> float:
        """The seconds outside of the passes."""
        return self.total - self.reading - self.decoding


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--limit", type=int, help="rows per task (default: all)")
    parser.add_argument("--only", default="base,selection,fusion,mixture", help="methods, separated by commas")
    parser.add_argument("--rounds", type=int, default=1, help="so often both take turns (default: once)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    profile = load_profile(args.profile)
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    benchmark = open_benchmark(profile, args.limit)
    generator = load_generator(model_source(profile, benchmark))
    loop = OriginalLoop(profile, benchmark)

    def ours(method: Method) -> dict[int, str]:
        compositions = method.router.route(Context(loop.resources, profile, method.declaration))
        rows = zip(benchmark.rows, loop.prompts, compositions, strict=True)
        requests = [Request(row.id, prompt, composition) for row, prompt, composition in rows]
        answers: dict[int, str] = {}
        for outcome in LocalBackend(generator).answers(requests, method.mode, ()):
            assert not outcome.failures, outcome.failures
            answers |= {id: answer.text for id, answer in outcome.answers.items()}
        return answers

    def originals(method: Method) -> dict[int, str]:
        return dict(loop.answers(method))

    figures: dict[str, dict[str, Any]] = {}
    for name in args.only.split(","):
        _ = METHODS[name].router.route(
            Context(loop.resources, profile, METHODS[name].declaration)
        )  # fits the index once
        rounds: list[tuple[Phases, Phases]] = []
        for _ in range(args.rounds):
            mine, found = measured(generator.model.base, lambda: ours(METHODS[name]))  # noqa: B023
            theirs, expected = measured(loop.model, lambda: originals(METHODS[name]))  # noqa: B023
            rounds.append((mine, theirs))
        figures[name] = compared(rounds) | {
            "rows": len(expected),
            "equal": sum(found[id] == text for id, text in expected.items()),
        }
        print(terminal(table({name: figures[name]})))
    print(terminal(table(figures)))
    if args.json:
        write_json(args.json, {"profile": args.profile, "limit": args.limit, "methods": figures})


def measured(model: nn.Module, answer: Callable[[], dict[int, str]]) -> tuple[Phases, dict[int, str]]:
    """The seconds of one implementation, and its answers."""
    phases = Phases()
    with watched(model, phases):
        started = time.process_time()
        answers = answer()
        phases.total = time.process_time() - started
    return phases, answers


@contextmanager
def watched(model: nn.Module, phases: Phases) -> Iterator[None]:
    """Note the seconds of the passes of a model within this context."""
    started = 0.0

    def begin(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal started
        started = time.process_time()

    def end(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seconds = time.process_time() - started
        if kwargs["input_ids"].shape[1] > 1:
            phases.reading += seconds
        else:
            phases.decoding += seconds

    handles = [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(end, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compared(rounds: list[tuple[Phases, Phases]]) -> dict[str, Any]:
    """The medians of both, of their ratio, and of the bound."""
    sides = {}
    for place, name in enumerate(("ours", "original")):
        sides[name] = {
            part: round(median(getattr(both[place], part) for both in rounds), 3)
            for part in ("total", "reading", "decoding", "rest")
        }
    return {
        **sides,
        "ratio": round(median(theirs.total / mine.total for mine, theirs in rounds), 2),
        "bound": round(median(theirs.total / mine.reading for mine, theirs in rounds), 2),
        "rounds": len(rounds),
    }


def table(figures: dict[str, dict[str, Any]]) -> Table:
    """Two lines for each method."""
    lines: list[tuple[str, list[Any]]] = []
    for name, its in figures.items():
        for side in ("original", "ours"):
            seconds = [f"{its[side][part]:.2f}" for part in ("reading", "decoding", "rest", "total")]
            equal = f"{its['equal']} of {its['rows']}"
            told = [f"{its['ratio']:.2f}", f"{its['bound']:.2f}", equal] if side == "ours" else ["", "", ""]
            lines.append((f"{name}, {side}", [*seconds, *told]))
    heads = ["reading, s", "decoding, s", "rest, s", "in all, s", "times faster", "bound", "equal answers"]
    return Table(heads, lines, notes=["Seconds of the processor."])


if __name__ == "__main__":
    main()
