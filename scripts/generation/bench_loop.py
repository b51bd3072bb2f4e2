"""The loop beside batches that run until their last row has ended: passes, tokens read, rows a step, CPU seconds.

    python scripts/generation/bench_loop.py                                        # the miniature
    python scripts/generation/bench_loop.py --profile mine.yaml --limit 5 --only base,selection,mixture,fusion

    python scripts/generation/bench_loop.py --shares                               # and where the loop's time goes

Both answer the same prompts under the same compositions, in this process: the batches by `Generator.answer`, the loop
by the local backend. The seconds are CPU time, so other programs change them only a little.

With `--shares`, the loop answers once more under torch's profiler, and a second table says which share of the time goes
into the base model's own products (its linear layers and its attention), into the products of the adapters' pairs, into
all other operations of its forward passes, into the code between these operations, and into everything outside of the
passes. Other programs slow all parts equally.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as profiled

from lora_retriever.backends.local import LocalBackend
from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import load_profile
from lora_retriever.files import write_json
from lora_retriever.generation.answer import Answer
from lora_retriever.generation.batches import Request, plan_batches
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import load_generator
from lora_retriever.methods import LearnedGate, Method, methods_of
from lora_retriever.methods.context import Context, Resources
from lora_retriever.tables import Table, terminal

LINEAR = "linear layers"
PRODUCTS = {
    LINEAR: ("aten::mm", "aten::addmm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_attention_math",
    ),
    "pairs": ("aten::bmm", "aten::baddbmm", "aten::baddbmm_"),
}
"""The operations of torch that compute products: of the base, and of the pairs. On a CPU, and without a gate."""
PHASES = ("linear layers, reading", "linear layers, decoding")
"""The two kinds of passes, by the names of the columns for the base's linear layers in them."""


@dataclass
class Counts:
    """The passes of one implementation, and the CPU time in seconds."""

    read_tokens: int = 0
    read_passes: int = 0
    steps: int = 0
    rows: int = 0  # the sum over all steps
    seconds: float = 0.0
    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def rows_a_step(self) -> float:
        """The mean number of rows of a decoding step."""
        return self.rows / max(1, self.steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--limit", type=int, help="rows per task (default: all)")
    parser.add_argument("--only", default="base,selection,mixture,fusion", help="methods, separated by commas")
    parser.add_argument("--shares", action="store_true", help="say where the loop's time goes, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    profile = load_profile(args.profile)
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    benchmark = open_benchmark(profile, args.limit)
    generator = load_generator(model_source(profile, benchmark))
    prompts = make_prompts([row.inputs for row in benchmark.rows], generator.tokenizer, generator.settings)
    figures: dict[str, dict[str, Counts]] = {}
    spent: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as learned:
        resources = Resources(profile, benchmark, Path(learned), Console(stderr=True), lambda: generator)
        for method in methods_of(profile, args.only.split(",")):
            context = Context(resources, profile, method.declaration)
            compositions = method.router.route(context)
            gate = method.gate.fit(context) if isinstance(method.gate, LearnedGate) else method.gate
            pairs = zip(prompts, compositions, strict=True)
            requests = [Request(id, prompt, composition) for id, (prompt, composition) in enumerate(pairs)]
            ways = {"batches": in_batches, "loop": in_the_loop}
            figures[method.name] = {
                name: counted(generator, partial(way, generator, requests, method, gate)) for name, way in ways.items()
            }
            if args.shares:
                spent[method.name] = shares(
                    partial(in_the_loop, generator, requests, method, gate), generator.model.base
                )
    print(terminal(table(figures, f"Profile {args.profile}, {len(prompts)} rows, {torch.get_num_threads()} threads.")))
    if spent:
        print(terminal(table_of_shares(spent)))
    if args.json:
        counts = {name: {way: plain(c) for way, c in both.items()} for name, both in figures.items()}
        write_json(args.json, {"counts": counts, "shares": spent})


def in_batches(generator: Generator, requests: Sequence[Request], method: Method, gate: Any) -> dict[int, Answer]:
    """The answers in batches, each of which runs until its last row has ended. Every prompt is read whole."""
    answers: dict[int, Answer] = {}
    settings = generator.settings
    generator.settings = settings.model_copy(update={"share_prefix": False})
    for batch in plan_batches(requests, generator.settings):
        prompts, compositions = [one.prompt for one in batch], [one.composition for one in batch]
        found = generator.answer(prompts, compositions, method.mode, gate)
        answers |= {request.id: answer for request, answer in zip(batch, found, strict=True)}
    generator.settings = settings
    return answers


def in_the_loop(generator: Generator, requests: Sequence[Request], method: Method, gate: Any) -> dict[int, Answer]:
    """The answers of the local backend."""
    answers: dict[int, Answer] = {}
    for outcome in LocalBackend(generator).answers(requests, method.mode, (), gate):
        assert not outcome.failures, outcome.failures
        answers |= outcome.answers
    return answers


def counted(generator: Generator, answer: Callable[[], dict[int, Answer]]) -> Counts:
    """The counts and the seconds of one implementation."""
    counts = Counts()
    with watched(generator.model.base, counts):
        started = time.process_time()
        counts.answers = answer()
        counts.seconds = time.process_time() - started
    return counts


def shares(answer: Callable[[], object], base: nn.Module) -> dict[str, float]:
    """The shares of the time: in each kind of product, in other operations, in code of the passes, and outside of them.

    The linear layers are counted apart for passes that read prompts and for passes that decode tokens.
    """
    with in_phases(base), profiled(activities=[ProfilerActivity.CPU]) as recorded:
        started = time.perf_counter()
        answer()
        seconds = time.perf_counter() - started
    kinds = {name: kind for kind, names in PRODUCTS.items() for name in names}
    found = dict.fromkeys((*PHASES, *PRODUCTS, "other operations", "code of the passes"), 0.0)
    del found[LINEAR]
    for event in recorded.events():
        if (phase := phase_of(event)) is None:
            continue
        kind = "code of the passes" if event.name in PHASES else kinds.get(event.name, "other operations")
        found[phase if kind == LINEAR else kind] += event.self_cpu_time_total / 1e6 / seconds
    found["outside of passes"] = 1 - sum(found.values())
    return found


def phase_of(event: Any) -> str | None:
    """The kind of pass to which an operation belongs. None: the operation is outside of the passes."""
    while event is not None and event.name not in PHASES:
        event = event.cpu_parent
    return None if event is None else str(event.name)


@contextmanager
def in_phases(base: nn.Module) -> Iterator[None]:
    """Within this context the profiler sees which passes of the base read prompts and which decode tokens."""
    forward = base.forward

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(PHASES[kwargs["input_ids"].shape[1] == 1]):
            return forward(*args, **kwargs)

    base.forward = marked
    try:
        yield
    finally:
        del base.forward


@contextmanager
def watched(base: nn.Module, counts: Counts) -> Iterator[None]:
    """Count the passes of the base within this context."""

    def note(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rows, length = kwargs["input_ids"].shape
        if length > 1:
            counts.read_passes += 1
            counts.read_tokens += rows * length
        else:
            counts.steps += 1
            counts.rows += rows

    handle = base.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def plain(counts: Counts) -> dict[str, Any]:
    """The counts without the answers."""
    return {
        "read_tokens": counts.read_tokens,
        "read_passes": counts.read_passes,
        "steps": counts.steps,
        "rows_a_step": round(counts.rows_a_step, 2),
        "seconds": round(counts.seconds, 2),
    }


def table_of_shares(spent: dict[str, dict[str, float]]) -> Table:
    """One line for each method."""
    kinds = list(next(iter(spent.values())))
    lines: list[tuple[str, list[Any]]] = [
        (name, [f"{100 * found[kind]:.1f} %" for kind in kinds]) for name, found in spent.items()
    ]
    return Table(kinds, lines, notes=["Shares of the loop's time under torch's profiler, which takes time itself."])


def table(figures: dict[str, dict[str, Counts]], note: str) -> Table:
    """Two lines for each method."""
    lines: list[tuple[str, list[Any]]] = []
    for name, both in figures.items():
        equal = sum(both["batches"].answers[id] == answer for id, answer in both["loop"].answers.items())
        for way, counts in both.items():
            cells = [counts.read_tokens, counts.steps, f"{counts.rows_a_step:.1f}", f"{counts.seconds:.1f}"]
            told = f"{equal} of {len(counts.answers)}" if way == "loop" else ""
            lines.append((f"{name}, {way}", [*map(str, cells), told]))
    return Table(["tokens read", "steps", "rows a step", "CPU seconds", "equal answers"], lines, notes=[note])


if __name__ == "__main__":
    main()
