"""Do answers depend on the batch? `python scripts/generation/check_batches.py [--profile NAME|FILE.yaml] [--rows N]`

Rows are answered in batches of two sizes, in each dtype. The script counts the rows whose tokens differ between the two
sizes. A batch changes only the shapes of the matrix products, and so the order in which sums are taken. So a token can
differ only where the two best logits lie closer together than rounding moves logits. The script prints the gap between
the two best logits at the first token that differs, beside the usual gap.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from lora_retriever.experiment.benchmark import model_source, open_benchmark
from lora_retriever.experiment.profile import load_profile
from lora_retriever.files import write_json
from lora_retriever.generation.batches import Request, plan_batches
from lora_retriever.generation.composition import weight_matrix
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.jobs import Job
from lora_retriever.generation.loading import load_generator
from lora_retriever.generation.loop import continued
from lora_retriever.generation.sampling import Sampling
from lora_retriever.methods import LearnedGate, Method, methods_of
from lora_retriever.methods.context import Context, Resources
from lora_retriever.tables import Table, terminal
from peft_composition import Composer, Gate


@dataclass(frozen=True)
class Asked:
    """A request of a method, with the mode in which its adapters are composed, and the gate, if there is one."""

    request: Request
    method: str
    mode: str | Composer
    gate: Gate | None


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="tiny", help="a bundled profile's name, or a YAML file (default: tiny)")
    parser.add_argument("--rows", type=int, default=1000, help="maximum number of rows (default: 1000)")
    parser.add_argument("--methods", default="mixture,fusion", help="whose rows, separated by commas")
    parser.add_argument("--sizes", type=int, nargs=2, default=(1, 32), help="rows in a batch (default: 1 32)")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    profile = load_profile(args.profile)
    if profile.threads is not None:
        torch.set_num_threads(profile.threads)
    benchmark = open_benchmark(profile, None)
    found = []
    for dtype in args.dtype:
        its = profile.model_copy(update={"dtype": dtype})
        load = partial(load_generator, model_source(its, benchmark))
        with tempfile.TemporaryDirectory() as learned:
            resources = Resources(its, benchmark, Path(learned), Console(), load)
            asked = asked_of(methods_of(its, args.methods.split(",")), resources)[: args.rows]
        found.append({"dtype": dtype, **compare(resources.generator, asked, args.sizes)})
    small, large = args.sizes
    print(terminal(table(found, f"Profile {args.profile}, batches of {small} and of {large}.")))
    if args.json:
        write_json(args.json, found)


def asked_of(methods: Sequence[Method], resources: Resources) -> list[Asked]:
    """The rows of some methods, with their prompts and compositions; the first rows of every task come first."""
    generator = resources.generator
    prompts = make_prompts([row.inputs for row in resources.benchmark.rows], generator.tokenizer, generator.settings)
    asked: list[Asked] = []
    for method in methods:
        setting = Context(resources, resources.profile, method.declaration)
        compositions = method.router.route(setting)
        gate = method.gate.fit(setting) if isinstance(method.gate, LearnedGate) else method.gate
        for prompt, composition in zip(prompts, compositions, strict=True):
            asked.append(Asked(Request(len(asked), prompt, composition), method.name, method.mode, gate))
    stride = max(1, len(asked) // 50)
    return [one for start in range(stride) for one in asked[start::stride]]


def compare(generator: Generator, asked: Sequence[Asked], sizes: Sequence[int]) -> dict[str, Any]:
    """The number of rows whose tokens differ, and the gap between the two best logits at differences and elsewhere."""
    first, second = (tokens_of(generator, asked, size) for size in sizes)
    differing = [one for one in asked if first[one.request.id] != second[one.request.id]]
    usual = [gap(generator, one, first[one.request.id][:-1]) for one in asked[:: max(1, len(asked) // 50)]]
    gaps = []
    for one in differing:
        pair = zip(first[one.request.id], second[one.request.id], strict=False)
        same = next(place for place, (mine, its) in enumerate(pair) if mine != its)
        gaps.append(gap(generator, one, first[one.request.id][:same]))
    return {
        "rows": len(asked),
        "differing": len(differing),
        "largest_gap_where_differing": max(gaps, default=None),
        "median_gap": median(usual),
    }


def tokens_of(generator: Generator, asked: Sequence[Asked], size: int) -> dict[int, list[int]]:
    """The tokens of every row, by its request's id, in batches of this size."""
    settings = generator.settings.model_copy(update={"batch_size": size, "batch_tokens": None})
    found: dict[int, list[int]] = {}
    of_method = {one.method: one for one in asked}
    for method, any_one in of_method.items():
        batches = plan_batches([one.request for one in asked if one.method == method], settings)
        for batch in track(batches, description=f"{generator.model.dtype}, {method}, batches of {size}"):
            sampling = Sampling(settings.max_new_tokens)
            jobs = [
                Job(request.prompt.token_ids, request.composition, any_one.mode, sampling, any_one.gate)
                for request in batch
            ]
            for request, event in zip(batch, continued(generator, jobs), strict=True):
                found[request.id] = [token.id for token in event.tokens]
    return found


@torch.inference_mode()
def gap(generator: Generator, one: Asked, generated: Sequence[int]) -> float:
    """The gap between the best and the second logit after a prompt and some tokens."""
    names, weights = weight_matrix([one.request.composition])
    ids = torch.tensor([[*one.request.prompt.token_ids, *generated]], device=generator.model.device)  # [1, length]
    with generator.model.composed(names, weights, mode=one.mode, gate=one.gate):
        best = generator.model(input_ids=ids).logits[0, -1].float().topk(2).values  # [2]
    return float(best[0] - best[1])


def table(found: Sequence[dict[str, Any]], note: str) -> Table:
    """The figures, a dtype a line."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2g}"

    return Table(
        ["rows", "differ", "largest gap there", "median gap"],
        [
            (
                its["dtype"],
                [
                    str(its["rows"]),
                    str(its["differing"]),
                    number(its["largest_gap_where_differing"]),
                    number(its["median_gap"]),
                ],
            )
            for its in found
        ],
        notes=[note],
    )


if __name__ == "__main__":
    main()
