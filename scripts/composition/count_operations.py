"""How many operations of torch does a gate need at a module in a decoding step?

    python scripts/composition/count_operations.py [--profile NAME|FILE --only arrow,spectr,lag]

One step of four rows is decoded by the base, and by the base under the gate of each method. The difference is divided
by the number of gated modules. Views are not counted: they start no computation. The figures do not depend on the
machine. On a GPU every operation is at least one kernel.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import load_profile
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import load_generator
from lora_retriever.methods import LearnedGate, methods_of
from lora_retriever.methods.context import Context, Resources
from lora_retriever.tables import Table, terminal

ROWS = 4


class Counter(TorchDispatchMode):
    """Counts the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, and run the operation."""
        returned = [value.alias_info for value in func._schema.returns]
        self.count += not all(alias is not None and not alias.is_write for alias in returned)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--only", default="arrow,spectr,lag", help="methods with a gate, separated by commas")
    args = parser.parse_args()
    profile = load_profile(args.profile)
    benchmark = open_benchmark(profile, 1)
    generator = load_generator(model_source(profile, benchmark))
    (prompt,) = make_prompts([benchmark.rows[0].inputs], generator.tokenizer, generator.settings)
    of_base = operations(generator, prompt.token_ids)
    lines: list[tuple[str, list[Any]]] = []
    with tempfile.TemporaryDirectory() as learned:
        resources = Resources(profile, benchmark, Path(learned), Console(stderr=True), lambda: generator)
        for method in methods_of(profile, args.only.split(",")):
            context = Context(resources, profile, method.declaration)
            gate = method.gate.fit(context) if isinstance(method.gate, LearnedGate) else method.gate
            names = list(method.router.route(context)[0].adapters)
            weights = torch.ones(ROWS, len(names))
            with generator.model.composed(names, weights, method.mode, gate) as model:
                modules = len(model._live.updates)  # type: ignore[union-attr]
                lines.append((method.name, [f"{(operations(generator, prompt.token_ids) - of_base) / modules:.1f}"]))
    note = f"Profile {args.profile}, {modules} modules. The base alone: {of_base} operations a step."
    print(terminal(Table(["operations a module and step"], lines, notes=[note])))


@torch.inference_mode()
def operations(generator: Generator, prompt: list[int]) -> int:
    """The number of operations of one decoding step of `ROWS` equal rows, after a prompt."""
    cache = DynamicCache(config=generator.model.config)
    generator.model(input_ids=torch.tensor([prompt] * ROWS), past_key_values=cache, use_cache=True)
    with Counter() as counter:
        generator.model(input_ids=torch.tensor([prompt[-1:]] * ROWS), past_key_values=cache, use_cache=True)
    return counter.count


if __name__ == "__main__":
    main()
